"""Forge's model, patcher and embedding stores, with small stand-ins for Forge's own."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from extension.hosts import a1111, forge, reforge
from extension.hosts.base import LoadedModel
from extension.hosts.forge import Forge, family_of, parts_of
from extension.hosts.forge_embeddings import FedStores, add_to_stores, remove_from_stores
from extension.hosts.forge_patcher import PatchedUnet
from extension.injection.embeddings import Embedding as OurEmbedding
from extension.tokens import tokenizer_of
from trainers.bases.tokenizer import write_vocabulary

torch.set_num_threads(1)


class Embedding:
    """Forge's object for an embedding: its store's module has one."""

    def __init__(self, vec, name, step=None):
        self.vec, self.name, self.step = vec, name, step


class Store:
    def __init__(self):
        self.word_embeddings = {}

    def register_embedding(self, made):
        self.word_embeddings[made.name] = made
        return made

    def register_embedding_by_name(self, made, name):
        if made is None:
            del self.word_embeddings[name]
        else:
            self.word_embeddings[name] = made


class Patcher:
    def __init__(self, model):
        self.model, self.modifiers, self.memory, self.clones = model, [], 0, 0

    def clone(self):
        self.clones += 1
        made = Patcher(self.model)
        made.modifiers, made.memory = list(self.modifiers), self.memory
        return made

    def add_conditioning_modifier(self, modifier):
        self.modifiers.append(modifier)

    def add_extra_preserved_memory_during_sampling(self, nbytes):
        self.memory += nbytes


class Objects:
    def __init__(self, unet, clip):
        self.unet, self.clip = unet, clip

    def shallow_copy(self):
        return Objects(self.unet, self.clip)


class Encoder(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.transformer = nn.Module()
        self.transformer.text_model = nn.Module()
        self.transformer.text_model.embeddings = nn.Module()
        self.transformer.text_model.embeddings.token_embedding = nn.Embedding(4, width)


class Engine:
    """A loaded model."""

    def __init__(self, *encoders, flag):
        model = SimpleNamespace(diffusion_model=nn.Linear(2, 2))
        clip = SimpleNamespace(cond_stage_model=SimpleNamespace(**{name: Encoder(8) for name in encoders}))
        self.forge_objects = Objects(Patcher(model), clip)
        self.forge_objects_after_applying_lora = self.forge_objects.shallow_copy()
        self.is_sd1 = self.is_sd2 = self.is_sdxl = self.is_sd3 = False
        setattr(self, flag, True)
        tokenizer = SimpleNamespace(get_vocab=lambda: {"cat</w>": 1})
        self.text_processing_engine = SimpleNamespace(embeddings=Store(), tokenizer=tokenizer)
        self.text_processing_engine_l = SimpleNamespace(embeddings=Store(), tokenizer=tokenizer)
        self.text_processing_engine_g = SimpleNamespace(embeddings=Store(), tokenizer=tokenizer)


@pytest.mark.parametrize(
    ("encoders", "flag", "family"),
    [
        (("clip_l",), "is_sd1", "sd1"),
        (("clip_h",), "is_sd2", "sd2"),
        (("clip_l", "clip_g"), "is_sdxl", "sdxl"),
        (("clip_g",), "is_sdxl", None),
        (("clip_l", "clip_g", "t5xxl"), "is_sd3", None),
    ],
)
def test_families(encoders, flag, family):
    engine = Engine(*encoders, flag=flag)
    assert family_of(engine) == family
    if family is not None:
        parts = parts_of(engine, family)
        assert list(parts) == ["unet", "text_encoder", "text_encoder_2"][: 1 + len(encoders)]
        assert parts["unet"] is engine.forge_objects.unet.model.diffusion_model
    engine.forge_objects.unet.model.diffusion_model.input_blocks = ()
    assert reforge.family_of(engine) == family


@pytest.mark.parametrize(
    ("present", "which"),
    [
        (("modules.processing", "modules_forge", "backend", "backend.diffusion_engine"), "forge"),
        (("modules.processing", "modules_forge", "ldm_patched"), "reforge"),
        (("modules.processing",), "a1111"),
        (("modules.processing", "modules.processing_diffusers"), None),  # SD.Next
        ((), None),
    ],
)
def test_which_webui_this_is(monkeypatch, present, which):
    def find_spec(name):
        parent = name.rpartition(".")[0]
        if parent not in ("", "modules", *present):
            raise ModuleNotFoundError(name)
        return object() if name in present else None

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    hosts = {"forge": forge, "reforge": reforge, "a1111": a1111}
    assert [name for name, host in hosts.items() if host.detect()] == ([which] if which else [])


def test_words_are_split_while_no_model_is_loaded(tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    folder = tmp_path / "shipped_words" / "below" / "tokenizer"
    folder.mkdir(parents=True)
    write_vocabulary(folder)
    monkeypatch.syspath_prepend(tmp_path)
    with monkeypatch.context() as early:  # the page asks before the host has loaded transformers, and again later
        early.delitem(sys.modules, "transformers", raising=False)
        assert forge.tokenizer_in("shipped_words", "below", "tokenizer") is None
    found = tokenizer_of(forge.tokenizer_in("shipped_words", "below", "tokenizer"))
    assert found("sks Basketball") == ["sks</w>", "basketball</w>"]
    assert forge.tokenizer_in("no_such_package", "tokenizer") is None
    assert forge.tokenizer_in("shipped_words", "elsewhere") is None


def test_model_without_making_forge_load_one(monkeypatch):
    host = Forge()
    engine = Engine("clip_l", flag="is_sd1")
    engine.sd_checkpoint_info = SimpleNamespace(filename="/models/a.safetensors")
    monkeypatch.setattr(Forge, "raw_model", lambda self: engine)
    monkeypatch.setattr(Forge, "option", lambda self, key, default: ["/vae/bright.safetensors"])
    loaded = host.model()
    assert loaded.vae == "bright.safetensors"
    assert loaded.family == "sd1" and loaded.checkpoint == Path("/models/a.safetensors")
    assert loaded.widths == {"text_encoder": 8} and "cat</w>" in loaded.vocabulary
    monkeypatch.setattr(Forge, "raw_model", lambda self: None)
    assert host.model() is None


def test_the_patcher_itself_is_never_changed():
    engine = Engine("clip_l", flag="is_sd1")
    before, own = engine.forge_objects_after_applying_lora, engine.forge_objects.unet
    patched = PatchedUnet(engine, 1000, mark=True)
    patched.attach()
    ours = engine.forge_objects_after_applying_lora.unet
    assert ours is not own and ours.memory == 1000 and len(ours.modifiers) == 1
    assert engine.forge_objects.unet is ours
    assert own.modifiers == [] and own.memory == 0
    patched.remove()
    assert engine.forge_objects_after_applying_lora is before and engine.forge_objects.unet is own


def test_rows_are_marked_only_where_they_have_to_be():
    engine = Engine("clip_l", flag="is_sd1")
    PatchedUnet(engine, 10, mark=False).attach()
    assert engine.forge_objects_after_applying_lora.unet.modifiers == []


def test_what_others_put_in_place_since_stays():
    engine = Engine("clip_l", flag="is_sd1")
    patched = PatchedUnet(engine, 0, mark=True)
    patched.attach()
    other = engine.forge_objects_after_applying_lora = engine.forge_objects.shallow_copy()
    patched.remove()
    assert engine.forge_objects_after_applying_lora is other


def test_a_patch_can_come_and_go_again():
    engine = Engine("clip_l", flag="is_sd1")
    before = engine.forge_objects_after_applying_lora
    patched = PatchedUnet(engine, 5, mark=True)
    for _ in range(2):
        patched.attach()
        patched.attach()
        assert engine.forge_objects_after_applying_lora.unet.memory == 5
        patched.remove()
    assert engine.forge_objects_after_applying_lora is before


def ours(name, width=8, stamp=1, parts=("text_encoder",)):
    return OurEmbedding(name, {part: torch.ones(2, width) for part in parts}, Path(f"{name}.pt"), (name, stamp, 1))


MODEL = LoadedModel("sd1", {}, widths={"text_encoder": 8})


def test_stores_hold_what_is_there_and_fits():
    engine, fed = Engine("clip_l", flag="is_sd1"), FedStores()
    store = engine.text_processing_engine.embeddings
    store.word_embeddings["theirs"] = object()
    assert fed.feed(engine, MODEL, [ours("a"), ours("wide", 9)])
    assert sorted(store.word_embeddings) == ["a", "theirs"]
    made = store.word_embeddings["a"]
    assert made.vectors == 2 and made.shape == 8 and torch.equal(made.vec, torch.ones(2, 8))
    assert not fed.feed(engine, MODEL, [ours("a"), ours("wide", 9)])
    assert fed.feed(engine, MODEL, [ours("a", stamp=2)]) and store.word_embeddings["a"] is not made
    assert fed.feed(engine, MODEL, []) and sorted(store.word_embeddings) == ["theirs"]


def test_another_model_is_fed_anew():
    fed, first, second = FedStores(), Engine("clip_l", flag="is_sd1"), Engine("clip_l", flag="is_sd1")
    assert fed.feed(first, MODEL, [ours("a")]) and fed.feed(second, MODEL, [ours("a")])
    assert "a" in second.text_processing_engine.embeddings.word_embeddings


def test_both_engines_of_sdxl_get_both_halves():
    engine, fed = Engine("clip_l", "clip_g", flag="is_sdxl"), FedStores()
    both = ("text_encoder", "text_encoder_2")
    model = LoadedModel("sdxl", {}, widths=dict.fromkeys(both, 8))
    fed.feed(engine, model, [ours("a", parts=both)])
    for text in (engine.text_processing_engine_l, engine.text_processing_engine_g):
        assert sorted(text.embeddings.word_embeddings["a"].vec) == ["clip_g", "clip_l"]


def test_embeddings_of_an_adapter_leave_with_it():
    engine = Engine("clip_l", flag="is_sd1")
    store = engine.text_processing_engine.embeddings
    known = store.register_embedding(Embedding(None, "known"))
    made = add_to_stores(engine, "sd1", [ours("known"), ours("new")])
    assert store.word_embeddings["known"] is known and "new" in store.word_embeddings
    remove_from_stores(made)
    assert store.word_embeddings == {"known": known}


def test_an_embedding_of_a_run_in_progress_takes_its_names_place_while_it_acts():
    engine = Engine("clip_l", flag="is_sd1")
    store = engine.text_processing_engine.embeddings
    known = store.register_embedding(Embedding(None, "known"))
    made = add_to_stores(engine, "sd1", [ours("known"), ours("new")], [ours("known"), ours("new")])
    assert store.word_embeddings["known"] is not known and "new" in store.word_embeddings
    remove_from_stores(made)
    assert store.word_embeddings == {"known": known}
