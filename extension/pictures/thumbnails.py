"""Small pictures, made once and kept on the disk."""

from __future__ import annotations

import hashlib
import io
import threading
from pathlib import Path

from PIL import Image, ImageOps

from extension.pictures.files import open_picture, write_atomically
from trainers.errors import InputError
from trainers.looks import eight_bit, is_deep

SIDE = 320
_GREY = (128, 128, 128)
_AT_ONCE = threading.Semaphore(2)  # a large picture takes half a gigabyte while it is decoded
_MOST_PER_SHELF = 64


def thumbnail(picture: Path, kept: Path) -> bytes:
    """A small JPEG of a picture, drawn anew from its pixels: nothing else that the file may hold gets out.

    A file that is no picture, or a damaged one, gives a grey square: what is wrong with it is said elsewhere, in words.

    Args:
        kept: folder of thumbnails made before; at most some thousands stay there.

    Raises:
        InputError: the file cannot be opened.
    """
    try:
        stat = picture.stat()
    except OSError as error:
        raise InputError(f"{picture.name}: cannot be opened ({error.strerror or error}).") from None
    name = hashlib.sha256(f"{picture}\0{stat.st_mtime_ns}\0{stat.st_size}\0{SIDE}".encode("utf-8", "surrogatepass"))
    file = kept / name.hexdigest()[:2] / f"{name.hexdigest()[2:34]}.jpg"
    try:
        return file.read_bytes()
    except OSError:
        pass
    try:
        with _AT_ONCE:
            data = _drawn(picture)
    except Exception:  # Pillow raises many kinds on damaged files
        return _as_jpeg(Image.new("RGB", (SIDE, SIDE), _GREY))
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        _make_room(file.parent)
        write_atomically(file, data)
    except (OSError, InputError):  # a full disk costs time only
        pass
    return data


def _make_room(shelf: Path) -> None:
    files = [(each.stat().st_mtime, each) for each in shelf.glob("*.jpg")]
    for _, each in sorted(files)[: max(0, len(files) - _MOST_PER_SHELF)]:
        each.unlink(missing_ok=True)


def _drawn(picture: Path) -> bytes:
    with open_picture(picture) as opened:
        opened.draft("RGB", (SIDE * 2, SIDE * 2))
        small = ImageOps.exif_transpose(opened) or opened
        small = eight_bit(small) if is_deep(small) else small
        small.thumbnail((SIDE, SIDE))
        small = small.convert("RGBA")
    back = Image.new("RGB", small.size, _GREY)
    back.paste(small, mask=small.getchannel("A"))
    return _as_jpeg(back)


def _as_jpeg(picture: Image.Image) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=84)
    return stream.getvalue()
