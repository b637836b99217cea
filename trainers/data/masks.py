"""Loss masks: white is trained, black is not."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from trainers.data.images import decode

MASK_SUFFIX = "-masklabel"


def mask_from_file(data: bytes, size: tuple[int, int]) -> Image.Image:
    """A mask file as "L" at the picture's size; where the file has an alpha channel, transparent counts as black."""
    picture, alpha = decode(data)
    mask = picture.convert("L") if alpha is None else alpha
    return mask if mask.size == size else mask.resize(size, Image.Resampling.BILINEAR)


def to_latent_size(mask: Image.Image, factor: int) -> torch.Tensor:
    """[1, h / factor, w / factor] in [0, 1]: the share of each latent cell that is white."""
    values = torch.from_numpy(np.asarray(mask.convert("L"), dtype=np.float32) / 255.0)[None, None]
    return torch.nn.functional.avg_pool2d(values, factor)[0]
