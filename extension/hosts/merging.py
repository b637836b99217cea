"""Whether merged copies of the layers may stand in for the bank, in any host."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from extension.hosts.base import LoadedModel
from extension.injection import Use

_ROOM = 2.0  # keep as much again as the copies take, for the host's own work


def may_merge(setting: str, needs_rows: bool, uses: Sequence[Use], model: LoadedModel) -> bool:
    """On a GPU with room for a second copy of the layers, where every use is constant and for every row.

    Args:
        setting: "Never" turns it off.
    """
    if setting == "Never" or needs_rows or not uses or not all(use.constant for use in uses):
        return False
    weight = next(model.parts["unet"].parameters(), None)
    if weight is None or weight.device.type != "cuda":
        return False
    taken = sum(one.numel() * one.element_size() for one in model.parts["unet"].parameters())
    free, _ = torch.cuda.mem_get_info(weight.device)
    return free > _ROOM * taken
