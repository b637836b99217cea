"""The options a tag may carry (`key=value` between its colons). A new one is a line here and its use in `reading`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from . import values


@dataclass(frozen=True)
class Option:
    """How an option's value is read, and whether it makes sense for adapters (lora, lyco) only."""

    read: Callable[[str], Any]
    adapters_only: bool = False


OPTIONS: dict[str, Option] = {
    "te": Option(values.read_curve, adapters_only=True),
    "unet": Option(values.read_curve, adapters_only=True),
    "dyn": Option(values.read_rank, adapters_only=True),
    "start": Option(values.read_edge),
    "stop": Option(values.read_edge),
    "step": Option(values.read_window),
    "lbw": Option(values.read_blocks, adapters_only=True),
    "hr": Option(values.read_curve),
    "hrte": Option(values.read_curve, adapters_only=True),
    "hrunet": Option(values.read_curve, adapters_only=True),
    "for": Option(values.read_scope),
    "mask": Option(values.read_region),
    "live": Option(values.read_flag, adapters_only=True),
}

OPTION_NAMES = frozenset(OPTIONS)

POSITIONAL = ("te", "unet", "dyn")
"""What stands after an adapter's name, in order; after another kind's name stands one weight."""
