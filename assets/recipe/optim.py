"""Optimizer parts both training scripts share: Muon for matrices, AdamW for the rest, EMA, a schedule by time."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from .together import add_up, join


@torch.no_grad()
def orthogonalise(gradient: Tensor, steps: int = 5) -> Tensor:
    """The nearest orthogonal matrix, by a quintic Newton-Schulz iteration (Jordan et al., Muon, 2024)."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = gradient.bfloat16()
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return (x.T if tall else x).to(gradient.dtype)


class Muon(torch.optim.Optimizer):
    """Momentum whose direction is orthogonalised per weight matrix; kernels count as (out, in * height * width).

    Several processes share the orthogonalising: each does every `count`-th matrix and the results are added up.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float = 0.01, momentum: float = 0.95) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum})
        self.rank, self.count = join()

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            directions = [
                self.direction(parameter, group["momentum"], index % self.count == self.rank)
                for index, parameter in enumerate(parameters)
            ]
            add_up(directions)
            torch._foreach_add_(parameters, directions, alpha=-group["lr"])

    def direction(self, parameter: nn.Parameter, momentum: float, ours: bool) -> Tensor:
        """One parameter's step of size 1, or zeros where another process finds it."""
        state = self.state[parameter]
        buffer = state.setdefault("momentum", torch.zeros_like(parameter))
        buffer.lerp_(parameter.grad, 1 - momentum)
        if not ours:
            return torch.zeros_like(parameter)
        matrix = orthogonalise(parameter.grad.lerp(buffer, momentum).flatten(1))
        return (matrix * max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5).reshape(parameter.shape)


def split_parameters(named: Iterable[tuple[str, nn.Parameter]], edges: tuple[str, ...]) -> tuple[list, list]:
    """Inner matrices and kernels for Muon; vectors, embeddings and the layers named in `edges` for AdamW."""
    inner, rest = [], []
    for name, parameter in named:
        is_matrix = parameter.ndim >= 2 and not any(edge in name for edge in edges)
        (inner if is_matrix else rest).append(parameter)
    return inner, rest


def learning_rate(progress: float, steps: int, warmup: int) -> float:
    """Share of the peak rate: a short rise by steps, then a cosine over the time allowed (`progress` is 0..1)."""
    rise = min(1.0, (steps + 1) / warmup)
    return rise * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, progress)))))


def set_rate(optimizer: torch.optim.Optimizer, share: float) -> None:
    """Scale every group's own peak rate, which is remembered at the first call."""
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("peak", group["lr"]) * share


class Average:
    """An exponential moving average of a module's weights, quick to follow in the beginning."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module = copy.deepcopy(module).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        ours, theirs = list(self.module.parameters()), list(module.parameters())
        torch._foreach_lerp_(ours, theirs, 1 - decay)
