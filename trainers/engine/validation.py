"""The held-out loss: fixed noise and timesteps, so that a curve is smooth and comparable between runs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch

from trainers.engine import objectives
from trainers.rng import generator

AT_ONCE, AT_ONCE_CELLS = 8, 8 * 64 * 64  # pictures, and the cells of their latents (8 of 512 px)
SEED = 20240229  # the same for every run, whatever its own seed

Predict = Callable[[torch.Tensor, torch.Tensor, list[str], torch.Tensor], torch.Tensor]


def fixed_timesteps(key: str, draws: int, total: int = 1000) -> torch.Tensor:
    """One timestep in each of `draws` equal parts of 0..total-1, placed by the picture's key; [draws]."""
    shift = torch.rand(draws, generator=generator(SEED, "validation timesteps", key))
    return ((torch.arange(draws) + shift) / draws * total).long().clamp(0, total - 1)


def _cases(items: Sequence[Any], draws: int) -> list[tuple[Any, int, torch.Tensor]]:
    return [
        (item, int(t), torch.randn(item.latents.shape, generator=generator(SEED, "validation noise", item.key, draw)))
        for item in items
        for draw, t in enumerate(fixed_timesteps(item.key, draws))
    ]


@torch.no_grad()
def held_out_loss(
    items: Sequence[Any], predict: Predict, *, prediction: str, alphas_cumprod: torch.Tensor, draws: int
) -> float:
    """Mean squared error over `items` (latents [4, h, w], caption, key, time_ids), `draws` noises each, unweighted."""
    by_shape = defaultdict(list)
    for case in _cases(items, draws):
        by_shape[tuple(case[0].latents.shape)].append(case)
    total, count = 0.0, 0
    for shape, cases in by_shape.items():
        at_once = max(1, min(AT_ONCE, AT_ONCE_CELLS // (shape[1] * shape[2])))
        for start in range(0, len(cases), at_once):
            part = cases[start : start + at_once]
            latents = torch.stack([item.latents for item, _, _ in part])
            timesteps = torch.tensor([t for _, t, _ in part])
            noise = torch.stack([noise for _, _, noise in part])
            noisy = objectives.add_noise(latents, noise, timesteps, alphas_cumprod)
            wanted = objectives.target(prediction, latents, noise, timesteps, alphas_cumprod)
            time_ids = torch.stack([torch.as_tensor(item.time_ids) for item, _, _ in part])
            output = predict(noisy, timesteps, [item.caption for item, _, _ in part], time_ids)
            total += (output.float().cpu() - wanted).pow(2).mean(dim=(1, 2, 3)).sum().item()
            count += len(part)
    return total / max(count, 1)
