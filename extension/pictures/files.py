"""Which files of a folder are pictures, and opening one without trusting it."""

from __future__ import annotations

import io
import os
import re
import uuid
import warnings
from pathlib import Path

from PIL import Image

from trainers.errors import InputError

ENDINGS = (".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif")
CAPTIONS = (".txt", ".caption")
MASK = "-masklabel.png"
# AVIF last: older Pillows do not know it, and stop there.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "AVIF")
MOST_PIXELS = 120_000_000
_NO_PICTURE = "is not a picture that can be read; save it as PNG or JPEG."
_TOO_LARGE = f"has more than {MOST_PIXELS // 1_000_000} million pixels; make it smaller first."
_SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap width and height

# What is bounded here needs no warning of Pillow's.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def is_picture(name: str) -> bool:
    """Whether a file of this name is shown as a picture."""
    lower = name.lower()
    return lower.endswith(ENDINGS) and not lower.startswith(".") and not lower.endswith(MASK)


def is_text(name: str) -> bool:
    """Whether a name can be written down; on some systems names are any bytes."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def natural(text: str) -> list[tuple[int, str]]:
    """Sort key under which `2.png` comes before `10.png`."""
    return [(int(part), "") if part.isdecimal() else (0, part.lower()) for part in re.split(r"(\d+)", text)]


def open_picture(source: Path | bytes, name: str = "") -> Image.Image:
    """An opened, not yet decoded picture of one of `FORMATS`, whatever its name says.

    Other decoders of Pillow (some start programs of their own) are never reached.

    Raises:
        InputError: it is none, or has more pixels than are ever decoded here.
    """
    shown = name or (source.name if isinstance(source, Path) else "this picture")
    try:
        opened = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS)
    except Image.DecompressionBombError:
        raise InputError(f"{shown[:100]}: {_TOO_LARGE}") from None
    except Exception:  # Pillow raises many kinds on what is no picture
        raise InputError(f"{shown[:100]}: {_NO_PICTURE}") from None
    width, height = opened.size
    if width * height > MOST_PIXELS:
        opened.close()
        raise InputError(f"{shown[:100]}: {_TOO_LARGE}")
    return opened


def upright_size(picture: Image.Image) -> tuple[int, int]:
    """Width and height as the picture is looked at; cameras note that it lies on its side."""
    try:
        sideways = picture.getexif().get(0x0112) in _SIDEWAYS
    except Exception:  # damaged EXIF data says nothing
        sideways = False
    return (picture.height, picture.width) if sideways else picture.size


def write_atomically(path: Path, data: bytes) -> None:
    """The whole file, or what was there before.

    Raises:
        InputError: the folder cannot be written.
    """
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"{path.name}: cannot be written ({error.strerror or error}).") from None
    finally:
        temporary.unlink(missing_ok=True)
