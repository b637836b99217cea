"""LoRA, LoCon and Tucker LoCon: `dW = up . (mid) . down . alpha / r`.

Source: Hu et al. 2021, "LoRA"; the convolution form and the Tucker core are those of LyCORIS and sd-scripts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from extension.injection.kinds.base import Kind, LowRank, Mismatch, Params, Term, need, rank_scale, shape_text, wide
from extension.injection.layer import Layer


def with_core(down: Tensor, mid: Tensor) -> Tensor:
    """Tucker: a 1x1 `down` [r, in] followed by the core `mid` [r, r, k, k] is one convolution [r, in, k, k]."""
    return torch.einsum("abhw,bi->aihw", wide(mid), wide(down).flatten(1))


def fit_down(down: Tensor, layer: Layer) -> Tensor:
    """`down` as [r, in] or [r, in, k, k], whichever way the file keeps it."""
    rank, width = down.shape[0], layer.shape[1]
    expected = (rank, *layer.shape[1:])
    if tuple(down.shape) == expected:
        return down
    size = width
    for side in layer.shape[2:]:
        size *= side
    need(down.numel() == rank * size, f"lora_down is {shape_text(down)}, the layer takes {width} channels")
    return down.reshape(expected)


def fit_up(up: Tensor, layer: Layer, rank: int) -> Tensor:
    """`up` as [out, r]."""
    need(
        up.dim() >= 2 and up.shape[0] == layer.shape[0] and up.numel() == layer.shape[0] * rank,
        f"lora_up is {shape_text(up)}, the layer gives {layer.shape[0]} channels at rank {rank}",
    )
    return up.reshape(layer.shape[0], rank)


def build(params: Params, layer: Layer) -> list[Term]:
    """Terms of a LoRA; see the module's docstring."""
    need(layer.kind in ("linear", "conv"), "a LoRA cannot sit on a norm layer")
    down, up = params.get("lora_down"), params.get("lora_up")
    if down is None or up is None:
        raise Mismatch("one half of the LoRA is missing")
    rank = down.shape[0]
    scale = rank_scale(params, rank)
    mid = params.get("lora_mid")
    if mid is not None:
        need(mid.dim() == 4 and mid.shape[:2] == (rank, rank), f"lora_mid is {shape_text(mid)} at rank {rank}")
        need(down.numel() == rank * layer.shape[1], f"lora_down is {shape_text(down)} beside a core")
        down = with_core(down, mid)
    return [LowRank(fit_down(down, layer), fit_up(up, layer, rank), scale)]


KIND = Kind("LoRA", frozenset({"lora_down", "lora_up"}), build)
