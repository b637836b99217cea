"""Numbers that are not finite: none of them reaches a state, a result or the events."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch


class Diverged(Exception):
    """The loss stayed non-finite after every way back was tried."""


def is_finite(trainable: Any) -> bool:
    """Whether all that is trained is finite."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in trainable.tensors().values())


def require_finite(trainable: Any) -> None:
    """Raises `Diverged` where something that is trained is not finite."""
    if not is_finite(trainable):
        raise Diverged("the trained weights are no longer finite")


def for_json(fields: Mapping[str, float]) -> dict[str, float | None]:
    """JSON has no NaN."""
    return {name: value if math.isfinite(value) else None for name, value in fields.items()}
