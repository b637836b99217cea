"""Random LoRAs for tests."""

from __future__ import annotations

import torch

from trainers.bases.loader import Base, module_for
from trainers.formats.adapters import Entries
from trainers.formats.sites import Site, component_sites


def lora_for(layer: torch.nn.Module, rank: int, alpha: float, generator: torch.Generator) -> dict:
    """One site's matrices, large enough to be seen in a picture."""
    if isinstance(layer, torch.nn.Conv2d):
        down = torch.randn(rank, layer.in_channels, *layer.kernel_size, generator=generator)
        up = torch.randn(layer.out_channels, rank, 1, 1, generator=generator)
    else:
        down = torch.randn(rank, layer.in_features, generator=generator)
        up = torch.randn(layer.out_features, rank, generator=generator)
    return {"lora_down": down * down[0].numel() ** -0.5, "lora_up": up * 0.3, "alpha": alpha}


def random_lora(base: Base, conv3x3: bool = False, mixed: bool = False, components=None, seed: int = 0) -> Entries:
    """A LoRA on every site of a loaded base; `mixed` gives some sites another rank and alpha."""
    generator = torch.Generator().manual_seed(seed)
    sites: list[Site] = [
        site for name in components or base.family.components for site in component_sites(base.family, name, conv3x3)
    ]
    entries = {}
    for index, site in enumerate(sites):
        rank, alpha = (6, 2.0) if mixed and index % 5 == 0 else (4, 2.0)
        entries[site.name] = lora_for(module_for(base, site), rank, alpha, generator)
    return entries


def apply(base: Base, entries: Entries, sites: dict[str, Site]) -> None:
    """Adds every entry's change to the layer's weight: the reference for all loaders (up . down . alpha / rank)."""
    for name, entry in entries.items():
        layer = module_for(base, sites[name])
        rank = entry["lora_down"].shape[0]
        change = entry["lora_up"].flatten(1) @ entry["lora_down"].flatten(1) * (entry["alpha"] / rank)
        layer.weight = torch.nn.Parameter(layer.weight + change.reshape(layer.weight.shape), requires_grad=False)
