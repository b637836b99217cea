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


def _matrix(tensor: Tensor) -> Tensor:
    """A view of the same memory, with all but the first side as one."""
    return tensor.view(len(tensor), -1) if tensor.ndim > 2 else tensor


class FusedOptimizer:
    """One optimizer for each parameter, stepped by a hook of the backward pass.

    Attributes:
        param_groups: one for each parameter, in order; their rates are read at the moment of the update.
        spoilt: a gradient was not finite since the last `zero_grad`; it counted as zero. Asking waits for the device.
    """

    def __init__(self, groups: Sequence[dict[str, Any]], job: Job) -> None:
        self.seed, self.steps = job.seed, 0
        self._spoilt: Tensor | None = None
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

    @property
    def spoilt(self) -> bool:
        return self._spoilt is not None and bool(self._spoilt)

    def _hook(self, number: int):
        @torch.no_grad()
        def update(parameter: Tensor) -> None:
            # Nothing here asks the device for a number: that would make it wait for every one of the parameters.
            wrong = ~torch.isfinite(parameter.grad).all()
            self._spoilt = wrong if self._spoilt is None else self._spoilt | wrong
            parameter.grad.masked_fill_(wrong, 0)
            self._update(number, parameter)

        return update

    def _update(self, number: int, parameter: Tensor) -> None:
        stored, gradient = parameter.data, parameter.grad
        parameter.grad = None
        # Convolutions as matrices: factored states are then sums over all but one side, not one for each kernel place.
        parameter.data = _matrix(stored).float()
        parameter.grad = gradient.reshape(parameter.shape).float()
        self.optimizers[number].step()
        if stored.dtype != torch.float32:
            draws = generator(self.seed, "rounding", self.steps, number, device=stored.device)
            shape, device = parameter.shape, stored.device
            draw = torch.randint(0, 65536, shape, dtype=torch.int32, device=device, generator=draws)
            stored.copy_(round_stochastically(parameter.data, draw).view_as(stored))
        parameter.grad = None
        parameter.data = stored

    def step(self) -> None:
        """Everything was done in the backward pass; counts the step."""
        self.steps += 1

    def zero_grad(self, set_to_none: bool = True) -> None:
        self._spoilt = None
        for parameter in self.parameters:
            parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "optimizers": [optimizer.state_dict() for optimizer in self.optimizers]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]
        for parameter, optimizer, saved in zip(self.parameters, self.optimizers, state["optimizers"], strict=True):
            stored = parameter.data
            parameter.data = _matrix(stored).float()  # torch gives a state its parameter's format, ours is float32
            optimizer.load_state_dict(saved)
            parameter.data = stored
