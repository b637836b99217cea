"""A merged copy of single layers, in storage of its own, for weights that stay the same over a whole job.

`y = (W + s dW) x` by one product instead of three. The host's weight is read, never written; the copy costs the size
of the layers it stands for. Layers whose weight cannot be read, and fused attentions, stay with the bank.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from extension.injection.bank import SiteBank, SiteMix
from extension.injection.hooks import ForwardReplacement
from extension.injection.layer import Layer
from extension.injection.weights import StepWeights

if TYPE_CHECKING:
    from extension.injection.state import Generation


class MergedForward(ForwardReplacement):
    """Replaces the forward of one layer by its own operation with a merged weight and bias."""

    def __init__(self, layer: Layer, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__(layer.module)
        self._layer = layer
        self._held = (weight, bias)

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        weight, bias = self._for(x)
        if self._layer.kind in ("layer_norm", "group_norm"):
            return self._layer.normalised(x, weight, bias)
        return self._layer.linear_map(x, weight, bias)

    def _for(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        weight, bias = self._held
        # The host may move its model, and may keep weights in another number format than it computes in.
        dtype = weight.dtype if torch.is_autocast_enabled() else x.dtype
        if weight.device != x.device or weight.dtype != dtype:
            self._held = (weight.to(x.device, dtype), None if bias is None else bias.to(x.device, dtype))
        return self._held


def mergeable(layer: Layer) -> bool:
    """Whether a merged copy can stand for this layer: its weight is there as plain numbers of the compute format."""
    if layer.part is not None or not layer.readable():
        return False
    weight = layer.module.weight
    return weight.is_floating_point() and weight.dtype.itemsize > 1 and "forward" not in layer.module.__dict__


def merged_weight(bank: SiteBank, mix: SiteMix, weights: StepWeights) -> tuple[Tensor, Tensor | None]:
    """`(W + sum of s dW, bias + sum of s db)` in the base's number format; sums are formed in float32 or wider."""
    layer = bank.layer
    base = layer.module.weight.detach()
    wide = torch.float64 if base.dtype == torch.float64 else torch.float32
    weight = base.to(wide, copy=True)
    bias = None if layer.bias() is None else layer.bias().detach().to(wide, copy=True)
    original = base.to(wide)
    scale = mix.shared_rows(weights, base.device)
    if bank.rank and scale is not None:
        rows = bank.rows.on(base.device, base.dtype)
        down, up = rows["down"].to(wide).flatten(1), rows["up"].to(wide)
        up = up * (scale[:, None] if isinstance(scale, Tensor) else scale)
        weight += (up.T @ down).reshape(weight.shape)
    for (_, term, copies), parts in zip(bank.terms, mix.term_gains, strict=True):
        factor = sum(weights.shared[u] * gain for u, gain in parts)
        if factor:
            tensors = {name: tensor.to(wide) for name, tensor in copies.on(base.device, base.dtype).items()}
            weight += factor * term.delta_weight(original, tensors)
            change = term.delta_bias(tensors)
            if change is not None:
                change = factor * change.reshape(-1)
                bias = change if bias is None else bias + change.reshape(bias.shape)
    return weight.to(base.dtype), None if bias is None else bias.to(base.dtype)


def merged_copies(generation: Generation) -> dict[str, MergedForward]:
    """Merged copies by layer name, where all uses are constant and for everyone; not yet in place."""
    if not all(use.constant and use.whom.everyone for use in generation.uses):
        return {}
    copies: dict[str, MergedForward] = {}
    with torch.no_grad():
        for name, bank in generation.plan.banks.items():
            weights = generation.weights[bank.site.component]
            if any(weights.shared) and mergeable(bank.layer):
                copies[name] = MergedForward(bank.layer, *merged_weight(bank, generation.mixes[name], weights))
    return copies
