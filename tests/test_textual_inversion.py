"""Textual Inversion: what is trained, what stays, and that the file means the same elsewhere."""

from __future__ import annotations

import diffusers
import pytest
import torch
from tiny_models import tiny_modules
from training_helpers import events_of, header_of, job_values, killed_and_resumed, make_pictures

from extension.injection.embeddings import read_embedding
from trainers import running, spec
from trainers.bases.concepts import Concept, groups, replace_words
from trainers.bases.loader import load_base
from trainers.bases.text import chunk_tokens, encode_prompts
from trainers.formats.safetensors_io import load
from trainers.methods import textual_inversion


@pytest.fixture
def train(tiny_base, tmp_path):
    """`train("sd1", steps=2, …)` -> (exit code, run folder)."""
    pictures = make_pictures(tmp_path / "pictures", 3, caption="a thing on a table")

    def run(family="sd1", folder="run", **changes):
        values = {**job_values(tiny_base(family), pictures, steps=3, save_dtype="fp32"), **changes}
        for name in ("rank", "alpha"):
            values.pop(name, None)
        values |= {"method": "textual_inversion", "name": "zog", "verdict": False}
        return running.start(spec.parse(values), tmp_path / folder), tmp_path / folder

    return run


def test_words_are_found_longest_first_and_kept_together():
    short, long = Concept("a", (5,), (100, 101)), Concept("a b", (5, 6), (102,))
    assert replace_words([4, 5, 6, 5, 7], [short, long]) == [4, 102, 100, 101, 7]
    assert replace_words([1, 2], []) == [1, 2]
    chunks = chunk_tokens([1] * 74 + [100, 101, 2], together=groups([short]))
    assert chunks == [[1] * 74, [100, 101, 2]]


@pytest.mark.parametrize(
    ("family", "shapes"),
    [
        ("sd1", {"emb_params": "text_encoder"}),
        ("sd2", {"emb_params": "text_encoder"}),
        ("sdxl", {"clip_l": "text_encoder", "clip_g": "text_encoder_2"}),
    ],
)
def test_file_and_what_learned(train, family, shapes):
    code, folder = train(family, vectors=2, learning_rate=0.05, validation_split=0.4)
    assert code == 0
    tensors, metadata = load(folder / "zog.safetensors")
    embedding = read_embedding(folder / "zog.safetensors")
    assert set(tensors) == set(shapes) and set(embedding.vectors) == set(shapes.values()) and embedding.count == 2
    assert metadata["modelspec.architecture"].endswith("/textual-inversion")
    assert metadata["ss_output_name"] == "zog" and metadata["modelspec.trigger_phrase"] == "zog"
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())
    first = events_of(folder, "validation")[0]
    assert first["loss"] == first["base_loss"] != events_of(folder, "validation")[-1]["loss"]


def test_starts_from_words_and_respects_the_limit(train, tiny_base):
    code, folder = train(vectors=4, initial_text="red ball", learning_rate=0.0, norm_limit=0)
    assert code == 0
    base = load_base(tiny_base("sd1"), parts=("text",))
    rows = base.text_encoders[0].get_input_embeddings().weight
    red, ball = textual_inversion.words_of(base, "red ball")
    saved = load(folder / "zog.safetensors")[0]["emb_params"]
    torch.testing.assert_close(saved, rows[[red, red, ball, ball]].float())
    code, folder = train(folder="limited", vectors=2, learning_rate=0.5, norm_limit=1.5)
    lengths = load(folder / "zog.safetensors")[0]["emb_params"].norm(dim=1)
    assert code == 0 and (lengths <= 1.5 * rows.float().norm(dim=1).mean() * 1.0001).all()


def test_nothing_else_changes_and_the_word_acts_in_any_case(tiny_base):
    base = load_base(tiny_base("sd1"), parts=("text",))
    before = {name: tensor.clone() for name, tensor in base.text_encoders[0].state_dict().items()}
    plain = encode_prompts(base, ["a Zog here", "a zog here", "nothing of it"], clip_skip=1)
    job = spec.parse({"method": "textual_inversion", "base": "b", "data": "d", "name": "zog", "steps": 1, "vectors": 3})
    trainable = textual_inversion.setup(base, job.replace(family="sd1", learning_rate=0.1))
    conds = encode_prompts(base, ["a Zog here", "a zog here", "nothing of it"], clip_skip=1)
    assert torch.equal(conds[0].hidden, conds[1].hidden) and not torch.equal(conds[0].hidden, plain[0].hidden)
    assert torch.equal(conds[2].hidden, plain[2].hidden)
    with trainable.without():
        assert torch.equal(encode_prompts(base, ["a zog here"], clip_skip=1)[0].hidden, plain[1].hidden)
    conds[0].hidden.sum().backward()
    (group,) = trainable.param_groups()
    assert group["weight_decay"] == 0 and all(vectors.grad.abs().sum() > 0 for vectors in group["params"])
    assert [n for n, p in base.text_encoders[0].named_parameters() if p.grad is not None and "vectors" not in n] == []
    after = base.text_encoders[0].state_dict()
    assert all(torch.equal(after[name.replace("embedding.weight", "embedding.original.weight")
                                 if "token_embedding" in name else name], value)
               for name, value in before.items())  # fmt: skip


def test_means_the_same_in_diffusers(train, tiny_base):
    code, folder = train(vectors=3, learning_rate=0.05)
    assert code == 0
    base = load_base(tiny_base("sd1"), parts=("text",))
    job = spec.parse({"method": "textual_inversion", "base": "b", "data": "d", "name": "zog", "steps": 1, "vectors": 3,
                      "init_from": str(folder / "zog.safetensors"), "norm_limit": 0})  # fmt: skip
    textual_inversion.setup(base, job.replace(family="sd1", learning_rate=0.1))
    ours = encode_prompts(base, ["a zog on a table"], clip_skip=1)[0].hidden
    model = tiny_modules("sd1")
    tokenizer, encoder = base.tokenizers[0], load_base(tiny_base("sd1"), parts=("text",)).text_encoders[0]
    pipeline = diffusers.StableDiffusionPipeline(
        vae=model.vae, text_encoder=encoder, tokenizer=tokenizer, unet=model.unet,
        scheduler=diffusers.DDIMScheduler(), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip
    pipeline.load_textual_inversion(str(folder / "zog.safetensors"), token="zog")
    theirs = pipeline.encode_prompt("a zog on a table", "cpu", 1, False)[0][0]
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_resumes_to_the_same_bytes(train, monkeypatch):
    whole, broken = killed_and_resumed(train, monkeypatch, vectors=2, optimizer="prodigy")
    assert (whole / "zog.safetensors").read_bytes() == (broken / "zog.safetensors").read_bytes()


def test_refusals(train, capsys):
    from trainers.errors import InputError

    with pytest.raises(InputError, match="trigger"):
        spec.parse({"method": "textual_inversion", "base": "b", "data": "d", "name": "zog", "steps": 1, "trigger": "x"})
    with pytest.raises(InputError, match="no such option"):
        spec.parse({"method": "textual_inversion", "base": "b", "data": "d", "name": "zog", "steps": 1, "rank": 4})
    _, folder = train(vectors=2)
    with pytest.raises(InputError, match="set vectors"):
        train(folder="more", vectors=5, init_from=str(folder / "zog.safetensors"))
    assert header_of(folder / "zog.safetensors")["__metadata__"]["sshs_model_hash"]
