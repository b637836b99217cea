"""Forge's own LoRA loader: asked to let go, and handed what we cannot inject."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from extension.hosts.a1111_builtin import BuiltIn
from extension.prompt import Tag, effective


class ForgeBuiltIn(BuiltIn):
    """What was registered for `lora` before us, or nothing."""

    def let_go(self) -> None:
        """Has it take its patches off, and Forge put the weights back at once.

        Forge itself would do so when it next puts the model to work; but some kinds of adapters read the base's weights
        before that.
        """
        from modules import sd_models

        engine = sd_models.model_data.sd_model
        networks = self._networks
        if networks is not None:
            networks.loaded_networks.clear()
        if getattr(engine, "forge_objects_original", None) is None:
            return
        if engine.current_lora_hash != str([]):
            engine.current_lora_hash = str([])
            engine.forge_objects.unet = engine.forge_objects_original.unet
            engine.forge_objects.clip = engine.forge_objects_original.clip
            engine.forge_objects_after_applying_lora = engine.forge_objects.shallow_copy()
            for patcher in (engine.forge_objects.unet, engine.forge_objects.clip.patcher):
                if hasattr(patcher, "refresh_loras"):  # reForge has no such thing
                    patcher.refresh_loras()
        self.busy = False

    def take(self, p: Any, tags: Iterable[Tag]) -> dict[str, str]:
        """Has it load these tags, whole, and nothing else.

        Returns:
            `{name as typed: hash}` of those it found.
        """
        networks = self._networks
        if self.network is None or networks is None:
            return super().take(p, tags)
        self.busy = True
        tags = [tag for tag in tags if self.find(tag.name) is not None]
        weights = [effective(tag, 0, max(getattr(p, "steps", 1) or 1, 1)) for tag in tags]
        networks.load_networks(
            [tag.name.strip() for tag in tags],
            [weight.te for weight in weights],
            [weight.unet for weight in weights],
            [tag.dyn for tag in tags],
        )
        loaded = networks.loaded_networks
        return {one.mentioned_name: one.network_on_disk.shorthash for one in loaded if one.network_on_disk.shorthash}
