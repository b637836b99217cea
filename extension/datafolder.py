"""A folder with pictures, as the page shows it: pictures, captions, and what may be wrong with them."""

from __future__ import annotations

import hashlib
import io
import os
import re
import uuid
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from trainers.errors import InputError

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
FORMATS = {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp", "BMP": ".bmp", "GIF": ".gif", "TIFF": ".tif"}
CAPTIONS = (".txt", ".caption")
MOST = 2000
LARGEST_UPLOAD = 64 * 2**20
LARGEST_SIDE = 20_000
THUMBNAIL = 256
_LONGEST_CAPTION = 20_000


@dataclass
class PictureCard:
    """One picture.

    Attributes:
        file: its path below the folder, with forward slashes.
        caption: None where there is no caption file.
        problems: "broken", "tiny", "duplicate" (with the file it repeats), "caption".
    """

    file: str
    width: int = 0
    height: int = 0
    caption: str | None = None
    problems: list[str] = field(default_factory=list)
    same_as: str = ""


@dataclass
class FolderView:
    """A folder's pictures and its tags by how often they are used."""

    folder: str
    pictures: list[PictureCard]
    tags: list[tuple[str, int]]
    left_out: int = 0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def look(folder: Path, smallest: int = 256) -> FolderView:
    """Reads a folder and its folders below.

    Args:
        smallest: pictures with a shorter side are called tiny.

    Raises:
        InputError: it is no folder.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: is not a folder.")
    files = _pictures(folder)
    seen: dict[str, str] = {}
    cards = [_card(folder, file, smallest, seen) for file in files[:MOST]]
    some_have = any(card.caption for card in cards)
    for card in cards:
        if not card.caption and some_have:
            card.problems.append("caption")
    words = Counter(tag.strip() for card in cards for tag in (card.caption or "").split(",") if tag.strip())
    return FolderView(str(folder), cards, words.most_common(200), max(0, len(files) - MOST))


def _pictures(folder: Path) -> list[Path]:
    found = []
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(place) / name for name in names if name.lower().endswith(ENDINGS) and not name.startswith(".")]
    return sorted(found, key=lambda path: _natural(path.relative_to(folder).as_posix()))


def _natural(text: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (0, part.lower()) for part in re.split(r"(\d+)", text)]


def _card(folder: Path, file: Path, smallest: int, seen: dict[str, str]) -> PictureCard:
    card = PictureCard(file.relative_to(folder).as_posix(), caption=read_caption(file))
    try:
        data = file.read_bytes()
        with Image.open(io.BytesIO(data)) as picture:
            card.width, card.height = picture.size
            picture.verify()
    except Exception:  # Pillow raises many kinds on damaged files
        card.problems.append("broken")
        return card
    if min(card.width, card.height) < smallest:
        card.problems.append("tiny")
    first = seen.setdefault(hashlib.sha256(data).hexdigest(), card.file)
    if first != card.file:
        card.problems.append("duplicate")
        card.same_as = first
    return card


def read_caption(picture: Path) -> str | None:
    """The caption beside a picture; None where there is no caption file."""
    for ending in CAPTIONS:
        file = picture.with_suffix(ending)
        if file.is_file():
            return file.read_text(encoding="utf-8-sig", errors="replace").strip()
    return None


def write_caption(picture: Path, text: str) -> str | None:
    """Replaces the caption beside a picture, at once; gives the former one, for undoing.

    Raises:
        InputError: there is no such picture, or the text is too long.
    """
    if not picture.is_file() or not picture.name.lower().endswith(ENDINGS):
        raise InputError(f"{picture.name}: there is no such picture.")
    if len(text) > _LONGEST_CAPTION or "\0" in text:
        raise InputError(f"{picture.name}: a caption has at most {_LONGEST_CAPTION} characters.")
    former = read_caption(picture)
    existing = next((picture.with_suffix(end) for end in CAPTIONS if picture.with_suffix(end).is_file()), None)
    target = existing or picture.with_suffix(CAPTIONS[0])
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        temporary.write_text(text.strip() + "\n", encoding="utf-8", newline="\n")
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    return former


def thumbnail(picture: Path, side: int = THUMBNAIL) -> bytes:
    """A small JPEG of a picture.

    Raises:
        InputError: it cannot be read.
    """
    try:
        with Image.open(picture) as opened:
            _check_sides(opened)
            opened.draft("RGB", (side * 2, side * 2))
            small = ImageOps.exif_transpose(opened)
            small.thumbnail((side, side))
            small = small.convert("RGBA")
            back = Image.new("RGB", small.size, (128, 128, 128))
            back.paste(small, mask=small.getchannel("A"))
    except InputError:
        raise
    except Exception as error:  # Pillow raises many kinds on damaged files
        raise InputError(f"{picture.name}: is not a readable picture ({type(error).__name__}).") from None
    stream = io.BytesIO()
    back.save(stream, "JPEG", quality=82)
    return stream.getvalue()


def _check_sides(picture: Image.Image) -> None:
    if max(picture.size) > LARGEST_SIDE:
        raise InputError(f"This picture has a side of more than {LARGEST_SIDE} pixels.")


def keep_upload(folder: Path, name: str, data: bytes) -> Path:
    """Writes a picture that a person dropped on the page; never over another file.

    Raises:
        InputError: it is no picture, or too large. What counts is the content, not the name.
    """
    if len(data) > LARGEST_UPLOAD:
        raise InputError(f"{name[:100]}: is larger than {LARGEST_UPLOAD // 2**20} MiB.")
    try:
        with Image.open(io.BytesIO(data)) as picture:
            _check_sides(picture)
            ending = FORMATS[picture.format or ""]
            picture.verify()
    except InputError:
        raise
    except Exception:  # Pillow raises many kinds on what is no picture
        raise InputError(f"{name[:100]}: is not a picture that can be read.") from None
    stem = re.sub(r"[^\w -]+", "_", Path(name.replace("\\", "/")).stem)[:80].strip(" ._") or "picture"
    folder.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        target = folder / (f"{stem}{ending}" if number == 1 else f"{stem}-{number}{ending}")
        try:
            with open(target, "xb") as file:
                file.write(data)
            return target
        except FileExistsError:
            if target.read_bytes() == data:
                return target  # dropped twice
            number += 1
