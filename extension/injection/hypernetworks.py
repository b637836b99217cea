"""Hypernetworks beside a live model: before the keys and values of every attention layer, x becomes x + m f(x).

The networks have A1111's files (`trainers.formats.hypernetworks`); several act one after the other, as there.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from extension.injection.adapter_file import Stamp, stamp
from extension.injection.hooks import Attachment
from extension.injection.scales import EVERYONE, WeightAt, Whom
from extension.injection.state import Generation
from trainers.errors import InputError
from trainers.formats import hypernetworks
from trainers.formats.hypernetworks import Hypernetwork

READERS = ("to_k", "to_v")
_ATTENTIONS = ("attn1", "attn2")


@dataclass(frozen=True)
class NetworkUse:
    """One hypernetwork, how strongly and for whom.

    Attributes:
        weight: see `extension.injection.scales.WeightAt`; asked for the component "unet".
    """

    network: Hypernetwork
    weight: WeightAt
    whom: Whom = EVERYONE


class NetworkFiles:
    """Hypernetworks by file, kept as long as the files stay the same."""

    def __init__(self, limit: int = 8) -> None:
        self._limit = limit
        self._known: dict[Stamp, Hypernetwork] = {}

    def get(self, path: Path) -> Hypernetwork:
        """The file's networks.

        Raises:
            InputError: missing, damaged, or no hypernetwork.
        """
        try:
            made = stamp(path)
        except OSError:
            raise InputError(f"{path}: there is no such file.") from None
        if made not in self._known:
            while len(self._known) >= self._limit:
                self._known.pop(next(iter(self._known)))
            self._known[made] = hypernetworks.read(path)
        return self._known[made]


class NetworkAttachment(Attachment):
    """The networks of one generation on one UNet (LDM or diffusers names)."""

    def __init__(self, unet: nn.Module, generation: Generation, uses: Sequence[NetworkUse]) -> None:
        self._unet, self._generation, self._uses = weakref.ref(unet), weakref.ref(generation), tuple(uses)
        self._handles: list[RemovableHandle] = []
        generation.network_uses = self._uses

    def attach(self) -> None:
        unet = self._unet()
        if unet is None or self._handles:
            return
        for name, module in unet.named_modules():
            parent, _, last = name.rpartition(".")
            if last in READERS and parent.endswith(_ATTENTIONS):
                self._handles.append(module.register_forward_pre_hook(self._hook(READERS.index(last))))

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _hook(self, side: int) -> Callable[[nn.Module, tuple], tuple | None]:
        def changed(module: nn.Module, args: tuple) -> tuple | None:
            x = args[0]
            for use in self._uses:
                pair = use.network.pairs.get(x.shape[-1])
                weight = self._weight(use, x) if pair is not None else 0.0
                if isinstance(weight, Tensor) or weight:
                    x = x + apply(pair[side], x) * weight
            return None if x is args[0] else (x, *args[1:])

        return changed

    def _weight(self, use: NetworkUse, x: Tensor) -> float | Tensor:
        """The weight of the moment: a number, or [rows of x, 1, 1] where rows differ."""
        generation = self._generation()
        if generation is None:
            return 0.0
        value = float(use.weight("unet", generation.step, generation.total, generation.hires))
        rows = generation.rows.get("unet")
        if use.whom.everyone or not value:
            return value
        if not rows or x.shape[0] % len(rows):
            return 0.0  # rows that cannot be told apart: better not at all than on the wrong ones
        values = [value if use.whom.includes(row) else 0.0 for row in rows]
        each = torch.tensor(values, dtype=x.dtype, device=x.device)
        return each.repeat_interleave(x.shape[0] // len(rows))[:, None, None]


def apply(network: nn.Sequential, x: Tensor) -> Tensor:
    """f(x) in the format and on the device of x; the network moves there once."""
    first = next(network.parameters())
    if first.device != x.device or first.dtype != x.dtype:
        network.to(device=x.device, dtype=x.dtype)
    return network(x)
