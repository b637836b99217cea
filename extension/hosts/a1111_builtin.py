"""The host's own LoRA loader: asked to let go, handed what we cannot inject, and given its place back."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterable
from typing import Any

import torch
from modules import extra_networks, shared

from extension.prompt import Tag, effective

log = logging.getLogger(__name__)
TAG_NAMES = ("lora", "lyco")


class BuiltIn:
    """What was registered for `lora` before us, or nothing.

    Attributes:
        network: the host's object.
        busy: it has adapters merged into the model's weights, or may have.
    """

    def __init__(self, network: Any) -> None:
        self.network = network
        self.busy = True

    @property
    def _networks(self) -> Any:
        """The module of the built-in loader; None for a loader of another extension."""
        module = inspect.getmodule(type(self.network))
        return getattr(module, "networks", None)

    def find(self, name: str) -> Any:
        """Its file of this name, None where it has none."""
        networks = self._networks
        if networks is None:
            return None
        name = name.strip()
        known = getattr(networks, "available_network_aliases", {})
        return known.get(name) or getattr(networks, "available_networks", {}).get(name)

    def take(self, p: Any, tags: Iterable[Tag]) -> dict[str, str]:
        """Has it load these tags, whole, and nothing else.

        Returns:
            `{name as typed: hash}` of those it found.
        """
        tags = list(tags)
        networks = self._networks
        if self.network is None:
            return {}
        self.busy = True
        if networks is None:
            self.network.activate(p, [extra_networks.ExtraNetworkParams(_items(tag)) for tag in tags])
            return {}
        weights = [effective(tag, 0, max(getattr(p, "steps", 1) or 1, 1)) for tag in tags]
        networks.load_networks(
            [tag.name.strip() for tag in tags],
            [weight.te for weight in weights],
            [weight.unet for weight in weights],
            [tag.dyn for tag in tags],
        )
        loaded = networks.loaded_networks
        return {one.mentioned_name: one.network_on_disk.shorthash for one in loaded if one.network_on_disk.shorthash}

    def finish(self, p: Any) -> None:
        """The generation it was handed something for ends."""
        if self.network is not None and self.busy:
            self.network.deactivate(p)

    def let_go(self) -> None:
        """Has it take everything off the model's weights, at once: it would do so only when each layer runs next."""
        if self.network is None or not self.busy:
            return
        networks = self._networks
        if networks is None:
            self.network.activate(_nobody(), [])
        else:
            networks.load_networks([])
            _undo_merges(networks)
        self.busy = False


def _items(tag: Tag) -> list[str]:
    return tag.source_text[1:-1].split(":")[1:]


def _nobody() -> Any:
    """A processing object for a call that is about no generation."""
    from modules import processing

    return processing.StableDiffusionProcessingTxt2Img()


def _undo_merges(networks: Any) -> None:
    from modules import sd_models

    held = [sd_models.model_data.sd_model, *sd_models.model_data.loaded_sd_models]
    with torch.no_grad():
        for sd_model in {id(one): one for one in held if one is not None}.values():
            for module in sd_model.modules():
                if getattr(module, "network_current_names", ()):
                    networks.network_apply_weights(module)


class Ownership:
    """Who answers to `<lora:…>` and `<lyco:…>`: ours while the setting says so, else whoever did before.

    Attributes:
        is_lent: whether a trainer uses the model's weights, which nobody may write to then: they stay ours meanwhile.
    """

    def __init__(self, ours: Any, builtin: Callable[[Any], BuiltIn] = BuiltIn) -> None:
        self.ours = ours
        self._made = builtin
        self.builtin = builtin(None)
        self._aliases: dict[str, Any] = {}
        self.is_lent: Callable[[], bool] = lambda: False

    @property
    def held(self) -> bool:
        """Whether tags come to us."""
        return extra_networks.extra_network_registry.get("lora") is self.ours

    def take(self) -> None:
        """Takes the names over; the one before lets go of the model first."""
        if self.held:
            return
        registry, aliases = extra_networks.extra_network_registry, extra_networks.extra_network_aliases
        self.builtin = self._made(registry.get("lora"))
        try:
            self.builtin.let_go()
        except Exception:
            # Another loader's failure must not leave the tags to nobody.
            log.exception("The WebUI's own LoRA loader could not be asked to let go.")
        self._aliases = {name: aliases[name] for name in TAG_NAMES if name in aliases}
        registry["lora"] = self.ours
        aliases["lyco"] = self.ours

    def give_back(self) -> None:
        """Puts back what was there; does nothing where the host has cleared its lists since."""
        if not self.held:
            return
        registry, aliases = extra_networks.extra_network_registry, extra_networks.extra_network_aliases
        if self.builtin.network is None:
            registry.pop("lora", None)
        else:
            self.builtin.let_go()
            registry["lora"] = self.builtin.network
        for name in TAG_NAMES:
            if aliases.get(name) is self.ours:
                aliases.pop(name)
        aliases.update(self._aliases)

    def sync(self) -> None:
        """Follows the setting and the command line flag."""
        wanted = bool(getattr(shared.opts, "athanor_lora", True)) or self.is_lent()
        if wanted and not getattr(shared.cmd_opts, "athanor_leave_lora", False):
            self.take()
        else:
            self.give_back()
