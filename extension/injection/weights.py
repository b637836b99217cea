"""How strongly each use of an adapter acts right now: one number per use, or one per use and row of the batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class StepWeights:
    """The weights of one moment for one component.

    Attributes:
        shared: one weight per use, where all rows agree.
        rows: one such tuple per row, where they differ; else None.
    """

    __slots__ = ("_tensors", "count", "rows", "shared")

    def __init__(self, values: Sequence[float] | Sequence[Sequence[float]], per_row: bool = False) -> None:
        self._tensors: dict[torch.device, Tensor] = {}
        self.rows: tuple[tuple[float, ...], ...] | None = None
        if not per_row:
            self.shared: tuple[float, ...] = tuple(values)
            self.count = 1
            return
        rows = tuple(tuple(row) for row in values)
        self.count = len(rows)
        self.shared = rows[0] if rows else ()
        if any(row != self.shared for row in rows):
            self.rows = rows

    def any(self, uses: Sequence[int]) -> bool:
        """Whether one of these uses acts on any row."""
        return any(row[use] != 0.0 for row in (self.rows or (self.shared,)) for use in uses)

    def tensor(self, device: torch.device) -> Tensor:
        """[rows, uses] in float32 (one row where all agree); moved to a device once."""
        if device not in self._tensors:
            self._tensors[device] = torch.tensor(self.rows or (self.shared,), dtype=torch.float32, device=device)
        return self._tensors[device]
