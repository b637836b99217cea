"""From uses of adapters to weights: for a component, a step, and each row of the batch.

A use is one tag's worth of one adapter, in plain numbers; `extension.injection.from_tags` makes uses from tags.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from extension.injection.adapter_file import Adapter
from extension.injection.weights import StepWeights
from trainers.formats.sites import Site

WeightAt = Callable[[str, float, int, bool], float]
"""(component, steps done, steps of the pass, hires pass) -> weight."""


@dataclass(frozen=True)
class Row:
    """Whom one row of the batch is drawn for.

    Attributes:
        picture: index in the batch of pictures.
        part: index of the AND part; for a negative row it does not matter.
        negative: it carries the negative prompt.
        region: the region this row's prediction is kept in, "" for the whole picture.
    """

    picture: int = 0
    part: int = 0
    negative: bool = False
    region: str = ""


@dataclass(frozen=True)
class Whom:
    """Which rows a use acts on; what is None does not matter.

    Attributes:
        negative: True for negative rows only, False for the others only.
        part: rows of this AND part only (never a negative row).
        picture: rows of this picture only.
        region: rows of this region only.
    """

    negative: bool | None = None
    part: int | None = None
    picture: int | None = None
    region: str | None = None

    def includes(self, row: Row) -> bool:
        """Whether a use for these acts on `row`."""
        if self.negative is not None and row.negative != self.negative:
            return False
        if self.part is not None and (row.negative or row.part != self.part):
            return False
        if self.picture is not None and row.picture != self.picture:
            return False
        return self.region is None or row.region == self.region

    @property
    def everyone(self) -> bool:
        return self == EVERYONE


EVERYONE = Whom()


@dataclass(frozen=True)
class Use:
    """One adapter, how strongly, where and for whom.

    Attributes:
        adapter: the file.
        weight: see `WeightAt`.
        factor: a factor per layer (block weights), or None for 1 everywhere.
        whom: which rows.
        ranks: use only the first so many ranks of its low-rank layers (`dyn`), None for all.
        constant: `weight` gives the same number at every step and in both passes.
        label: what to call it in reports (the tag as typed).
    """

    adapter: Adapter
    weight: WeightAt
    factor: Callable[[Site], float] | None = None
    whom: Whom = EVERYONE
    ranks: int | None = None
    constant: bool = False
    label: str = ""

    def factor_at(self, site: Site) -> float:
        """The factor of one layer."""
        return 1.0 if self.factor is None else float(self.factor(site))


def constant_use(adapter: Adapter, unet: float = 1.0, text: float | None = None, **more: object) -> Use:
    """A use with fixed weights; the text encoders' is the UNet's unless given."""
    text = unet if text is None else text

    def weight(component: str, step: float, total: int, hires: bool) -> float:
        return unet if component == "unet" else text

    return Use(adapter, weight, constant=True, **more)


def step_weights(
    uses: Sequence[Use], component: str, step: float, total: int, hires: bool, rows: Sequence[Row] | None
) -> StepWeights:
    """The weights of every use at one moment.

    Args:
        step: steps done; see `extension.prompt.curves`.
        rows: the rows of the batch in their order. None where the caller cannot tell them apart: then uses that are
            for some rows only do not act at all, rather than on the wrong ones.
    """
    values = [float(use.weight(component, step, total, hires)) for use in uses]
    if not rows:
        return StepWeights([value if use.whom.everyone else 0.0 for use, value in zip(uses, values, strict=True)])
    table = [[v if use.whom.includes(row) else 0.0 for use, v in zip(uses, values, strict=True)] for row in rows]
    return StepWeights(table, per_row=True)
