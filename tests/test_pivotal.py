"""Pivotal tuning: a word and a LoRA in one run, in one file or two, drawn with and resumed."""

from __future__ import annotations

import pytest
import torch
from embedded_helpers import apart, draw, make_studio
from training_helpers import events_of, header_of, job_values, killed_and_resumed, make_pictures

from extension.hosts.embedded.places import EMBEDDED_BASE
from extension.injection import AdapterFiles
from extension.injection.embeddings import bundled_embeddings, read_embedding
from extension.library import method_of
from trainers import running, spec
from trainers.errors import InputError
from trainers.formats.safetensors_io import load
from trainers.tools.inspect import describe


@pytest.fixture
def train(tiny_base, tmp_path):
    pictures = make_pictures(tmp_path / "pictures", 3, caption="a thing on a table")

    def run(family="sd1", folder="run", base=None, **changes):
        values = job_values(base or tiny_base(family), pictures, steps=3, save_dtype="fp32", learning_rate=0.01)
        values |= {"method": "pivotal", "name": "zog-style", "trigger": "zog", "vectors": 2, "embedding_lr": 0.05}
        return running.start(spec.parse({**values, **changes}), tmp_path / folder), tmp_path / folder

    return run


@pytest.mark.parametrize(("family", "names"), [("sd1", {"emb_params"}), ("sdxl", {"clip_l", "clip_g"})])
def test_one_file_holds_both(train, family, names):
    code, folder = train(family, validation_split=0.4)
    assert code == 0
    path = folder / "zog-style.safetensors"
    tensors = load(path)[0]
    assert {name for name in tensors if name.startswith("bundle_emb.")} == {f"bundle_emb.zog.{name}" for name in names}
    (word,) = bundled_embeddings(AdapterFiles().get(path))
    assert word.name == "zog" and word.count == 2
    said = header_of(path)["__metadata__"]
    assert said["modelspec.trigger_phrase"] == "zog" and said["ss_network_module"] == "networks.lora"
    assert describe(path)["embeddings"] == ["zog"] and not describe(path)["unknown_keys"]
    first, last = (events_of(folder, "validation")[i] for i in (0, -1))
    assert first["loss"] == first["base_loss"] == last["base_loss"] != last["loss"]


def test_two_files_say_the_same(train):
    code, one = train(folder="one")
    assert code == 0
    code, two = train(folder="two", bundle=False)
    assert code == 0
    bundled, lora = load(one / "zog-style.safetensors")[0], load(two / "zog-style.safetensors")[0]
    word = read_embedding(two / "zog.safetensors")
    assert torch.equal(bundled.pop("bundle_emb.zog.emb_params"), word.vectors["text_encoder"])
    assert set(bundled) == set(lora) and all(torch.equal(bundled[name], lora[name]) for name in lora)
    assert method_of(two / "zog.safetensors", "pivotal") == "textual_inversion"
    assert method_of(two / "zog-style.safetensors", "pivotal") == "lora"
    for folder in (one, two):  # going on from either keeps both parts
        still = {"learning_rate": 0.0, "text_encoder_lr": 0.0, "embedding_lr": 0.0, "norm_limit": 0}
        code, more = train(folder=f"more-{folder.name}", init_from=str(folder / "zog-style.safetensors"), **still)
        assert code == 0
        again = load(more / "zog-style.safetensors")[0]
        assert torch.equal(again["bundle_emb.zog.emb_params"], word.vectors["text_encoder"])
        assert all(torch.allclose(again[name], lora[name], atol=1e-6) for name in lora)


def test_resumes_to_the_same_bytes(train, monkeypatch):
    whole, broken = killed_and_resumed(train, monkeypatch, dropout=0.1)
    assert (whole / "zog-style.safetensors").read_bytes() == (broken / "zog-style.safetensors").read_bytes()


def test_the_embedded_host_draws_with_both(train, tmp_path):
    code, folder = train(base=EMBEDDED_BASE, embedding_lr=0.2, train_text_encoder=False)
    assert code == 0
    studio = make_studio(tmp_path / "data")
    (studio.places.adapters / "zog-style.safetensors").write_bytes((folder / "zog-style.safetensors").read_bytes())
    studio.rescan()
    drawn = {prompt: draw(studio, prompt).pictures[0].image for prompt in
             ("a zog", "a zog <lora:zog-style:0>", "a thing <lora:zog-style>", "a zog <lora:zog-style>")}  # fmt: skip
    plain, word, lora, both = drawn.values()
    assert apart(plain, word) > 0 and apart(both, word) > 0 and apart(both, lora) > 0


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"file_format": "diffusers"}, "file_format: diffusers has no place"),
        ({"trigger": "a.b"}, "trigger: a word with a dot"),
        ({"trigger": "", "bundle": False}, "trigger: with bundle off"),
        ({"optimizer": "prodigy", "embedding_lr": 0.5}, "embedding_lr: prodigy"),
        ({"concepts": ["a"]}, "concepts: there is no such option"),
    ],
)
def test_refusals(changes, sentence):
    base = {"method": "pivotal", "base": "b", "data": "d", "name": "zog", "trigger": "zog", "steps": 1}
    with pytest.raises(InputError, match=sentence):
        spec.parse({**base, **changes})
