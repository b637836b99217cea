"""torch's MultiheadAttention with adapters on its projections.

It multiplies its weights in one functional call, so no hook sees q, k, v or the input of `out_proj`. Where an adapter
sits on one of them, the instance's forward is replaced by the same computation with the projections apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Add = Callable[[Tensor, Tensor], Tensor]
"""(input of a projection, its output) -> its output with the adapters."""


def supported(attention: nn.MultiheadAttention) -> bool:
    """Whether `attend` computes the same as this module: one fused projection, no extra keys."""
    plain = attention.bias_k is None and attention.bias_v is None and not attention.add_zero_attn
    return plain and attention.in_proj_weight is not None


def _projected(attention: nn.MultiheadAttention, part: int, x: Tensor, add: Add | None) -> Tensor:
    width = attention.embed_dim
    rows = slice(part * width, (part + 1) * width)
    bias = attention.in_proj_bias
    y = F.linear(x, attention.in_proj_weight[rows], None if bias is None else bias[rows])
    return y if add is None else add(x, y)


def _heads(x: Tensor, heads: int, batch_first: bool) -> Tensor:
    """[B, heads, L, width / heads] from [B, L, C] or [L, B, C]."""
    if not batch_first:
        x = x.transpose(0, 1)
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _mask(mask: Tensor | None, padding: Tensor | None, q: Tensor) -> Tensor | None:
    """One additive mask. In this module's boolean masks, True means: do not look there."""

    def additive(m: Tensor) -> Tensor:
        if m.dtype != torch.bool:
            return m.to(q.dtype)
        return torch.zeros(m.shape, dtype=q.dtype, device=q.device).masked_fill(m, float("-inf"))

    total = None
    if mask is not None:
        total = additive(mask)
        if total.dim() == 3:
            total = total.unflatten(0, (-1, q.shape[1]))
    if padding is not None:
        keys = additive(padding)[:, None, None, :]
        total = keys if total is None else total + keys
    return total


def attend(
    attention: nn.MultiheadAttention,
    adds: dict[int | str, Add],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """What `MultiheadAttention.forward` computes, with `adds` at q, k, v (0, 1, 2) and "out". Inputs are batched."""
    first = attention.batch_first
    inputs = (query, key, value)
    parts = [_projected(attention, part, x, adds.get(part)) for part, x in enumerate(inputs)]
    q, k, v = (_heads(part, attention.num_heads, first) for part in parts)
    mask = _mask(attn_mask, key_padding_mask, q)
    dropout = attention.dropout if attention.training else 0.0
    weights = None
    if need_weights:
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        weights = (scores if mask is None else scores + mask).softmax(-1)
        mixed = F.dropout(weights, dropout) @ v
        weights = weights.mean(1) if average_attn_weights else weights
    else:
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
    mixed = mixed.transpose(1, 2).flatten(2)
    if not first:
        mixed = mixed.transpose(0, 1)
    mixed = mixed.contiguous()
    out = F.linear(mixed, attention.out_proj.weight, attention.out_proj.bias)
    if "out" in adds:
        out = adds["out"](mixed, out)
    return out, weights
