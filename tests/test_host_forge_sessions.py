"""A generation in Forge from its prompts to its end, with stand-ins for Forge around a small real UNet."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType, SimpleNamespace

import a1111_stand_ins as stand_ins
import pytest
import torch
from injection_cases import models, parts_of, traces
from injection_helpers import write_adapter
from injection_models import random_lora, unet_inputs
from test_host_forge import Engine

from extension.hosts.base import LoadedModel
from extension.injection import Row
from extension.injection.embeddings import EmbeddingStore
from extension.listing import MASK_ENDINGS, Listing
from extension.wanted import Library

torch.set_num_threads(1)
assert models  # a fixture
ROWS = (Row(negative=True), Row())
"""As Forge lays them out: from back to front."""


@pytest.fixture
def forge(monkeypatch, models, tmp_path):
    """The sessions, the engine they inject into, and what they are drawn with."""
    host_modules = stand_ins.install(monkeypatch)
    package = sys.modules["modules"]
    for name in ("devices", "sd_hijack", "textual_inversion"):
        module = ModuleType(f"modules.{name}")
        setattr(package, name, module)
        monkeypatch.setitem(sys.modules, f"modules.{name}", module)
    package.textual_inversion.textual_inversion = ModuleType("modules.textual_inversion.textual_inversion")
    monkeypatch.delitem(sys.modules, "extension.hosts.forge_sessions", raising=False)
    sessions_module = importlib.import_module("extension.hosts.forge_sessions")
    tags = importlib.import_module("extension.hosts.a1111_tags")

    model = models("sd1")
    folder = tmp_path / "Lora"
    folder.mkdir()
    write_adapter(folder / "one.safetensors", random_lora(model, "sd1"))
    library = Library(Listing([folder]), EmbeddingStore([]), masks=Listing([tmp_path / "masks"], MASK_ENDINGS))
    library.rescan()
    engine = Engine("clip_l", flag="is_sd1")
    engine.forge_objects.unet.model.diffusion_model = model.unet
    host_modules.sd_models.model_data.sd_model = engine
    width = model.text_encoders[0].config.hidden_size
    loaded = LoadedModel("sd1", parts_of(model), widths={"text_encoder": width})
    host = SimpleNamespace(raw_model=lambda: engine, model=lambda: loaded, option=lambda key, default: default)
    sessions = sessions_module.ForgeSessions(host, library)
    yield SimpleNamespace(sessions=sessions, engine=engine, unet=model.unet, model=model, tags=tags, library=library)
    sessions.detach()
    for name in ("forge_sessions", *(n.rpartition(".")[2] for n in list(sys.modules) if ".hosts.a1111_" in n)):
        sys.modules.pop(f"extension.hosts.{name}", None)


def begin(forge, prompt, negative="b"):
    p = stand_ins.Processing([prompt], [negative])
    forge.tags.read_before_parsing(p, lambda one: forge.tags.read_batch(one, forge.library, "all"))
    p.parse_extra_network_prompts()
    forge.sessions.activate(p, p.extra_network_data.get("lora", []))
    return p


def draw(forge, rows=ROWS, **more):
    with torch.no_grad():
        return forge.unet(**unet_inputs(forge.model), **({"athanor_rows": rows} if rows else {}), **more).sample


def clean(forge):
    return not traces(forge.unet) and forge.engine.forge_objects_after_applying_lora.unet.modifiers == []


def test_a_tag_for_everyone_needs_no_rows(forge):
    plain = draw(forge, rows=None)
    p = begin(forge, "a <lora:one>")
    patcher = forge.engine.forge_objects_after_applying_lora.unet
    assert patcher.memory > 0 and patcher.modifiers == [] and not forge.unet._forward_pre_hooks
    drawn = draw(forge, rows=None)
    assert (drawn - plain).abs().amax((1, 2, 3)).min() > 1e-4
    forge.sessions.deactivate(p)
    assert clean(forge) and torch.equal(draw(forge, rows=None), plain)
    assert "Lora hashes" in p.extra_generation_params


def test_a_tag_in_the_negative_prompt_acts_on_its_rows(forge):
    plain = draw(forge, rows=None)
    p = begin(forge, "a", "b <lora:one>")
    assert len(forge.engine.forge_objects_after_applying_lora.unet.modifiers) == 1
    drawn = draw(forge)
    assert torch.equal(drawn[1], plain[1]) and (drawn[0] - plain[0]).abs().max() > 1e-4
    assert torch.equal(draw(forge, rows=None), plain)  # rows that are not known are nobody's
    forge.sessions.deactivate(p)
    assert clean(forge)


def test_two_halves_of_the_picture_are_the_whole(forge):
    p = begin(forge, "a <lora:one:te=0:unet=1>")
    whole = draw(forge, rows=None)
    forge.sessions.deactivate(p)
    p = begin(forge, "a <lora:one:te=0:unet=1:mask=left><lora:one:te=0:unet=1:mask=right>")
    assert torch.allclose(draw(forge), whole, atol=1e-4)
    forge.sessions.deactivate(p)
    assert clean(forge)


def test_a_generation_inside_another_has_its_own_tags(forge):
    plain = draw(forge, rows=None)
    outer = begin(forge, "a <lora:one:te=0:unet=1:mask=left>")
    drawn = draw(forge)
    inner = begin(forge, "a face")
    assert torch.equal(draw(forge, rows=None), plain)
    sampler = SimpleNamespace(sampler_extra_args={"cond": object(), "uncond": None})
    denoiser = SimpleNamespace(p=outer, step=0, steps=10, total_steps=10, sampler=sampler)
    forge.sessions.step(SimpleNamespace(denoiser=denoiser))
    assert torch.allclose(draw(forge), drawn)
    forge.sessions.deactivate(outer)
    assert clean(forge) and inner is not None


def test_what_a_layer_says_while_it_draws_is_in_the_infotext(forge):
    p = begin(forge, "a <lora:one>")
    forge.sessions._of(p).generation.note("A layer says something.")
    forge.sessions.drawn(p)
    assert p.extra_generation_params["Athanor"] == "A layer says something." and p.comments
    forge.sessions.deactivate(p)
    assert clean(forge)


def test_another_model_under_a_generation(forge):
    begin(forge, "a <lora:one>")
    forge.sessions.detach()
    assert clean(forge)
