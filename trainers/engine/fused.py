"""The optimizer's step inside the backward pass: each parameter is updated, and its gradient freed, as soon as the
gradient is complete, so that the gradients of a whole model are never in memory at once.

Weights may be kept in bfloat16: they are then updated in float32 and rounded at random, up with the probability that
keeps the mean, so that steps smaller than a bfloat16's spacing are not lost (Zamirai et al. 2020, arXiv:2010.06192).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from trainers.engine.optimizers import make_optimizer
from trainers.rng import generator
from trainers.spec import Job


def round_stochastically(value: Tensor, draw: Tensor) -> Tensor:
    """float32 to bfloat16, up or down with probabilities that keep the mean.

    Args:
        value: any shape, float32.
        draw: int32 in 0..65535, the same shape: added below the bits that bfloat16 keeps.
    """
    bits = value.contiguous().view(torch.int32)
    rounded = ((bits + draw) & -65536).view(torch.float32)
    return torch.where(torch.isfinite(value), rounded, value).to(torch.bfloat16)


class FusedOptimizer:
    """One optimizer for each parameter, stepped by a hook of the backward pass.

    Attributes:
        param_groups: one for each parameter, in order; their rates are read at the moment of the update.
        spoilt: a gradient was not finite since the last `zero_grad`; its parameter was left as it was.
    """

    def __init__(self, groups: Sequence[dict[str, Any]], job: Job) -> None:
        self.seed, self.steps, self.spoilt = job.seed, 0, False
        self.parameters = [parameter for group in groups for parameter in group["params"]]
        self.optimizers = [
            make_optimizer([{**group, "params": [parameter]}], job) for group in groups for parameter in group["params"]
        ]
        self.handles = [
            parameter.register_post_accumulate_grad_hook(self._hook(number))
            for number, parameter in enumerate(self.parameters)
        ]

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [optimizer.param_groups[0] for optimizer in self.optimizers]

    def _hook(self, number: int):
        def update(parameter: Tensor) -> None:
            if bool(torch.isfinite(parameter.grad).all()):
                self._update(number, parameter)
            else:
                self.spoilt = True
            parameter.grad = None

        return update

    @torch.no_grad()
    def _update(self, number: int, parameter: Tensor) -> None:
        if parameter.dtype == torch.float32:
            self.optimizers[number].step()
            return
        stored, gradient = parameter.data, parameter.grad
        parameter.grad = None
        parameter.data = stored.float()
        parameter.grad = gradient.float()
        self.optimizers[number].step()
        draw = torch.randint(
            0, 65536, stored.shape, dtype=torch.int32, generator=generator(self.seed, "rounding", self.steps, number)
        )
        result = round_stochastically(parameter.data, draw.to(stored.device))
        parameter.grad = None
        parameter.data = stored.copy_(result)

    def step(self) -> None:
        """Everything was done in the backward pass; counts the step."""
        self.steps += 1

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.spoilt = False
        for parameter in self.parameters:
            parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "optimizers": [optimizer.state_dict() for optimizer in self.optimizers]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]
        for parameter, optimizer, saved in zip(self.parameters, self.optimizers, state["optimizers"], strict=True):
            stored = parameter.data
            parameter.data = stored.float()  # torch gives a state its parameter's format, and ours is float32
            optimizer.load_state_dict(saved)
            parameter.data = stored
