"""What a person drops on the page: copied, judged by its content, limited in size and number."""

from __future__ import annotations

import hashlib
import itertools
import re
import shutil
from pathlib import Path

from extension.pictures.captions import LONGEST
from extension.pictures.files import CAPTIONS, open_picture
from trainers.encodings import UnreadableText, decode_text
from trainers.errors import InputError

LARGEST = 64 * 2**20
MOST_FILES = 10_000
_ROOM = 2**30
_BEFORE_NUMBER = 50
"""Characters of a folder's name that are kept before a number, which would be cut off with the end of a long name."""
_ENDINGS = {
    "PNG": ".png", "JPEG": ".jpg", "MPO": ".jpg", "WEBP": ".webp", "BMP": ".bmp", "GIF": ".gif", "TIFF": ".tif",
    "AVIF": ".avif",
}  # fmt: skip
_PICTURES = (*_ENDINGS.values(), ".jpeg", ".tiff")
_LONGEST_STEM = 80
_PNG_END = b"\x00\x00\x00\x00IEND\xaeB`\x82"


def keep(folder: Path, name: str, data: bytes) -> Path:
    """Writes a picture or a caption file into a folder; never over another file.

    Raises:
        InputError: it is neither, or too large, or the folder or the disk is full. What counts is the content: a page
            called `.png` is refused, and a picture gets the ending of what it is.
    """
    shown = re.sub(r"\s+", " ", name)[:100]
    if len(data) > LARGEST:
        raise InputError(f"{shown}: is larger than {LARGEST // 2**20} MiB.")
    is_caption = name.lower().endswith(CAPTIONS)
    content, ending = (_caption(shown, data), Path(name).suffix.lower()) if is_caption else _picture(shown, data)
    folder.mkdir(parents=True, exist_ok=True)
    if sum(1 for _ in folder.iterdir()) >= MOST_FILES:
        raise InputError(f"{shown}: there are {MOST_FILES} files in this folder already; choose another name for it.")
    if shutil.disk_usage(folder).free < len(content) + _ROOM:
        raise InputError(f"{shown}: there is less than 1 GiB left on the disk; free some room first.")
    return _write(folder, stem_of(name), ending, content)


def free_folder(place: Path, name: str) -> str:
    """The first of `name`, `name-2`, … that is neither a file nor a folder with files in it."""
    names = itertools.chain([name], (f"{name[:_BEFORE_NUMBER]}-{number}" for number in itertools.count(2)))
    return next(each for each in names if _is_free(place / each))


def _is_free(path: Path) -> bool:
    return not path.exists() or (path.is_dir() and not any(path.iterdir()))


def stem_of(name: str) -> str:
    """The name without folders, ending and characters that a file name cannot hold; `a.b.png` keeps its dot as `_`.

    A picture and its caption have the same, and names that cannot be kept whole stay apart by a few digits.
    """
    base = re.split(r"[\\/]", name)[-1]
    is_caption = base.lower().endswith(CAPTIONS)
    whole = Path(base).stem
    if is_caption and Path(whole).suffix.lower() in _PICTURES:  # `a.png.txt` belongs to a.png
        whole = Path(whole).stem
    kept = re.sub(r"[^\w -]+", "_", whole).strip(" ._")
    if kept and len(kept) <= _LONGEST_STEM:
        return kept
    digits = hashlib.sha256(whole.encode("utf-8", "replace")).hexdigest()[:6]
    return f"{kept[:_LONGEST_STEM].strip(' ._') or 'picture'}-{digits}"


def _picture(shown: str, data: bytes) -> tuple[bytes, str]:
    with open_picture(data, shown) as picture:
        ending = _ENDINGS[picture.format or ""]
        try:
            picture.load()  # verify() alone lets half a file pass
        except Exception:  # Pillow raises many kinds on damaged files
            raise InputError(f"{shown}: is damaged or cut short.") from None
    if ending == ".png":  # what hides behind the end of the picture stays outside
        end = data.find(_PNG_END)
        data = data[: end + len(_PNG_END)] if end >= 0 else data
    return data, ending


def _caption(shown: str, data: bytes) -> bytes:
    try:
        text = decode_text(data)[0]
    except UnreadableText:
        raise InputError(f"{shown}: is no text.") from None
    if len(text) > LONGEST:
        raise InputError(f"{shown}: a caption has at most {LONGEST} characters.")
    return text.encode("utf-8")


def _write(folder: Path, stem: str, ending: str, data: bytes) -> Path:
    number = 1
    while True:
        target = folder / (f"{stem}{ending}" if number == 1 else f"{stem}-{number}{ending}")
        try:
            with open(target, "xb") as file:
                file.write(data)
            return target
        except FileExistsError:
            if target.read_bytes() == data or ending in CAPTIONS:
                return target  # dropped twice; a caption that is there is the person's own
            number += 1
