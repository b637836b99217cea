"""LoHa: `dW = (w1_a . w1_b) * (w2_a . w2_b) . alpha / r`, an elementwise product of two low-rank matrices.

Source: Hyeon-Woo et al. 2021, "FedPara"; key names of LyCORIS. With Tucker cores each half is
`sum_ij t[i, j, k, k] w_a[i, out] w_b[j, in]`.

The product of ranks r1 and r2 is itself a matrix of rank r1 . r2, whose rows are products of rows (Khatri-Rao). Where
that is cheaper than a whole matrix, it is put into the low-rank bank.
"""

from __future__ import annotations

import torch
from torch import Tensor

from extension.injection.kinds.base import (
    Dense,
    Kind,
    LowRank,
    Mismatch,
    Params,
    Term,
    fit_weight,
    need,
    rank_scale,
    wide,
)
from extension.injection.layer import Layer


def half(w_a: Tensor, w_b: Tensor, core: Tensor | None) -> Tensor:
    """One factor of the product: [out, in*k*k], or [out, in, k, k] with a Tucker core (then w_a is [r, out])."""
    if core is None:
        return w_a @ w_b.flatten(1)
    return torch.einsum("ijhw,io,jc->ochw", core, w_a, w_b)


def delta(params: Params) -> Tensor:
    """dW at alpha / r = 1, flat or with the kernel's axes."""
    wide_params = {name: wide(value) for name, value in params.items()}
    first = half(wide_params["hada_w1_a"], wide_params["hada_w1_b"], wide_params.get("hada_t1"))
    second = half(wide_params["hada_w2_a"], wide_params["hada_w2_b"], wide_params.get("hada_t2"))
    return first * second


def rows_of_product(params: Params) -> tuple[Tensor, Tensor]:
    """`(down [r1*r2, in*k*k], up [out, r1*r2])` with `up . down` = dW, for a LoHa without cores.

    Each row is scaled so that both factors have the same largest number: products of small numbers would leave
    float16's range otherwise.
    """
    w1_a, w1_b, w2_a, w2_b = (wide(params[name]) for name in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"))
    up = torch.einsum("or,os->ors", w1_a, w2_a).flatten(1)
    down = torch.einsum("ri,si->rsi", w1_b.flatten(1), w2_b.flatten(1)).flatten(0, 1)
    balance = (up.abs().amax(0) / down.abs().amax(1).clamp_min(1e-30)).clamp(1e-12, 1e12).sqrt()
    balance = torch.where(up.abs().amax(0) > 0, balance, torch.ones_like(balance))
    return down * balance[:, None], up / balance


def build(params: Params, layer: Layer) -> list[Term]:
    """Terms of a LoHa: rows of the bank where the product of the ranks is small, else a whole matrix."""
    missing = [name for name in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b") if name not in params]
    if missing:
        raise Mismatch(f"{', '.join(missing)} is missing")
    need(layer.kind in ("linear", "conv"), "a LoHa cannot sit on a norm layer")
    rank = params["hada_w1_b"].shape[0]
    scale = rank_scale(params, rank)
    if "hada_t1" not in params and "hada_t2" not in params:
        inputs = params["hada_w1_b"].flatten(1).shape[1]
        product = rank * params["hada_w2_b"].shape[0]
        if product * (layer.shape[0] + inputs) < layer.shape[0] * inputs:
            down, up = rows_of_product(params)
            need(up.shape[0] == layer.shape[0] and down.shape[1] == inputs, "its shape is not the layer's")
            fit_weight(torch.empty(layer.shape[0], inputs, device="meta"), layer)
            return [LowRank(down.reshape(product, *layer.shape[1:]), up, scale)]
    return [Dense(fit_weight(delta(params), layer), scale=scale)]


KIND = Kind("LoHa", frozenset({"hada_w1_a", "hada_w1_b"}), build)
