"""Whom the rows of each UNet call are for, in Forge.

Forge cuts one step into calls as memory allows, lays their rows out from back to front, and marks them only as positive
or negative. So each conditioning carries its own rows, as one more entry beside its tensors: Forge puts these entries
together in the order in which it stacks the tensors, and hands them to the UNet, where ours is taken out again.
"""

from __future__ import annotations

import weakref
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from extension.injection import Row
from extension.injection.hooks import Attachment

KEY = "athanor_rows"


class Rows:
    """The rows of one conditioning, in the shape of Forge's `Condition`."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = tuple(rows)

    def process_cond(self, batch_size: int, device: Any, **_: Any) -> Rows:
        """As many as the step has pictures; repeated as Forge repeats tensors that are shorter."""
        repeats = -(-batch_size // max(len(self.rows), 1))
        return Rows((self.rows * repeats)[:batch_size])

    def size(self) -> list[int]:
        """Their shape, from which reForge's backend estimates memory."""
        return [len(self.rows)]

    def can_concat(self, other: Any) -> bool:
        return isinstance(other, Rows)

    def concat(self, others: Sequence[Rows]) -> tuple[Row, ...]:
        return tuple(row for one in (self, *others) for row in one.rows)


def mark_rows(cond: Sequence[dict] | None, uncond: Sequence[dict] | None, pictures: int) -> None:
    """Puts each conditioning's rows beside its tensors: one positive entry per AND part, and the negative ones."""
    for part, entry in enumerate(cond or ()):
        entry["model_conds"][KEY] = Rows([Row(picture, part) for picture in range(pictures)])
    for entry in uncond or ():
        entry["model_conds"][KEY] = Rows([Row(picture, negative=True) for picture in range(pictures)])


def marking() -> Callable[..., tuple]:
    """A conditioning modifier of Forge's that marks the rows; it changes nothing else.

    A plain function, since Forge copies a patcher's options deeply: a bound method's object would be copied with it.
    """

    def modifier(model: Any, x: Any, timestep: Any, uncond: Any, cond: Any, *rest: Any) -> tuple:
        mark_rows(cond, uncond, x.shape[0])
        return (model, x, timestep, uncond, cond, *rest)

    return modifier


class BeforeCalls(Attachment):
    """Something that is looked at or changed before every call of a UNet."""

    def __init__(self, unet: nn.Module) -> None:
        self._unet = weakref.ref(unet)
        self._handle: RemovableHandle | None = None

    def attach(self) -> None:
        unet = self._unet()
        if unet is not None and self._handle is None:
            self._handle = unet.register_forward_pre_hook(self._before, with_kwargs=True)

    def remove(self) -> None:
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    @abstractmethod
    def _before(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        """The arguments to call with instead, or None."""


class RowReader(BeforeCalls):
    """Takes the rows out of every call of the UNet, before anything else looks at it.

    Attributes:
        rows: of the call at hand; None where they are not known.
    """

    def __init__(self, unet: nn.Module) -> None:
        super().__init__(unet)
        self.rows: tuple[Row, ...] | None = None

    def _before(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        self.rows = kwargs.get(KEY)
        if KEY not in kwargs:
            return None
        return args, {name: value for name, value in kwargs.items() if name != KEY}

    def rows_of(self, count: int) -> tuple[Row, ...] | None:
        """The rows of the call at hand."""
        return self.rows if self.rows is not None and len(self.rows) == count else None


class MarkedChunks(BeforeCalls):
    """Where a call has additional rows for regions, tells Forge's own patches of attention about them.

    They take a call apart by `cond_or_uncond`, one entry for each stretch of rows, so additional rows need entries.
    It goes on the UNet after what adds the rows.
    """

    def _before(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        x = args[0] if args else kwargs.get("x")
        options = kwargs.get("transformer_options") or {}
        marks = options.get("cond_or_uncond")
        mark = options.get("cond_mark")
        if not marks or mark is None or mark.shape[0] != x.shape[0]:
            return None
        pictures = options["sigmas"].shape[0] if "sigmas" in options else 1
        if x.shape[0] == pictures * len(marks) or x.shape[0] % pictures:
            return None
        kinds = [int(value) for value in mark[::pictures].tolist()]
        rows = range(x.shape[0])
        changed = {
            **options,
            "cond_or_uncond": kinds,
            "cond_indices": [row for row in rows if kinds[row // pictures] == 0],
            "uncond_indices": [row for row in rows if kinds[row // pictures] == 1],
        }
        return args, {**kwargs, "transformer_options": changed}
