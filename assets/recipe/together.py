"""Training by several one-threaded processes that average their gradients.

On a busy machine this is much faster than one process with several threads, whose every operation waits for the
slowest one. Started by torchrun; without it everything here does nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn


def join() -> tuple[int, int]:
    """Meet the other processes; returns this one's number and how many there are."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    torch.set_num_threads(1 if count > 1 else torch.get_num_threads())
    if count > 1 and not dist.is_initialized():
        dist.init_process_group("gloo")
    return int(os.environ.get("RANK", "0")), count


def add_up(tensors: list[Tensor]) -> None:
    """Replace every tensor by its sum over the processes, in one exchange."""
    if not dist.is_initialized():
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.all_reduce(flat)
    start = 0
    for tensor in tensors:
        tensor.copy_(flat[start : start + tensor.numel()].view(tensor.shape))
        start += tensor.numel()


def average_gradients(parameters: Iterable[nn.Parameter], count: int) -> None:
    """Every process continues with the mean gradient."""
    if count > 1:
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        add_up(gradients)
        torch._foreach_div_(gradients, count)


def agree(value: float) -> float:
    """The first process's number, so that all of them stop at the same step."""
    if not dist.is_initialized():
        return value
    shared = torch.tensor([value], dtype=torch.float64)
    dist.broadcast(shared, 0)
    return float(shared)
