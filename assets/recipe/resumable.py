"""A training run whose weights, optimizers, average and counters are one file, so that it goes on where it stopped."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from .files import load_if_there, save_atomically
from .optim import Average


class Resumable:
    """Base of both training runs; they set `model`, `average` and `optimizers` before they call `restore`."""

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
