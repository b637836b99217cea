"""DoRA: `W' = m * (W + dW) / |W + dW|`, the norm taken per output channel or per input channel.

Source: Liu et al. 2024. `dora_scale` of shape [out, 1] is the output axis (LyCORIS, PEFT), [1, in] the input axis
(sd-scripts, OneTrainer). `dW` may be any other kind: LyCORIS writes the same key beside LoHa and LoKr.

With c = m / |W + dW| the change of the output is, for the output axis,
`(c - 1) * (y - bias) + c * (dW x)`, and for the input axis `W((c - 1) * x) + dW(c * x)`: only the norm needs the
base's weight, and it is read once. A tag's weight w means `W + w (W' - W)`, as in A1111 and ComfyUI.
"""

from __future__ import annotations

import torch
from torch import Tensor

from extension.injection.kinds.base import Params, Term, need, wide
from extension.injection.layer import Layer


def norms(weight: Tensor, axis: int) -> Tensor:
    """Length of each output (`axis` 0) or input (`axis` 1) channel's slice of a weight."""
    return weight.transpose(0, axis).flatten(1).norm(dim=1)


def axis_of(magnitude: Tensor, layer: Layer) -> int:
    """0 for [out, 1, ...] or a flat [out] (PEFT), 1 for [1, in, ...]."""
    out, width = layer.shape[:2]
    if magnitude.dim() > 1 and magnitude.shape[0] == 1 and magnitude.numel() == width and width != 1:
        # PEFT keeps a convolution's magnitude as [1, out, 1, 1]; where out and in differ the length decides.
        return 1
    need(magnitude.numel() in (out, width), f"dora_scale has {magnitude.numel()} values")
    return 0 if magnitude.numel() == out else 1


class DoRA(Term):
    """Wraps the terms of `dW`; see the module's docstring for the formula."""

    needs_weight = True
    exact = frozenset({"m"})

    def __init__(self, inner: list[Term], magnitude: Tensor, axis: int) -> None:
        self.inner = inner
        self.axis = axis
        self.tensors = {"m": magnitude.reshape(-1)}
        for index, term in enumerate(inner):
            self.tensors.update({f"{index}.{name}": value for name, value in term.tensors.items()})
            term.tensors = {}
        self._factor: Tensor | None = None
        self._seen: tuple | None = None

    def _inner_tensors(self, t: Params, index: int) -> dict[str, Tensor]:
        return {name.partition(".")[2]: value for name, value in t.items() if name.startswith(f"{index}.")}

    def _change(self, weight: Tensor, t: Params) -> Tensor:
        total = torch.zeros_like(weight)
        for index, term in enumerate(self.inner):
            mine = {name: value.to(weight) for name, value in self._inner_tensors(t, index).items()}
            total = total + term.scale * term.delta_weight(weight, mine)
        return total

    def factor(self, weight: Tensor, t: Params) -> Tensor:
        """c = m / |W + dW|, one per channel of the axis."""
        length = norms(weight + self._change(weight, t), self.axis)
        return t["m"].to(weight) / (length + torch.finfo(weight.dtype).eps)

    def _known_factor(self, layer: Layer, x: Tensor, t: Params) -> Tensor:
        seen = layer.weight_version()
        if self._factor is None or self._seen != seen:
            with torch.no_grad():
                self._factor = self.factor(layer.weight(x), t)
            self._seen = seen
        if self._factor.device != x.device:
            self._factor = self._factor.to(x.device)
        return self._factor

    def apply(self, layer: Layer, x: Tensor, y: Tensor, t: Params) -> Tensor:
        c = self._known_factor(layer, x, t)
        shaped = layer.per_channel(c, y.dim() if self.axis == 0 else x.dim())
        rest, c = (shaped - 1).to(y.dtype), shaped.to(y.dtype)
        source = x if self.axis == 0 else x * c
        change = sum(
            term.scale * term.apply(layer, source, y, self._inner_tensors(t, index))
            for index, term in enumerate(self.inner)
        )
        if self.axis == 0:
            return rest * layer.without_bias(y) + c * change
        return layer.base(x * rest) + change

    def delta_weight(self, weight: Tensor, t: Params) -> Tensor:
        c = self.factor(weight, t)
        shape = (-1, *[1] * (weight.dim() - 1)) if self.axis == 0 else (1, -1, *[1] * (weight.dim() - 2))
        return (weight + self._change(weight, t)) * c.reshape(shape) - weight


def wrap(inner: list[Term], magnitude: Tensor, layer: Layer) -> list[Term]:
    """The terms of another kind, with this magnitude."""
    need(layer.kind in ("linear", "conv"), "a DoRA cannot sit on a norm layer")
    need(not any(term.needs_weight for term in inner), "dora_scale beside a kind that has no change of its own")
    return [DoRA(inner, wide(magnitude), axis_of(magnitude, layer))]
