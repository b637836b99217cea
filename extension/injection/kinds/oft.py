"""Diagonal OFT and BOFT: the output channels are rotated, `W' = rescale * R W`.

Source: Qiu et al. 2023 (OFT), Liu et al. 2023 (BOFT), as LyCORIS stores them: `oft_blocks` [n, b, b] (OFT) or
[m, n, b, b] (BOFT); `alpha` times the number of outputs bounds the norm of the skew-symmetric Q; R is its Cayley
transform (I + Q)(I - Q)^-1. A rotation of the weight's rows is the same rotation of the output without its bias, so the
base's weight is not needed. A tag's weight w means `W + w (W' - W)`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from extension.injection.kinds.base import Kind, Params, Term, need, number, shape_text, wide
from extension.injection.layer import Layer


def cayley(blocks: Tensor, bound: float) -> Tensor:
    """Rotations [..., b, b] from free matrices; `bound` 0 means none."""
    q = blocks - blocks.transpose(-1, -2)
    if bound > 0:
        length = q.norm() + 1e-8
        if length > bound:
            q = q * (bound / length)
    eye = torch.eye(q.shape[-1], dtype=q.dtype, device=q.device)
    return (eye + q) @ torch.linalg.inv(eye - q)


def rotate_blocks(values: Tensor, rotation: Tensor) -> Tensor:
    """Channels in the last axis, in n blocks of b: each block times its R [n, b, b] (`sum_i v_i R_ij`)."""
    blocks = values.unflatten(-1, rotation.shape[:2])
    return torch.einsum("kij,...ki->...kj", rotation, blocks).flatten(-2)


def butterfly(values: Tensor, rotation: Tensor) -> Tensor:
    """Channels in the last axis through the m stages of BOFT; stage i mixes channels 2^i * b/2 apart."""
    half = rotation.shape[-1] // 2
    for stage, blocks in enumerate(rotation):
        stride = 2**stage * half
        mixed = values.unflatten(-1, (-1, 2, stride)).transpose(-2, -1).flatten(-3)
        mixed = torch.einsum("dij,...dj->...di", blocks, mixed.unflatten(-1, blocks.shape[:2])).flatten(-2)
        values = mixed.unflatten(-1, (-1, stride, 2)).transpose(-2, -1).flatten(-3)
    return values


class BlockChange(Term):
    """OFT: `change` [n, b, b] holds `rescale * R - I`, small numbers that every format keeps well."""

    def __init__(self, rotation: Tensor, rescale: Tensor | None) -> None:
        scaled = rotation
        if rescale is not None:
            scaled = rotation * rescale.reshape(rotation.shape[0], 1, -1)
        eye = torch.eye(rotation.shape[-1], dtype=rotation.dtype, device=rotation.device)
        self.tensors = {"change": scaled - eye}

    def apply(self, layer: Layer, x: Tensor, y: Tensor, t: Params) -> Tensor:
        plain = layer.without_bias(y)
        if layer.channel_axis == -1:
            return rotate_blocks(plain, t["change"])
        return rotate_blocks(plain.movedim(1, -1), t["change"]).movedim(-1, 1)

    def delta_weight(self, weight: Tensor, t: Params) -> Tensor:
        return rotate_blocks(weight.movedim(0, -1), t["change"]).movedim(-1, 0)


class Butterfly(Term):
    """BOFT: `r` [m, n, b, b] and one factor per output, or none. The difference of two near vectors: in float32."""

    exact = frozenset({"r", "rescale"})

    def __init__(self, rotation: Tensor, rescale: Tensor | None) -> None:
        self.tensors = {"r": rotation}
        if rescale is not None:
            self.tensors["rescale"] = rescale.reshape(-1)

    def _change(self, values: Tensor, t: Params) -> Tensor:
        values = values.to(t["r"].dtype)
        turned = butterfly(values, t["r"])
        return (turned * t["rescale"] if "rescale" in t else turned) - values

    def apply(self, layer: Layer, x: Tensor, y: Tensor, t: Params) -> Tensor:
        plain = layer.without_bias(y)
        if layer.channel_axis == -1:
            return self._change(plain, t).to(y.dtype)
        return self._change(plain.movedim(1, -1), t).movedim(-1, 1).to(y.dtype)

    def delta_weight(self, weight: Tensor, t: Params) -> Tensor:
        return self._change(weight.movedim(0, -1), t).movedim(-1, 0)


def rotations(params: Params, out: int) -> Tensor:
    """R of a site: from free blocks, or as older LyCORIS files keep it (`oft_diag`)."""
    if "oft_blocks" not in params:
        return wide(params["oft_diag"])
    bound = (number(params.get("alpha")) or 0.0) * out
    return cayley(wide(params["oft_blocks"]), bound)


def build(params: Params, layer: Layer) -> list[Term]:
    """The term of an OFT or BOFT."""
    need(layer.kind in ("linear", "conv"), "an OFT cannot sit on a norm layer")
    blocks, out = params.get("oft_blocks", params.get("oft_diag")), layer.shape[0]
    fits = (
        blocks.dim() in (3, 4) and blocks.shape[-1] == blocks.shape[-2] and blocks.shape[-3] * blocks.shape[-1] == out
    )
    if blocks.dim() == 4:
        fits = fits and blocks.shape[-1] % 2 == 0 and out % (2 ** (blocks.shape[0] - 1) * blocks.shape[-1]) == 0
    need(fits, f"oft_blocks is {shape_text(blocks)}, the layer gives {out} channels")
    rescale = params.get("rescale")
    need(rescale is None or rescale.numel() == out, "rescale does not fit the layer")
    form = Butterfly if blocks.dim() == 4 else BlockChange
    return [form(rotations(params, out), None if rescale is None else wide(rescale))]


KIND = Kind("OFT", frozenset({"oft_blocks", "oft_diag"}), build)
