"""What every kind of adapter offers to the bank.

The mathematics of a kind are a few pure functions of tensors; its `Term` holds one site's tensors and applies them to
the layer's input and output. A term never holds or writes the base's weight.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from extension.injection.layer import Layer

Params = Mapping[str, Tensor]


class Mismatch(ValueError):
    """An adapter's tensors do not fit the layer; the message says how."""


class Term(ABC):
    """What one adapter adds to one layer's output at weight 1.

    Attributes:
        scale: a constant factor (alpha / rank) that is applied together with the tag's weight.
        tensors: the adapter's numbers, in the order and precision of the file; the bank keeps copies of them where and
            as the layer computes, and drops these.
        exact: names of small tensors whose rounding would show (factors near 1); they stay in float32.
        needs_weight: the formula reads the base's weight.
    """

    scale: float = 1.0
    exact: frozenset[str] = frozenset()
    needs_weight: bool = False
    tensors: dict[str, Tensor]

    @abstractmethod
    def apply(self, layer: Layer, x: Tensor, y: Tensor, t: Params) -> Tensor:
        """The change of the layer's output at scale 1.

        Args:
            x: the layer's input, in the output's number format.
            y: the frozen layer's output, not yet changed by any adapter.
            t: `tensors`, on the device and (but for `exact`) in the number format of `y`.
        """

    @abstractmethod
    def delta_weight(self, weight: Tensor, t: Params) -> Tensor:
        """The change of the weight at scale 1, shaped as `weight` (float32 or float64, as are the tensors in `t`)."""

    def delta_bias(self, t: Params) -> Tensor | None:
        """The change of the bias at scale 1, where the kind has one."""
        return None


class LowRank(Term):
    """`up . down`: rows of the shared bank. `down` is [r, in(, k, k)], `up` is [out, r]."""

    def __init__(self, down: Tensor, up: Tensor, scale: float = 1.0) -> None:
        self.scale = scale
        self.rank = down.shape[0]
        self.tensors = {"down": down, "up": up}

    def apply(self, layer: Layer, x: Tensor, y: Tensor, t: Params) -> Tensor:
        hidden = layer.linear_map(x, t["down"])
        if layer.kind == "linear":
            return hidden @ t["up"].T
        return torch.nn.functional.conv2d(hidden, t["up"][:, :, None, None])

    def delta_weight(self, weight: Tensor, t: Params) -> Tensor:
        return (t["up"] @ t["down"].flatten(1)).reshape(weight.shape)


class Dense(Term):
    """A whole change of the weight, kept in storage of its own, and optionally of the bias."""

    def __init__(self, weight: Tensor | None, bias: Tensor | None = None, scale: float = 1.0) -> None:
        self.scale = scale
        self.tensors = {name: value for name, value in (("weight", weight), ("bias", bias)) if value is not None}

    def apply(self, layer: Layer, x: Tensor, y: Tensor, t: Params) -> Tensor:
        change = layer.linear_map(x, t["weight"]) if "weight" in t else torch.zeros_like(y)
        if "bias" in t:
            change = change + layer.per_channel(t["bias"], change.dim())
        return change

    def delta_weight(self, weight: Tensor, t: Params) -> Tensor:
        return t["weight"].reshape(weight.shape) if "weight" in t else torch.zeros_like(weight)

    def delta_bias(self, t: Params) -> Tensor | None:
        return t.get("bias")


@dataclass(frozen=True)
class Kind:
    """One kind of adapter.

    Attributes:
        name: as FORMATS calls it.
        marks: parameter names of which one is enough to recognise the kind at a site.
        build: `(params of the site, layer) -> terms`; raises `Mismatch`.
    """

    name: str
    marks: frozenset[str]
    build: Callable[[Params, Layer], list[Term]]


def number(value: Tensor | float | None) -> float | None:
    """A scalar tensor as a Python number."""
    if value is None:
        return None
    return float(value.reshape(-1)[0]) if isinstance(value, Tensor) else float(value)


def rank_scale(params: Params, rank: int) -> float:
    """alpha / rank; a file without alpha, or with alpha 0 as some programs write it for "none", has alpha = rank."""
    alpha = number(params.get("alpha"))
    return 1.0 if not alpha else alpha / rank


def need(condition: bool, text: str) -> None:
    """Raises `Mismatch` unless `condition` holds."""
    if not condition:
        raise Mismatch(text)


def shape_text(tensor: Tensor) -> str:
    """`320x768` for messages."""
    return "x".join(map(str, tensor.shape))


def fit_weight(weight: Tensor, layer: Layer) -> Tensor:
    """`weight` in the layer's shape ([out, in] and [out, in, 1, 1] mean the same)."""
    expected = 1
    for side in layer.shape:
        expected *= side
    fits = weight.numel() == expected and weight.shape[0] == layer.shape[0]
    need(fits, f"its change has the shape {shape_text(weight)}, the layer {'x'.join(map(str, layer.shape))}")
    return weight.reshape(layer.shape)


def wide(tensor: Tensor) -> Tensor:
    """float32, or float64 if it is that already: for products that are formed once."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
