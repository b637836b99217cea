"""How the learning rate changes over a run: one pure function of the step."""

from __future__ import annotations

import math

KINDS = ("constant", "linear", "cosine", "cosine_restarts", "polynomial")

POLYNOMIAL_POWER = 2.0


def factor(step: int, total: int, kind: str, warmup: int = 0, cycles: int = 1) -> float:
    """What the learning rate is multiplied with at `step` (0 is the first) of `total` steps; from 0 to 1.

    During the first `warmup` steps it rises linearly, (step + 1)/(warmup + 1), so that no step is wasted on a rate of
    zero. Then, with p going from 0 to 1 over the rest:
    - "constant": 1;
    - "linear": 1 - p;
    - "cosine": half a cosine from 1 to 0;
    - "cosine_restarts": `cycles` such half cosines (https://arxiv.org/abs/1608.03983);
    - "polynomial": (1 - p)^2.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown schedule {kind!r}")
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if kind == "constant":
        return 1.0
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    if kind == "linear":
        return 1.0 - progress
    if kind == "polynomial":
        return (1.0 - progress) ** POLYNOMIAL_POWER
    if kind == "cosine_restarts" and progress < 1.0:
        progress = (progress * cycles) % 1.0
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def stepped(step: int, rates: list[tuple[float, float]], warmup: int = 0) -> float:
    """What the first of `rates` (see `options.rate_steps`) is multiplied with at `step`; the last one stays."""
    rate = next((rate for rate, until in rates if step < until), rates[-1][0])
    return rate / rates[0][0] * (min(1.0, (step + 1) / (warmup + 1)) if step < warmup else 1.0)


def kind_for(job) -> str:
    """The schedule a job really has: schedule-free keeps the rate constant after warm-up, the average of its weights
    takes the decay's place; Adafactor, Prodigy and the others use what the job says."""
    return "constant" if job.optimizer == "schedulefree" else job.schedule
