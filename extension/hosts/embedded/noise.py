"""Noise keyed by a picture's seed, so that a picture does not depend on what is drawn beside it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class PictureNoise:
    """One generator per picture, on the CPU whatever the device, so that a seed means the same everywhere.

    Attributes:
        generators: one per picture, as diffusers' schedulers take them.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device | str = "cpu") -> None:
        self.device = device
        self.generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]

    def next(self, shape: Sequence[int]) -> Tensor:
        """The next noise of every picture, [pictures, *shape]."""
        return torch.stack([torch.randn(tuple(shape), generator=one) for one in self.generators]).to(self.device)
