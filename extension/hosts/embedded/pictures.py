"""Pictures in and out: pixels, sizes, masks, previews."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter
from torch import Tensor

LATENT_MODES = {
    "Latent": {"mode": "bilinear", "antialias": False},
    "Latent (antialiased)": {"mode": "bilinear", "antialias": True},
    "Latent (bicubic)": {"mode": "bicubic", "antialias": False},
    "Latent (bicubic antialiased)": {"mode": "bicubic", "antialias": True},
    "Latent (nearest)": {"mode": "nearest"},
    "Latent (nearest-exact)": {"mode": "nearest-exact"},
}
PIXEL_MODES = {"None": None, "Lanczos": Image.Resampling.LANCZOS, "Nearest": Image.Resampling.NEAREST}


def to_image(pixels: Tensor) -> Image.Image:
    """A picture from pixels [3, H, W] in -1..1; what is not finite becomes grey."""
    values = torch.nan_to_num(pixels.float(), nan=0.0).clamp(-1, 1).add(1).mul(127.5).round()
    return Image.fromarray(values.byte().permute(1, 2, 0).cpu().numpy())


def to_pixels(picture: Image.Image) -> Tensor:
    """Pixels [3, H, W] in -1..1; what is transparent becomes white."""
    if "A" in picture.getbands() or "transparency" in picture.info:
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture.convert("RGBA"))
    values = torch.from_numpy(np.asarray(picture.convert("RGB"), np.float32).copy())
    return values.permute(2, 0, 1) / 127.5 - 1


def resized(picture: Image.Image, width: int, height: int, mode: int = 0) -> Image.Image:
    """A picture of this size.

    Args:
        mode: 0 stretches, 1 cuts the edges off, 2 fills what is missing with the edges' colours.
    """
    if picture.size == (width, height):
        return picture
    lanczos = Image.Resampling.LANCZOS
    if mode not in (1, 2):
        return picture.resize((width, height), lanczos)
    scales = (width / picture.width, height / picture.height)
    scale = max(scales) if mode == 1 else min(scales)
    fitted = picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))), lanczos)
    left, top = (width - fitted.width) // 2, (height - fitted.height) // 2
    if mode == 1:
        return fitted.crop((-left, -top, width - left, height - top))
    pad = ((top, height - fitted.height - top), (left, width - fitted.width - left))
    values = np.asarray(fitted.convert("RGB"))
    return Image.fromarray(np.pad(values, (*pad, (0, 0)), mode="edge"))


def mask_picture(mask: Image.Image, width: int, height: int, blur: int, invert: bool) -> Image.Image:
    """The mask in grey at the size of the picture, white where something new is drawn."""
    grey = mask.getchannel("A") if "A" in mask.getbands() and mask.getextrema()[-1][0] < 255 else mask.convert("L")
    grey = grey.resize((width, height), Image.Resampling.BILINEAR)
    if invert:
        grey = grey.point(lambda value: 255 - value)
    return grey.filter(ImageFilter.GaussianBlur(blur)) if blur else grey


def latent_mask(mask: Image.Image, width: int, height: int) -> Tensor:
    """The mask over the latents, [1, 1, h, w], 0 or 1."""
    small = mask.resize((width // 8, height // 8), Image.Resampling.BOX)
    return (torch.from_numpy(np.asarray(small, np.float32).copy()) > 127).float()[None, None]


def upscaled_latents(latents: Tensor, width: int, height: int, mode: str) -> Tensor:
    """Latents of another size (in pixels) by one of `LATENT_MODES`."""
    return F.interpolate(latents, size=(height // 8, width // 8), **LATENT_MODES[mode])


def side_by_side(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures of one size in a row, with a thin white gap."""
    width, height = pictures[0].size
    gap = max(1, width // 32)
    row = Image.new("RGB", (len(pictures) * (width + gap) - gap, height), "white")
    for number, picture in enumerate(pictures):
        row.paste(picture, (number * (width + gap), 0))
    return row
