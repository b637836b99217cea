"""Drawing pictures from prompts with the base's parts, for the training's sample sheets and the benchmark."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from .diffusion import alphas
from .train_autoencoder import SCALING


def ddim_levels(steps: int) -> list[int]:
    """Time steps from noisy to clean, spaced evenly up to the last."""
    return [round(999 - i * 999 / steps) for i in range(steps)]


@torch.no_grad()
def ddim(predict: Callable[[Tensor, Tensor], Tensor], latents: Tensor, steps: int) -> Tensor:
    """Deterministic DDIM (Song et al. 2021); `predict` gives the noise in latents at a time step."""
    alpha = alphas()
    levels = ddim_levels(steps)
    for now, then in zip(levels, [*levels[1:], -1], strict=True):
        a, b = alpha[now], alpha[then] if then >= 0 else torch.tensor(1.0)
        noise = predict(latents, torch.full((len(latents),), now))
        clean = (latents - (1 - a).sqrt() * noise) / a.sqrt()
        latents = b.sqrt() * clean + (1 - b).sqrt() * noise
    return latents


def guided(unet, words: Tensor, nothing: Tensor, scale: float) -> Callable[[Tensor, Tensor], Tensor]:
    """A noise prediction pushed away from the empty prompt's by `scale`."""
    both = torch.cat([nothing.expand_as(words), words])

    def predict(latents: Tensor, times: Tensor) -> Tensor:
        without, with_words = unet(latents.repeat(2, 1, 1, 1), times.repeat(2), both).sample.chunk(2)
        return without + scale * (with_words - without)

    return predict


@torch.no_grad()
def draw_prompts(
    text_model,
    unet,
    autoencoder,
    tokens: Tensor,
    nothing: Tensor,
    seeds: list[int],
    steps: int = 25,
    scale: float = 5.0,
) -> np.ndarray:
    """uint8 pictures (prompts, 64, 64, 3); `nothing` holds the empty prompt's tokens, shape (1, 77)."""
    start = torch.cat([torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
    words, empty = text_model(tokens)[0], text_model(nothing)[0]
    latents = ddim(guided(unet, words, empty, scale), start, steps)
    pictures = autoencoder.decode(latents / SCALING).sample.clamp(-1, 1)
    return ((pictures + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
