"""GLoRA: `dW = (W . A + B) . alpha / r` with A and B of low rank.

Source: Chavan et al. 2023. LyCORIS 2 and later: `a1` [in, r], `a2` [r, in], `b1` [out, r], `b2` [r, in(, k, k)],
A = a1 . a2, B = b1 . b2. Earlier files, which A1111 reads, have the two swapped: A = a2 . a1, B = b2 . b1. A tall `b1`
tells them apart. B goes into the low-rank bank; W . A is the frozen layer's answer to A x.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import conv2d, linear

from extension.injection.kinds.base import Kind, LowRank, Mismatch, Params, Term, need, rank_scale
from extension.injection.kinds.lora import fit_down, fit_up, with_core
from extension.injection.layer import Layer


class BaseOfLowRank(Term):
    """The frozen layer's answer to `up . down . x`; `down` [r, in], `up` [in, r]."""

    def __init__(self, down: Tensor, up: Tensor, scale: float) -> None:
        self.scale = scale
        self.tensors = {"down": down.flatten(1), "up": up.flatten(1)}

    def apply(self, layer: Layer, x: Tensor, y: Tensor, t: Params) -> Tensor:
        if layer.kind == "linear":
            return layer.base(linear(linear(x, t["down"]), t["up"]))
        hidden = conv2d(x, t["down"][:, :, None, None])
        return layer.base(conv2d(hidden, t["up"][:, :, None, None]))

    def delta_weight(self, weight: Tensor, t: Params) -> Tensor:
        flat = weight.movedim(1, -1)
        return ((flat @ t["up"]) @ t["down"]).movedim(-1, 1)


def build(params: Params, layer: Layer) -> list[Term]:
    """The terms of a GLoRA: `W . A` and `B`."""
    need(layer.kind in ("linear", "conv"), "a GLoRA cannot sit on a norm layer")
    missing = [name for name in ("a1", "a2", "b1", "b2") if name not in params]
    if missing:
        raise Mismatch(f"{', '.join(missing)} is missing")
    a_up, a_down, b_up, b_down = (params[name] for name in ("a1", "a2", "b1", "b2"))
    if b_up.shape[0] < b_up.flatten(1).shape[1]:
        a_up, a_down, b_up, b_down = a_down, a_up, b_down, b_up
    rank, width = b_down.shape[0], layer.shape[1]
    fits = (
        a_up.shape[0] == width and a_down.flatten(1).shape[1] == width and a_up.flatten(1).shape[1] == a_down.shape[0]
    )
    need(fits, f"a1 and a2 do not fit the layer's {width} channels")
    if "bm" in params:
        b_down = with_core(b_down, params["bm"])
    scale = rank_scale(params, rank)
    rows = LowRank(fit_down(b_down, layer), fit_up(b_up, layer, rank), scale)
    return [rows, BaseOfLowRank(a_down, a_up, scale)]


KIND = Kind("GLoRA", frozenset({"a1", "a2", "b1", "b2"}), build)
