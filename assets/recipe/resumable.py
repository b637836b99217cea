"""A training run whose weights, optimizers, average and counters are one file, so that it goes on where it stopped."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from .files import load_if_there, save_atomically
from .optim import Average, set_rate


class Resumable:
    """Base of the training runs; they set `model`, `average` and `optimizers` before they call `restore`."""

    model: nn.Module
    average: Average
    optimizers: list[torch.optim.Optimizer]

    def __init__(self, checkpoint: Path) -> None:
        self.checkpoint = checkpoint
        self.step, self.seconds = 0, 0.0

    def restore(self) -> None:
        """Go on from the checkpoint, where there is one."""
        state = load_if_there(self.checkpoint)
        if state is None:
            return
        self.model.load_state_dict(state["model"])
        self.average.module.load_state_dict(state["average"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.seconds = state["step"], state["seconds"]

    def learn(self, parameters: Iterable[Tensor], share: float) -> None:
        """One step of every optimizer, at `share` of its rate, by the gradients that `parameters` have."""
        nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimizer in self.optimizers:
            set_rate(optimizer, share)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.average.update(self.model, self.step)

    def save(self) -> None:
        """Write the checkpoint, whole or not at all."""
        state = {
            "model": self.model.state_dict(),
            "average": self.average.module.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.step,
            "seconds": self.seconds,
        }
        save_atomically(state, self.checkpoint)
