"""Weights over the run and the window in which a tag acts: pure data and the arithmetic on it.

Steps count from 0: `step` is the number of sampling steps already done, `total` how many the pass has. The first
pass and the hires pass each count their own.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property

_ROUNDING = 1e-6
"""A fraction such as 0.29 of 100 steps means step 29, although 0.29 * 100 is a little less in binary."""


@dataclass(frozen=True)
class Curve:
    """A weight over the run, piecewise linear between points and level outside them, as in loractl.

    Attributes:
        points: (position, weight) in rising order of position. At a position that stands twice the later one counts.
        in_steps: positions are step numbers; otherwise fractions, 0 the first step of the pass and 1 its last.
    """

    points: tuple[tuple[float, float], ...]
    in_steps: bool = False

    @classmethod
    def flat(cls, weight: float) -> Curve:
        """The same weight over the whole run."""
        return cls(((0.0, weight),))

    @cached_property
    def constant(self) -> float | None:
        """The weight where it never changes, else None."""
        first = self.points[0][1]
        return first if all(weight == first for _, weight in self.points) else None

    @cached_property
    def _positions(self) -> list[float]:
        return [position for position, _ in self.points]

    def at(self, step: float, total: int) -> float:
        """The weight after `step` of `total` steps; a run of a single step is at its beginning."""
        if self.constant is not None:
            return self.constant
        position = step if self.in_steps else step / max(total - 1, 1)
        after = bisect_right(self._positions, position)
        if after == 0:
            return self.points[0][1]
        if after == len(self.points):
            return self.points[-1][1]
        (left, start), (right, stop) = self.points[after - 1], self.points[after]
        return start + (stop - start) * ((position - left) / (right - left))


ONE = Curve.flat(1.0)


@dataclass(frozen=True)
class Edge:
    """One end of a window: a step number, or a fraction of the pass."""

    value: float
    in_steps: bool

    def step(self, total: int) -> int:
        """The edge as a number of steps done; fractions round down, as in A1111's `[a:b:0.5]`."""
        return int(self.value) if self.in_steps else math.floor(self.value * total + _ROUNDING)


@dataclass(frozen=True)
class Window:
    """The steps in which a tag acts: from `start` on, and no more once `stop` steps are done.

    So `step=5-15` acts on ten steps, and `stop=10` and `start=10` share a run of 20 without gap or overlap.
    """

    start: Edge | None = None
    stop: Edge | None = None

    def is_open(self, step: float, total: int) -> bool:
        """Whether the tag acts on the step that follows after `step` of `total` steps."""
        if self.start is not None and step < self.start.step(total):
            return False
        return self.stop is None or step < self.stop.step(total)


ALWAYS = Window()
