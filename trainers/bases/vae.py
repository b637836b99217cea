"""Encoding pictures to latents and back."""

from __future__ import annotations

import math

import torch


class NonFiniteLatents(Exception):
    """The autoencoder gave NaN or infinity (fp16 overflows on some of them); run it in float32."""


def encode_moments(vae, pixels: torch.Tensor) -> torch.Tensor:
    """Mean and log-variance of the latents.

    Args:
        pixels: [B, 3, H, W] in [-1, 1], sides multiples of the autoencoder's factor.

    Returns:
        [B, 8, h, w] float32: mean in the first four channels, log-variance in the others (not yet scaled).

    Raises:
        NonFiniteLatents: a value is NaN or infinite.
    """
    weight = next(vae.parameters())
    with torch.no_grad():
        moments = vae.encode(pixels.to(device=weight.device, dtype=weight.dtype)).latent_dist.parameters.float()
    if not torch.isfinite(moments).all():
        raise NonFiniteLatents
    return moments


def decode(vae, latents: torch.Tensor, scale: float) -> torch.Tensor:
    """Pixels [B, 3, H, W] float32 in [-1, 1] from scaled latents [B, 4, h, w]."""
    weight = next(vae.parameters())
    with torch.no_grad():
        pixels = vae.decode((latents / scale).to(device=weight.device, dtype=weight.dtype)).sample
    return pixels.float().clamp(-1, 1)


def psnr(one: torch.Tensor, other: torch.Tensor) -> float:
    """Peak signal-to-noise ratio of pixels in [-1, 1], in decibels; -inf where a value is not finite."""
    error = (one.float().cpu() - other.float().cpu()).pow(2).mean().item()
    if not math.isfinite(error):
        return -math.inf
    return 10 * math.log10(4 / max(error, 1e-10))
