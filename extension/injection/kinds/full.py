"""A whole difference of the weight and bias (`diff`, `diff_b`), and of norm layers (`w_norm`, `b_norm`).

Source: LyCORIS "full" and "norm". A norm layer's change is `norm(x) * w_norm + b_norm`, with the layer's statistics.
"""

from __future__ import annotations

import torch
from torch import Tensor

from extension.injection.kinds.base import Dense, Kind, Params, Term, fit_weight, need
from extension.injection.layer import Layer


class NormChange(Term):
    """The change of a norm layer's weight and bias."""

    def __init__(self, weight: Tensor | None, bias: Tensor | None) -> None:
        self.tensors = {name: value for name, value in (("weight", weight), ("bias", bias)) if value is not None}

    def apply(self, layer: Layer, x: Tensor, y: Tensor, t: Params) -> Tensor:
        if "weight" in t:
            return layer.normalised(x, t["weight"], t.get("bias"))
        return torch.zeros_like(y) + layer.per_channel(t["bias"], y.dim())

    def delta_weight(self, weight: Tensor, t: Params) -> Tensor:
        return t["weight"].reshape(weight.shape) if "weight" in t else torch.zeros_like(weight)

    def delta_bias(self, t: Params) -> Tensor | None:
        return t.get("bias")


def build_norm(params: Params, layer: Layer) -> list[Term]:
    """The term of a changed norm layer."""
    need(layer.kind in ("layer_norm", "group_norm"), "w_norm belongs to a norm layer")
    size = torch.Size(layer.shape).numel()
    changes = []
    for name in ("w_norm", "b_norm"):
        value = params.get(name)
        need(value is None or value.numel() == size, f"{name} does not fit the layer's {size} channels")
        changes.append(None if value is None else value.reshape(layer.shape))
    return [NormChange(*changes)]


def build_full(params: Params, layer: Layer) -> list[Term]:
    """The term of a whole difference; on a norm layer it means the same as `w_norm`."""
    weight, bias = params.get("diff"), params.get("diff_b")
    if layer.kind in ("layer_norm", "group_norm"):
        renamed = {"w_norm": weight, "b_norm": bias}
        return build_norm({name: value for name, value in renamed.items() if value is not None}, layer)
    need(bias is None or bias.numel() == layer.shape[0], f"diff_b does not fit the layer's {layer.shape[0]} channels")
    return [Dense(None if weight is None else fit_weight(weight, layer), None if bias is None else bias.reshape(-1))]


FULL = Kind("full", frozenset({"diff", "diff_b"}), build_full)
NORM = Kind("norm", frozenset({"w_norm", "b_norm"}), build_norm)
