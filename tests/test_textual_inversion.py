"""Textual Inversion: what is trained, what stays, and that the file means the same elsewhere."""

from __future__ import annotations

import diffusers
import pytest
import torch
from tiny_models import tiny_modules
from training_helpers import ROOT, events_of, header_of, job_values, killed_and_resumed, make_pictures

from extension.injection.embeddings import read_embedding
from trainers import running, spec
from trainers.bases.concepts import Concept, groups, replace_words
from trainers.bases.loader import load_base
from trainers.bases.text import chunk_tokens, encode_prompts
from trainers.data import captions
from trainers.errors import InputError
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


def test_pt_and_sdxl_files_mean_the_same_in_diffusers(train, tiny_base):
    """A1111's layout is read as it is; of an SDXL file each encoder takes its own tensor, as diffusers' pages say."""
    code, folder = train(vectors=2, learning_rate=0.05, also_pt=True)
    assert code == 0
    base = load_base(tiny_base("sd1"), parts=("text",))
    loader = type(
        "Loader", (diffusers.loaders.TextualInversionLoaderMixin,), {"hf_device_map": None, "components": {}}
    )()
    loader.tokenizer, loader.text_encoder = base.tokenizers[0], base.text_encoders[0]
    loader.load_textual_inversion(str(folder / "zog.pt"), token="zog", text_encoder=loader.text_encoder,
                                  tokenizer=loader.tokenizer)  # fmt: skip
    rows = loader.text_encoder.get_input_embeddings().weight[-2:]
    torch.testing.assert_close(rows, load(folder / "zog.safetensors")[0]["emb_params"])

    code, folder = train("sdxl", "xl", vectors=2, learning_rate=0.05, also_pt=True)
    assert code == 0
    stored, base = load(folder / "zog.safetensors")[0], load_base(tiny_base("sdxl"), parts=("text",))
    as_pt = torch.load(folder / "zog.pt", weights_only=True)
    assert all(torch.equal(as_pt[name], stored[name]) for name in ("clip_l", "clip_g"))
    for name, encoder in zip(("clip_l", "clip_g"), base.text_encoders, strict=True):
        tokenizer = load_base(tiny_base("sdxl"), parts=("text",)).tokenizers[0]
        loader.load_textual_inversion(stored[name], token="zog", text_encoder=encoder, tokenizer=tokenizer)
        torch.testing.assert_close(encoder.get_input_embeddings().weight[-2:], stored[name])


def test_resumes_to_the_same_bytes(train, monkeypatch):
    whole, broken = killed_and_resumed(train, monkeypatch, vectors=2, optimizer="prodigy")
    assert (whole / "zog.safetensors").read_bytes() == (broken / "zog.safetensors").read_bytes()


def test_several_words_in_one_run(train, tiny_base):
    """Each has vectors and files of its own; a caption that names one of them does not get the other."""
    concepts = ["glorp=a red ball", "flim"]
    code, folder = train(vectors=2, concepts=concepts, learning_rate=0.05, also_pt=True, validation_split=0.4)
    assert code == 0
    files = {word: load(folder / f"{word}.safetensors") for word in ("zog", "glorp", "flim")}
    assert {output["path"] for output in events_of(folder, "saved") if output["kind"] == "result"} == {
        f"{word}.safetensors" for word in files
    }
    for word, (tensors, metadata) in files.items():
        assert tensors["emb_params"].shape == (2, 32) and metadata["ss_output_name"] == word
        as_pt = torch.load(folder / f"{word}.pt", weights_only=True)
        assert as_pt["name"] == word and as_pt["step"] == 3 and as_pt["string_to_token"] == {"*": 265}
        assert torch.equal(as_pt["string_to_param"]["*"], tensors["emb_params"])
        assert torch.equal(read_embedding(folder / f"{word}.pt").vectors["text_encoder"], tensors["emb_params"])
    assert not torch.equal(files["zog"][0]["emb_params"], files["flim"][0]["emb_params"])
    code, more = train(folder="more", vectors=2, concepts=concepts, learning_rate=0.0, norm_limit=0,
                       init_from=str(folder / "zog.safetensors"))  # fmt: skip
    assert code == 0
    for word, (tensors, _) in files.items():
        assert torch.equal(load(more / f"{word}.safetensors")[0]["emb_params"], tensors["emb_params"])


def test_what_it_learned_in_words(train, tiny_base, capsys):
    """A vector that was put on a word's own row is nearest to that word, and every place says so."""
    from trainers.cli import main

    code, folder = train(vectors=2, initial_text="red ball", learning_rate=0.0, norm_limit=0)
    assert code == 0
    (sentence,) = [event["text"] for event in events_of(folder, "note") if "nearest" in event["text"]]
    assert sentence.startswith("zog is nearest to: red, ") and "; ball, " in sentence
    assert main(["inspect", str(folder / "zog.safetensors")]) == 0
    assert "vector 1 is near" in capsys.readouterr().out


def picture(caption, regular=False, **options):
    from trainers.data.picture import Picture, PictureOptions

    made = Picture.__new__(Picture)
    fields = {"caption": caption, "is_regularisation": regular, "key": caption, "options": PictureOptions(**options)}
    for name, value in fields.items():
        object.__setattr__(made, name, value)
    return made


def test_templates_and_words_of_captions(tmp_path):
    lines = "\n".join(["a photo of [name]", "", "[filewords], by [name]"])
    (tmp_path / "style 一.txt").write_text(lines, encoding="utf-8")
    values = {"method": "textual_inversion", "base": "b", "data": "d", "name": "zog", "steps": 1}
    job = spec.parse({**values, "template": str(tmp_path / "style 一.txt"), "concepts": ["glorp=ball"]})
    job = job.replace(trigger="zog")
    said = {captions.caption_for(picture("a cat, red"), number, job) for number in range(40)}
    assert said == {"a photo of zog", "a cat, red, by zog"}
    assert {captions.caption_for(picture("a Glorp"), n, job) for n in range(20)} == {
        "a photo of glorp",
        "a Glorp, by glorp",
    }
    assert captions.caption_for(picture("a dog", regular=True), 0, job) == "a dog"
    plain = job.replace(template=None)
    assert captions.caption_for(picture("a Glorp"), 0, plain) == "a Glorp"
    assert captions.caption_for(picture("a cat"), 0, plain) == "zog, a cat"
    for style in (ROOT / "presets" / "templates").glob("*.txt"):
        assert all(captions.NAME in line for line in captions.template_lines(str(style)))
    (tmp_path / "none.txt").write_text("a photo")
    for name in ("none.txt", "missing.txt"):
        with pytest.raises(InputError, match="template: "):
            captions.template_lines(str(tmp_path / name))


def test_rates_as_a1111_writes_them(train):
    """Each rate is used up to its step, and the last one stays."""
    from trainers.engine.lr_schedules import stepped
    from trainers.options import rate_steps

    rates = rate_steps("0.005:2, 1e-3:4, 1e-4")
    assert [round(0.005 * stepped(step, rates), 9) for step in range(6)] == [5e-3, 5e-3, 1e-3, 1e-3, 1e-4, 1e-4]
    code, folder = train(vectors=1, learning_rates="0.02:2, 1e-3:-1", steps=4)
    assert code == 0
    seen = [next(iter(event["lr"].values())) for event in events_of(folder, "step")]
    assert seen == pytest.approx([0.02, 0.02, 0.001, 0.001])
    base = {"method": "textual_inversion", "base": "b", "data": "d", "name": "zog", "steps": 1}
    for wrong in ("x", "0.1:5,0.2:5", "0.1:-1,0.2:9", "0", "0.1:1.5", "-1:3", ","):
        with pytest.raises(InputError, match="learning_rates"):
            spec.parse({**base, "learning_rates": wrong})
    with pytest.raises(InputError, match="leave that empty"):
        spec.parse({**base, "learning_rates": "0.1:3", "learning_rate": 0.2})


def test_refusals(train, capsys):
    wrong = [["zog=a"], ["a/b=c"], ["one", "one=two"], ["="]]
    for concepts in wrong:
        with pytest.raises(InputError, match="concepts"):
            spec.parse({"method": "textual_inversion", "base": "b", "data": "d", "name": "zog", "steps": 1,
                        "concepts": concepts})  # fmt: skip
    with pytest.raises(InputError, match="trigger"):
        spec.parse({"method": "textual_inversion", "base": "b", "data": "d", "name": "zog", "steps": 1, "trigger": "x"})
    with pytest.raises(InputError, match="no such option"):
        spec.parse({"method": "textual_inversion", "base": "b", "data": "d", "name": "zog", "steps": 1, "rank": 4})
    _, folder = train(vectors=2)
    with pytest.raises(InputError, match="set vectors"):
        train(folder="more", vectors=5, init_from=str(folder / "zog.safetensors"))
    assert header_of(folder / "zog.safetensors")["__metadata__"]["sshs_model_hash"]
