"""One call of the UNet: whom its rows are for, and regions as more rows whose predictions are kept inside a mask."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from extension.injection.contexts import ContextOf, with_contexts
from extension.injection.scales import Row
from extension.injection.state import Generation

RowsOf = Callable[[int], Sequence[Row] | None]
"""Rows of this call by their number, in order; None where they cannot be told apart."""

MaskOf = Callable[[int, int], Tensor]
"""(height, width) of the latents -> mask [height, width], 0..1."""


def take_rows(value: Any, index: Tensor, count: int) -> Any:
    """The rows `index` of every tensor in `value` that has `count` rows; lists, tuples and dicts are gone through."""
    if isinstance(value, Tensor):
        return value.index_select(0, index.to(value.device)) if value.dim() and value.shape[0] == count else value
    if isinstance(value, dict):
        return {name: take_rows(item, index, count) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(take_rows(item, index, count) for item in value)
    return value


def region_rows(rows: Sequence[Row], regions: Iterable[str], acts_on: Callable[[Row], bool]) -> list[tuple[int, Row]]:
    """The additional rows: (row they are copied from, whom they are for).

    Args:
        acts_on: whether something of a row's region acts on it.
    """
    made = []
    for name in regions:
        for number, row in enumerate(rows):
            inside = Row(row.picture, row.part, row.negative, name)
            if acts_on(inside):
                made.append((number, inside))
    return made


def composite(predictions: Tensor, sources: Sequence[tuple[int, Row]], masks: Mapping[str, Tensor]) -> Tensor:
    """Predictions [rows + additional, C, h, w] -> [rows, C, h, w].

    Each additional row's difference from the row it was copied from is added inside its mask, so where regions overlap
    what they do adds up, as everywhere.
    """
    rows = predictions.shape[0] - len(sources)
    result = predictions[:rows].clone()
    for place, (number, row) in enumerate(sources):
        mask = masks[row.region].to(result)
        result[number] += mask * (predictions[rows + place] - predictions[number])
    return result


class UNetCalls:
    """Watches the calls of a UNet during one generation; nothing of it stays after `remove`.

    Args:
        unet: an LDM or diffusers UNet; called with (x, timesteps, context, …) by place or by name.
        generation: gets the rows of every call before it runs.
        rows_of: see `RowsOf`.
        masks: the mask of every region that the generation's uses name.
        contexts: conditionings of regions' rows, where text encoders' parts act in them too; see `ContextOf`.
    """

    def __init__(
        self,
        unet: nn.Module,
        generation: Generation,
        rows_of: RowsOf,
        masks: Mapping[str, MaskOf] | None = None,
        contexts: ContextOf = lambda row: None,
    ) -> None:
        self._unet = weakref.ref(unet)
        self._generation = generation
        self._rows_of = rows_of
        self._masks = dict(masks or {})
        self._contexts = contexts
        self._handles: list[RemovableHandle] = []
        self._added: list[tuple[int, Row]] = []
        self._drawn: dict[tuple[str, int, int], Tensor] = {}

    def attach(self) -> None:
        """Puts the hooks on the UNet; does nothing when it is gone."""
        unet = self._unet()
        if unet is not None and not self._handles:
            self._handles = [
                unet.register_forward_pre_hook(self._before, with_kwargs=True),
                unet.register_forward_hook(self._after),
            ]

    def remove(self) -> None:
        """Takes the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def __enter__(self) -> UNetCalls:
        self.attach()
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def _before(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        x = args[0] if args else kwargs.get("x", kwargs.get("sample"))
        count = x.shape[0]
        rows = self._rows_of(count)
        if rows is not None and len(rows) != count:
            rows = None
        self._added = [] if rows is None else region_rows(rows, self._masks, self._generation.acts_inside)
        self._generation.set_rows(None if rows is None else [*rows, *(row for _, row in self._added)])
        if not self._added:
            return None
        index = torch.tensor([*range(count), *(number for number, _ in self._added)])
        found = {count + place: self._contexts(row) for place, (_, row) in enumerate(self._added)}
        contexts = {number: one for number, one in found.items() if one is not None}
        return with_contexts(take_rows(args, index, count), take_rows(kwargs, index, count), contexts)

    def _after(self, module: nn.Module, args: tuple, output: Any) -> Any:
        if not self._added:
            return None
        added, self._added = self._added, []
        if isinstance(output, Tensor):
            return self._composite(output, added)
        if isinstance(output, tuple):
            return (self._composite(output[0], added), *output[1:])
        output.sample = self._composite(output.sample, added)
        return output

    def _composite(self, predictions: Tensor, added: list[tuple[int, Row]]) -> Tensor:
        height, width = predictions.shape[-2:]
        masks = {row.region: self._mask(row.region, height, width) for _, row in added}
        return composite(predictions, added, masks)

    def _mask(self, name: str, height: int, width: int) -> Tensor:
        key = (name, height, width)
        if key not in self._drawn:
            self._drawn[key] = self._masks[name](height, width)
        return self._drawn[key]
