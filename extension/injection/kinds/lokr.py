"""LoKr: `dW = kron(w1, w2) . alpha / r`.

Source: Edalati et al. 2022, "KronA"; key names of LyCORIS. A factor may itself be a product (`_a . _b`), `w2` may have
a Tucker core (`lokr_t2`). Where both factors are whole, the scale is 1. The Kronecker product is never formed: with
the input's channels seen as a matrix X, `kron(w1, w2) . vec(X)` is `w1 . X . w2^T`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from extension.injection.kinds.base import Kind, Mismatch, Params, Term, need, rank_scale, wide
from extension.injection.layer import Layer


def factors(params: Params, kernel: tuple[int, ...] = ()) -> tuple[Tensor, Tensor]:
    """`(w1 [a, b], w2 [c, d(, k, k)])` from whole or factored tensors."""
    p = {name: wide(value) for name, value in params.items()}
    w1 = p["lokr_w1"] if "lokr_w1" in p else p["lokr_w1_a"] @ p["lokr_w1_b"]
    if "lokr_w2" in p:
        w2 = p["lokr_w2"]
    elif "lokr_t2" in p:
        w2 = torch.einsum("ijhw,io,jc->ochw", p["lokr_t2"], p["lokr_w2_a"], p["lokr_w2_b"])
    else:
        w2 = p["lokr_w2_a"] @ p["lokr_w2_b"].flatten(1)
        if kernel and w2.dim() == 2:
            size = 1
            for side in kernel:
                size *= side
            w2 = w2.reshape(w2.shape[0], w2.shape[1] // size, *kernel)
    return w1, w2


class Kronecker(Term):
    """`kron(w1, w2)` applied without being formed; `w1` [a, b], `w2` [c, d] or [c, d, k, k]."""

    def __init__(self, w1: Tensor, w2: Tensor, scale: float) -> None:
        self.scale = scale
        self.tensors = {"w1": w1, "w2": w2}

    def apply(self, layer: Layer, x: Tensor, y: Tensor, t: Params) -> Tensor:
        w1, w2 = t["w1"], t["w2"]
        groups = w1.shape[1]
        if layer.kind == "linear":
            hidden = x.unflatten(-1, (groups, w2.shape[1])) @ w2.T
            return torch.einsum("ab,...bc->...ac", w1, hidden).flatten(-2)
        rows = x.shape[0]
        hidden = layer.linear_map(x.reshape(rows * groups, w2.shape[1], *x.shape[2:]), w2)
        hidden = hidden.reshape(rows, groups, *hidden.shape[1:])
        return torch.einsum("ab,nbchw->nachw", w1, hidden).flatten(1, 2)

    def delta_weight(self, weight: Tensor, t: Params) -> Tensor:
        w1 = t["w1"].reshape(*t["w1"].shape, *[1] * (t["w2"].dim() - 2))
        return torch.kron(w1, t["w2"].contiguous()).reshape(weight.shape)


def build(params: Params, layer: Layer) -> list[Term]:
    """The term of a LoKr."""
    need(layer.kind in ("linear", "conv"), "a LoKr cannot sit on a norm layer")
    for half in ("lokr_w1", "lokr_w2"):
        if half not in params and not (f"{half}_a" in params and f"{half}_b" in params):
            raise Mismatch(f"{half} is missing")
    w1, w2 = factors(params, layer.shape[2:])
    if layer.kind == "linear":
        w2 = w2.flatten(1) if w2.shape[2:].numel() == 1 else w2
    elif w2.dim() == 2:
        w2 = w2[:, :, None, None]
    made = (w1.shape[0] * w2.shape[0], w1.shape[1] * w2.shape[1], *w2.shape[2:])
    need(made == layer.shape, f"its change has the shape {'x'.join(map(str, made))}")
    whole = "lokr_w1" in params and "lokr_w2" in params
    rank = params["lokr_w1_b"].shape[0] if "lokr_w1_b" in params else params.get("lokr_w2_b", w2).shape[0]
    return [Kronecker(w1, w2, 1.0 if whole else rank_scale(params, rank))]


KIND = Kind("LoKr", frozenset({"lokr_w1", "lokr_w1_a", "lokr_w2", "lokr_w2_a"}), build)
