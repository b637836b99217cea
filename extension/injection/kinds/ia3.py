"""(IA)3: one learnt factor per channel, `W' = W * (1 + weight)` along the outputs or the inputs.

Source: Liu et al. 2022; stored by LyCORIS as `weight` (the factor minus 1) and `on_input`.
"""

from __future__ import annotations

from torch import Tensor

from extension.injection.kinds.base import Kind, Params, Term, need, number
from extension.injection.layer import Layer


class ChannelFactor(Term):
    """Multiplies the outputs (without bias) or the inputs of a layer."""

    def __init__(self, factor: Tensor, on_input: bool) -> None:
        self.on_input = on_input
        self.tensors = {"factor": factor.reshape(-1)}

    def apply(self, layer: Layer, x: Tensor, y: Tensor, t: Params) -> Tensor:
        if self.on_input:
            return layer.base(x * layer.per_channel(t["factor"], x.dim()))
        return layer.without_bias(y) * layer.per_channel(t["factor"], y.dim())

    def delta_weight(self, weight: Tensor, t: Params) -> Tensor:
        rest = [1] * (weight.dim() - 2)
        return weight * (t["factor"].reshape(1, -1, *rest) if self.on_input else t["factor"].reshape(-1, 1, *rest))


def build(params: Params, layer: Layer) -> list[Term]:
    """The term of an (IA)3."""
    need(layer.kind in ("linear", "conv"), "an (IA)3 cannot sit on a norm layer")
    on_input = bool(number(params.get("on_input")) or 0)
    channels = layer.shape[1 if on_input else 0]
    need(params["weight"].numel() == channels, f"its {params['weight'].numel()} factors are not the layer's {channels}")
    return [ChannelFactor(params["weight"], on_input)]


KIND = Kind("(IA)3", frozenset({"on_input"}), build)
