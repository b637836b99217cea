"""A running average of the trained parameters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


class Ema:
    """Exponential moving average of a list of parameters, kept in float32.

    After n updates the decay is min(decay, (1 + n)/(10 + n)), so that the random start is soon forgotten
    (as in TensorFlow's ExponentialMovingAverage).
    """

    def __init__(self, parameters: Sequence[Tensor], decay: float) -> None:
        self.decay = float(decay)
        self.updates = 0
        self.averages = [p.detach().float().clone() for p in parameters]

    @torch.no_grad()
    def update(self, parameters: Sequence[Tensor]) -> None:
        """Moves the average towards the present values; call after each optimizer step."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        for average, parameter in zip(self.averages, parameters, strict=True):
            average.lerp_(parameter.detach().float(), 1.0 - decay)

    @contextmanager
    def averaged(self, parameters: Sequence[Tensor]) -> Iterator[None]:
        """The parameters hold the average inside the `with`, and exactly their former bits afterwards."""
        with replaced(parameters, self.averages):
            yield

    def state_dict(self) -> dict:
        """Numbers and tensors only, so that it can be read back with `torch.load(weights_only=True)`."""
        return {"decay": self.decay, "updates": self.updates, "averages": [a.clone() for a in self.averages]}

    def load_state_dict(self, state: dict) -> None:
        if len(state["averages"]) != len(self.averages):
            raise ValueError("this average belongs to another set of parameters")
        self.decay, self.updates = float(state["decay"]), int(state["updates"])
        for average, saved in zip(self.averages, state["averages"], strict=True):
            if average.shape != saved.shape:
                raise ValueError("this average belongs to another set of parameters")
            average.copy_(saved)


@contextmanager
def replaced(parameters: Sequence[Tensor], values: Sequence[Tensor]) -> Iterator[None]:
    """Puts `values` into the parameters and, at the end and on any error, their former bits back.

    Those wait in the processor's memory: a GPU that trains a whole model has no room for it twice.
    """
    former = [p.detach().to("cpu", copy=True) for p in parameters]
    try:
        with torch.no_grad():
            for parameter, value in zip(parameters, values, strict=True):
                parameter.copy_(value)
        yield
    finally:
        with torch.no_grad():
            for parameter, bits in zip(parameters, former, strict=True):
                parameter.copy_(bits)
