"""Whom the rows of each UNet call are for, in AUTOMATIC1111.

One step of the sampler lays all rows out in one order (every AND part of every picture, then the negative rows) and
then calls the UNet once for all, or in slices from front to back; with the negative rows left out at the end when the
host skips them. So a cursor over that order, set back at each step, knows the rows of every call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from extension.injection import Row


class Cursor:
    """Deals out the rows of one step from front to back."""

    def __init__(self) -> None:
        self._rows: tuple[Row, ...] | None = None
        self._next = 0

    def start(self, rows: Sequence[Row] | None) -> None:
        """The rows of the step that begins; None where they cannot be told apart."""
        self._rows = None if rows is None else tuple(rows)
        self._next = 0

    def take(self, count: int) -> tuple[Row, ...] | None:
        """The next `count` rows; None where the call does not fit what is left."""
        if not self._rows or count <= 0:
            return None
        whole = len(self._rows)
        if self._next >= whole:
            self._next = 0  # the same step again, as extensions do that draw a picture in tiles
        if count > whole and count % whole == 0 and self._next == 0:
            return self._rows * (count // whole)
        if self._next + count > whole:
            return None
        taken = self._rows[self._next : self._next + count]
        self._next += count
        return taken


def rows_of_step(parts: Sequence[int], rows: int) -> list[Row] | None:
    """The order of a step's rows.

    Args:
        parts: how many AND parts each picture has.
        rows: how many rows the host laid out; None is returned where that is another number.
    """
    positive = [Row(picture, part) for picture, count in enumerate(parts) for part in range(count)]
    negative = [Row(picture, negative=True) for picture in range(len(parts))]
    return [*positive, *negative] if len(positive) + len(negative) == rows else None


def encoded_of(params: Any) -> tuple[Any, Any]:
    """What the sampler draws with at this step: the host's encoded prompts, and its negative ones (None without)."""
    denoiser = params.denoiser
    given = getattr(getattr(denoiser, "sampler", None), "sampler_extra_args", {})
    return (given["cond"], given.get("uncond")) if given.get("cond") is not None else denoiser.p.get_conds()


def parts_per_picture(params: Any) -> list[int] | None:
    """From the host's step parameters: how many AND parts each picture of the batch has."""
    batch = getattr(encoded_of(params)[0], "batch", None)
    return None if batch is None else [len(parts) for parts in batch]


def rows_of_params(params: Any) -> list[Row] | None:
    """The order of this step's rows, None where it is not the usual one."""
    parts = parts_per_picture(params)
    return None if parts is None else rows_of_step(parts, params.x.shape[0])
