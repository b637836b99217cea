"""The UNet, its noise schedule and its objective."""

from __future__ import annotations

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor

CHANNELS = (64, 128, 64, 64)  # most of the work is done at 8x8 and 4x4; LDM wants multiples of the first
STEPS = 1000


def build_unet(channels: tuple[int, ...] = CHANNELS) -> UNet2DConditionModel:
    """SD1.5's blocks at these widths: 8 heads, two residual blocks per level, text 64 wide."""
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=channels,
        cross_attention_dim=64,
        attention_head_dim=8,
        layers_per_block=2,
        norm_num_groups=32,
    )
    unet.set_attn_processor(AttnProcessor())  # on a CPU several times faster than the fused one for heads this narrow
    torch.nn.init.zeros_(unet.conv_out.weight)
    return unet


def alphas() -> Tensor:
    """Cumulative alphas of SD's scaled-linear schedule, shape (1000,)."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, STEPS, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, 0).float()


def noised(latents: Tensor, noise: Tensor, alpha: Tensor) -> Tensor:
    """Latents at a noise level; `alpha` has one number per picture."""
    alpha = alpha[:, None, None, None]
    return alpha.sqrt() * latents + (1 - alpha).sqrt() * noise


def soft_min_snr_weight(alpha: Tensor, knee: float = 0.5) -> Tensor:
    """Weight of an epsilon error by its signal-to-noise ratio (min-SNR, Hang et al. 2023, with a soft knee).

    A low knee, because what a drawing shows is decided where noise is strong, and there errors in epsilon are small.
    """
    snr = alpha / (1 - alpha)
    return 1 / (snr + knee)
