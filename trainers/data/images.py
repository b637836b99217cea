"""Reading pictures of every common kind as 8-bit RGB, the right way up."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

from PIL import Image, ImageCms, ImageOps

from trainers.looks import eight_bit, is_deep

EXTENSIONS = frozenset(
    (".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif")
)
# Kinds that people have but Pillow alone does not read: said, instead of passed over in silence.
UNREAD_EXTENSIONS = frozenset(
    (".heic", ".heif", ".jxl", ".psd", ".svg", ".raw", ".cr2", ".nef", ".arw", ".dng", ".tga")
)

# Pillow warns of what is bounded below, and of damaged EXIF data, which is ignored. A filter for the whole process:
# pictures are read on several threads, and a temporary one would not hold there.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

MAX_PIXELS = 178_956_970  # Pillow's own bound against decompression bombs, about 13,000 x 13,000
MAX_BYTES = 1 << 30
MIN_SIDE = 8


class UnreadablePicture(Exception):
    """A picture that cannot be used; the message is the reason, without the file's name."""


def read_bytes(path: Path) -> bytes:
    """The file's content; `UnreadablePicture` when it cannot be opened, is empty or is larger than 1 GiB."""
    try:
        size = path.stat().st_size
        if size == 0:
            raise UnreadablePicture("the file is empty")
        if size > MAX_BYTES:
            raise UnreadablePicture(f"the file is larger than {MAX_BYTES >> 30} GiB")
        return path.read_bytes()
    except OSError as error:
        raise UnreadablePicture(f"the file cannot be opened ({error.strerror or error})") from None


def load_picture(path: Path) -> tuple[Image.Image, Image.Image | None]:
    """(RGB picture, its alpha channel as "L" or None); transparent parts are laid on white.

    EXIF orientation is applied; palettes, CMYK, greyscale and 16-bit pictures become 8-bit RGB; of an animation the
    first frame is taken. Raises `UnreadablePicture`.
    """
    return decode(read_bytes(path))


def decode(data: bytes) -> tuple[Image.Image, Image.Image | None]:
    """As `load_picture`, from the file's bytes; `MemoryError` passes through."""
    try:
        with Image.open(io.BytesIO(data)) as opened:
            _check_size(opened.size)
            opened.seek(0)
            opened.load()
            return _to_rgb(_upright(opened))
    except UnreadablePicture:
        raise
    except Image.DecompressionBombError:
        raise UnreadablePicture(_too_large("it")) from None
    except Image.UnidentifiedImageError:
        raise UnreadablePicture("it is not a picture that can be read, or it is damaged") from None
    except MemoryError:
        raise
    except Exception as error:  # damaged files make Pillow's decoders raise almost anything
        raise UnreadablePicture(f"it is damaged or cut short ({error})") from None


def _too_large(what: str) -> str:
    return f"{what} has more than {MAX_PIXELS // 1_000_000} million pixels"


def _check_size(size: tuple[int, int]) -> None:
    width, height = size
    if width * height > MAX_PIXELS:
        raise UnreadablePicture(_too_large(f"{width} x {height}"))
    if min(width, height) < MIN_SIDE:
        raise UnreadablePicture(f"{width} x {height} is too small; the shortest side has to be {MIN_SIDE} px")


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image) or image
    except Exception:  # damaged EXIF data (Pillow raises many kinds) says nothing about orientation
        return image


def _to_rgb(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    if is_deep(image):
        return eight_bit(image).convert("RGB"), None
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        alpha = rgba.getchannel("A")
        if alpha.getextrema() == (255, 255):
            return rgba.convert("RGB"), None
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB"), alpha
    return _managed_rgb(image), None


def _managed_rgb(image: Image.Image) -> Image.Image:
    """To RGB through the embedded colour profile where it matters (CMYK, wide-gamut photographs)."""
    profile = image.info.get("icc_profile")
    if profile and image.mode in ("RGB", "CMYK"):
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if image.mode == "CMYK" or "srgb" not in ImageCms.getProfileDescription(source).lower():
                return ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
        except (ImageCms.PyCMSError, ImportError, OSError, ValueError):
            return image.convert("RGB")  # a damaged profile, or a Pillow without colour management
    return image.convert("RGB")
