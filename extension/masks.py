"""From a region's name or mask file to numbers between 0 and 1 over the latents."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from extension.prompt import Region

_MOST_PIXELS = 64_000_000


def box_mask(region: Region, height: int, width: int) -> Tensor:
    """A named region over latents of this size, [height, width]."""
    left, top, right, bottom = region.cells(width, height)
    mask = torch.zeros(height, width)
    mask[top:bottom, left:right] = 1.0
    return mask


def file_mask(path: Path, height: int, width: int) -> Tensor:
    """A picture's brightness (of its transparency, where it has one) over latents of this size, [height, width].

    Raises:
        ValueError: it is no readable picture; the sentence names the file.
    """
    try:
        with Image.open(path) as picture:
            if picture.width * picture.height > _MOST_PIXELS:
                raise ValueError(f"{path}: this mask is too large; use one of at most 64 megapixels.")
            grey = picture.getchannel("A") if "A" in picture.getbands() else picture.convert("L")
            small = grey.resize((width, height), Image.Resampling.BOX)
    except (OSError, SyntaxError, Image.DecompressionBombError):
        raise ValueError(f"{path}: this mask is not a readable picture.") from None
    return torch.from_numpy(np.asarray(small, np.float32) / 255)


def mask_of(region: Region, find: Callable[[str], Path | None]) -> Callable[[int, int], Tensor]:
    """(height, width) -> mask of a region; `find` leads from a mask file's name to the listed file.

    A mask file is looked at here, so that a broken one is reported before anything is drawn.

    Raises:
        ValueError: see `file_mask`, or the file is not there any more.
    """
    if region.mask_file is None:
        return lambda height, width: box_mask(region, height, width)
    path = find(region.mask_file)
    if path is None:
        raise ValueError(f'There is no mask file "{region.mask_file}".')
    file_mask(path, 8, 8)
    return lambda height, width: file_mask(path, height, width)
