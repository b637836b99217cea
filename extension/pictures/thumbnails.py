"""Small pictures, made once and kept on the disk."""

from __future__ import annotations

import hashlib
import io
import threading
from pathlib import Path

from PIL import Image, ImageOps

from extension.pictures.files import open_picture, write_atomically
from trainers.errors import InputError

SIDE = 320
_AT_ONCE = threading.Semaphore(2)  # a large picture takes half a gigabyte while it is decoded
_MOST_PER_SHELF = 64


def thumbnail(picture: Path, kept: Path) -> bytes:
    """A small JPEG of a picture, drawn anew from its pixels: nothing else that the file may hold gets out.

    Args:
        kept: folder of thumbnails made before; at most some thousands stay there.

    Raises:
        InputError: it cannot be read.
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
    with _AT_ONCE:
        data = _drawn(picture)
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
    try:
        with open_picture(picture) as opened:
            opened.draft("RGB", (SIDE * 2, SIDE * 2))
            small = ImageOps.exif_transpose(opened) or opened
            small.thumbnail((SIDE, SIDE))
            small = small.convert("RGBA")
    except InputError:
        raise
    except Exception as error:  # Pillow raises many kinds on damaged files
        raise InputError(f"{picture.name}: is not a readable picture ({type(error).__name__}).") from None
    back = Image.new("RGB", small.size, (128, 128, 128))
    back.paste(small, mask=small.getchannel("A"))
    stream = io.BytesIO()
    back.save(stream, "JPEG", quality=84)
    return stream.getvalue()
