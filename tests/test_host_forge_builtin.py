"""Forge's own LoRA loader: letting go of the model, and loading what is handed to it."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType, SimpleNamespace

import pytest

from extension.prompt import parse_prompt

OURS = ("extension.hosts.a1111_builtin", "extension.hosts.forge_builtin")


class Objects:
    def __init__(self, unet, clip):
        self.unet, self.clip = unet, clip

    def shallow_copy(self):
        return Objects(self.unet, self.clip)


class Patcher:
    def __init__(self):
        self.refreshed = 0

    def refresh_loras(self):
        self.refreshed += 1


def engine():
    """A model on which Forge's loader has put adapters."""
    made = SimpleNamespace(current_lora_hash="[['a.safetensors', 1.0, 1.0, False]]")
    made.forge_objects_original = Objects(Patcher(), SimpleNamespace(patcher=Patcher()))
    made.forge_objects = Objects("patched unet", "patched clip")
    made.forge_objects_after_applying_lora = Objects("patched unet", "patched clip")
    return made


class Loader(ModuleType):
    """Forge's module of its loader: `networks`."""

    def __init__(self):
        super().__init__("networks")
        self.loaded_networks = [object()]
        self.available_networks = {"a": object()}
        self.available_network_aliases = {"alias": object()}
        self.calls = []

    def load_networks(self, names, te, unet, dyn):
        self.calls.append((names, te, unet, dyn))
        on_disk = SimpleNamespace(shorthash="1234567890")
        self.loaded_networks[:] = [SimpleNamespace(mentioned_name=name, network_on_disk=on_disk) for name in names]


@pytest.fixture
def host(monkeypatch):
    """Stand-ins for Forge's modules; ours are imported anew over them and forgotten afterwards."""
    modules = {name: ModuleType(f"modules.{name}") for name in ("extra_networks", "shared", "sd_models")}
    modules["extra_networks"].ExtraNetworkParams = SimpleNamespace
    modules["sd_models"].model_data = SimpleNamespace(sd_model=engine())
    package = ModuleType("modules")
    monkeypatch.setitem(sys.modules, "modules", package)
    for name, module in modules.items():
        setattr(package, name, module)
        monkeypatch.setitem(sys.modules, f"modules.{name}", module)
    for name in OURS:
        monkeypatch.delitem(sys.modules, name, raising=False)
    loader, theirs = Loader(), ModuleType("extra_networks_lora")
    theirs.networks = loader
    monkeypatch.setitem(sys.modules, "extra_networks_lora", theirs)
    network = type("ExtraNetworkLora", (), {"__module__": "extra_networks_lora"})()
    made = importlib.import_module("extension.hosts.forge_builtin").ForgeBuiltIn(network)
    yield SimpleNamespace(builtin=made, loader=loader, data=modules["sd_models"].model_data)
    for name in OURS:
        sys.modules.pop(name, None)


def tags(text):
    return list(parse_prompt(text, False).tags)


def test_letting_go_takes_its_patches_off(host):
    host.builtin.let_go()
    model = host.data.sd_model
    original = model.forge_objects_original
    for objects in (model.forge_objects, model.forge_objects_after_applying_lora):
        assert (objects.unet, objects.clip) == (original.unet, original.clip)
    assert model.current_lora_hash == "[]"
    assert original.unet.refreshed == original.clip.patcher.refreshed == 1  # the weights are put back at once
    assert host.loader.loaded_networks == [] and not host.builtin.busy


def test_letting_go_of_a_model_it_has_not_touched_changes_nothing(host):
    model = host.data.sd_model
    model.current_lora_hash = "[]"
    kept = model.forge_objects_after_applying_lora
    host.builtin.let_go()
    assert model.forge_objects_after_applying_lora is kept


def test_letting_go_before_any_model_is_loaded(host):
    host.data.sd_model = SimpleNamespace(cond_stage_model=None)
    host.builtin.let_go()
    host.data.sd_model = None
    host.builtin.let_go()


def test_what_is_handed_to_it(host):
    found = host.builtin.take(SimpleNamespace(steps=20), tags("<lora:a:0.5:0.8><lora:alias><lora:nowhere>"))
    assert host.loader.calls == [(["a", "alias"], [0.5, 1.0], [0.8, 1.0], [None, None])]
    assert found == {"a": "1234567890", "alias": "1234567890"} and host.builtin.busy


def test_without_a_loader_nothing_happens(host):
    nobody = type(host.builtin)(None)
    nobody.let_go()
    assert nobody.take(SimpleNamespace(steps=20), tags("<lora:a>")) == {}
