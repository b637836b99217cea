"""The options a tag may carry (`key=value` between its colons). A new one is a line here and its use in `reading`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from . import values
from .tags import ADAPTER_KINDS

_AESTHETIC = frozenset({"aesthetic"})
_PLACED = ADAPTER_KINDS | _AESTHETIC | {"hypernet"}
"""Kinds that can act on some rows only; an embedding stands in the prompt's own text."""


@dataclass(frozen=True)
class Option:
    """How an option's value is read, and for which kinds of tags it means something (None: for all)."""

    read: Callable[[str], Any]
    kinds: frozenset[str] | None = None


OPTIONS: dict[str, Option] = {
    "te": Option(values.read_curve, ADAPTER_KINDS),
    "unet": Option(values.read_curve, ADAPTER_KINDS),
    "dyn": Option(values.read_rank, ADAPTER_KINDS),
    "start": Option(values.read_edge),
    "stop": Option(values.read_edge),
    "step": Option(values.read_window),
    "lbw": Option(values.read_blocks, ADAPTER_KINDS),
    "hr": Option(values.read_curve),
    "hrte": Option(values.read_curve, ADAPTER_KINDS),
    "hrunet": Option(values.read_curve, ADAPTER_KINDS),
    "for": Option(values.read_scope, _PLACED),
    "mask": Option(values.read_region, _PLACED),
    "steps": Option(values.read_gradient_steps, _AESTHETIC),
    "lr": Option(values.read_gradient_lr, _AESTHETIC),
    "slerp": Option(values.read_flag, _AESTHETIC),
    "live": Option(values.read_flag, ADAPTER_KINDS | {"ti", "hypernet"}),
}

OPTION_NAMES = frozenset(OPTIONS)

POSITIONAL = ("te", "unet", "dyn")
"""What stands after an adapter's name, in order; after another kind's name stands one weight."""
