"""What a generation asks of Forge's patcher: marked rows, and memory kept free for the adapters."""

from __future__ import annotations

import weakref
from typing import Any

from extension.hosts.forge_rows import marking
from extension.injection.hooks import Attachment


class PatchedUnet(Attachment):
    """Puts a clone of the UNet's patcher in the place that Forge samples from.

    Adapters themselves are hooks on the modules, not patches: patches are merged into the weights (or, for quantized
    ones, formed and multiplied in full at every step), act on all rows alike, and cannot change over the steps.
    Forge's moving of modules, its streaming of weights and its quantized layers all leave hooks where they are.

    Args:
        engine: Forge's object of the loaded model.
        nbytes: memory that the adapters take where the UNet runs.
        mark: whether rows have to be told apart.
    """

    def __init__(self, engine: Any, nbytes: int, mark: bool) -> None:
        self._engine = weakref.ref(engine)
        self._nbytes, self._mark = nbytes, mark
        self._before: Any = None
        self._ours: Any = None

    def attach(self) -> None:
        engine = self._engine()
        if engine is None or self._ours is not None:
            return
        self._before = engine.forge_objects_after_applying_lora
        self._ours = self._before.shallow_copy()
        self._ours.unet = self._patched(self._before.unet)
        engine.forge_objects_after_applying_lora = self._ours
        # A refiner's model is put to work at once, without being set back to these objects first.
        if engine.forge_objects.unet is self._before.unet:
            engine.forge_objects = engine.forge_objects.shallow_copy()
            engine.forge_objects.unet = self._ours.unet

    def _patched(self, unet: Any) -> Any:
        clone = unet.clone()
        if self._mark:
            clone.add_conditioning_modifier(marking())
        clone.add_extra_preserved_memory_during_sampling(self._nbytes)
        return clone

    def remove(self) -> None:
        engine, ours, before = self._engine(), self._ours, self._before
        self._ours = self._before = None
        if engine is None or ours is None:
            return
        if engine.forge_objects_after_applying_lora is ours:
            engine.forge_objects_after_applying_lora = before
        if engine.forge_objects.unet is ours.unet:
            engine.forge_objects = engine.forge_objects.shallow_copy()
            engine.forge_objects.unet = before.unet
