"""The noise a picture is mixed with while training.

Every sample has a generator of its own, so its noise does not depend on which process or batch it is in.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Generator, Tensor


def _draw(generator: Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, device=generator.device, dtype=torch.float32)


def pyramid_noise(noise: Tensor, generator: Generator, iterations: int, discount: float) -> Tensor:
    """Multi-resolution noise for one sample [C, H, W], scaled back to a standard deviation of 1.

    Adds, for i = 0, 1, ..., noise of size 1/r^i (r drawn from 2 to 4 each time) enlarged bilinearly and weighted with
    discount^i, until `iterations` or until a side is one element
    (https://wandb.ai/johnowhitaker/multires_noise/reports/Multi-Resolution-Noise-for-Diffusion-Model-Training--VmlldzozNjYyOTU2).
    """
    channels, height, width = noise.shape
    for level in range(iterations):
        shrink = 2.0 + 2.0 * torch.rand((), generator=generator, device=generator.device).item()
        rows, columns = (max(1, int(side / shrink**level)) for side in (height, width))
        coarse = _draw(generator, 1, channels, rows, columns)
        noise = noise + F.interpolate(coarse, size=(height, width), mode="bilinear")[0] * discount**level
        if rows == 1 or columns == 1:
            break
    return noise / noise.std()


def offset_noise(
    noise: Tensor, generator: Generator, offset: float, adaptive_offset: float = 0.0, latents: Tensor | None = None
) -> Tensor:
    """One sample's noise [C, H, W] plus one random number per channel, times the offset.

    Lets a model learn very dark and very bright pictures (https://www.crosslabs.org/blog/diffusion-with-offset-noise).
    `adaptive_offset` times the absolute mean of each latent channel is added to the offset, which stays above zero.
    """
    shift = _draw(generator, noise.shape[0], 1, 1)
    if not adaptive_offset:
        return noise + offset * shift
    if latents is None:
        raise ValueError("an adaptive noise offset needs the latents")
    mean = latents.to(device=noise.device, dtype=torch.float32).mean(dim=(1, 2), keepdim=True).abs()
    return noise + (offset + adaptive_offset * mean).clamp(min=0.0) * shift


def training_noise(
    shape: Sequence[int],
    generators: Sequence[Generator],
    *,
    offset: float = 0.0,
    adaptive_offset: float = 0.0,
    latents: Tensor | None = None,
    pyramid_iterations: int = 0,
    pyramid_discount: float = 0.3,
) -> Tensor:
    """Noise [B, C, H, W] in float32 on the generators' device; row b is drawn from `generators[b]` alone.

    `latents` (same shape) are read only for the adaptive offset. Pyramid noise comes before the offset, so that
    scaling it back to unit variance does not weaken the offset.
    """
    if len(generators) != shape[0]:
        raise ValueError(f"{shape[0]} samples need as many generators, got {len(generators)}")
    rows = []
    for index, generator in enumerate(generators):
        row = _draw(generator, *shape[1:])
        if pyramid_iterations:
            row = pyramid_noise(row, generator, pyramid_iterations, pyramid_discount)
        if offset or adaptive_offset:
            own = None if latents is None else latents[index]
            row = offset_noise(row, generator, offset, adaptive_offset, own)
        rows.append(row)
    return torch.stack(rows)


def perturb_input(noise: Tensor, generators: Sequence[Generator], strength: float) -> Tensor:
    """The noise to mix in, while the target stays `noise` [B, C, H, W]: noise + strength * fresh noise
    (https://arxiv.org/abs/2301.11706), against the gap between training and drawing."""
    if not strength:
        return noise
    fresh = training_noise(noise.shape, generators)
    return noise + strength * fresh.to(noise)
