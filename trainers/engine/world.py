"""The processes that train together (`accelerate launch`), or the one process there usually is.

Every process computes its shard of one global batch; gradients are summed. No other state is shared, so the result is
that of one process with the whole batch, to rounding.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import timedelta

import torch

PATIENCE = timedelta(days=2)


class World:
    """Rank and size of this process's world, and the two things the processes tell each other."""

    def __init__(self, rank: int = 0, size: int = 1, device: torch.device | None = None) -> None:
        self.rank, self.size, self.device = rank, size, device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Replace each gradient by its sum over the processes, in one message."""
        if self.size == 1:
            return
        parameters = list(parameters)
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        flat = torch.cat([parameter.grad.flatten().float() for parameter in parameters])
        torch.distributed.all_reduce(flat)
        offset = 0
        for parameter in parameters:
            count = parameter.numel()
            parameter.grad.copy_(flat[offset : offset + count].view_as(parameter))
            offset += count

    def sum(self, *values: float) -> list[float]:
        """The sums over the processes."""
        if self.size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=self._message_device())
        torch.distributed.all_reduce(tensor)
        return tensor.tolist()

    def from_main(self, value: int) -> int:
        """The main process's value, in every process."""
        if self.size == 1:
            return value
        tensor = torch.tensor([value], device=self._message_device())
        torch.distributed.broadcast(tensor, src=0)
        return int(tensor.item())

    def wait(self) -> None:
        if self.size > 1:
            torch.distributed.barrier()

    def close(self) -> None:
        if self.size > 1:
            torch.distributed.destroy_process_group()

    def _message_device(self) -> torch.device:
        return self.device if self.device is not None else torch.device("cpu")


def join_world(cpu: bool) -> World:
    """The world that `accelerate launch` started this process in; a world of one otherwise."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return World()
    from accelerate import PartialState

    if not hasattr(torch.cpu, "set_device"):  # torch 2.1; accelerate asks it of every kind of device
        torch.cpu.set_device = lambda device: None
    # The others wait while the main process makes caches or measures, which may take longer than the usual minutes.
    state = PartialState(cpu=cpu or not torch.cuda.is_available(), timeout=PATIENCE)
    return World(state.process_index, state.num_processes, state.device)
