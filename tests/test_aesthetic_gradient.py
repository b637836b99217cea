"""Aesthetic gradients: the vector is CLIP's own, the files read everywhere, and every bad input ends in a sentence."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from PIL import Image
from tiny_clip import WIDTH, make_clip
from training_helpers import ROOT, events_of, make_pictures, run_trainer
from transformers import CLIPModel

from extension.library import tag_for
from trainers import running, spec
from trainers.cli import main
from trainers.errors import InputError
from trainers.events import send_command
from trainers.formats import aesthetic
from trainers.methods import aesthetic_gradient
from trainers.methods.aesthetic_gradient import FURTHER
from trainers.tools.inspect import describe, lines

STARTED = {"session_id": 7, "started_at": 1700000000.0}


@pytest.fixture
def job(tmp_path):
    pictures = make_pictures(tmp_path / "图片 mine", 3)
    clip = make_clip(tmp_path / "clip")

    def make(**changes):
        values = {"method": "aesthetic_gradient", "name": "soft light", "data": str(pictures), "clip_model": str(clip)}
        return spec.parse({**values, "device": "cpu", "run": STARTED, **changes})

    return make


def test_the_vector_is_the_mean_of_clips_own(job, tmp_path):
    made = job(also_pt=True)
    assert running.start(made, tmp_path / "run") == 0
    one = aesthetic.read(tmp_path / "run" / "soft light.safetensors")
    model = CLIPModel.from_pretrained(made.clip_model).eval()
    from transformers import CLIPImageProcessor

    size = {"shortest_edge": 32}, {"height": 32, "width": 32}
    processor = CLIPImageProcessor(size=size[0], crop_size=size[1])
    pictures = [Image.open(path).convert("RGB") for path in sorted((tmp_path / "图片 mine").glob("*.png"))]
    with torch.no_grad():
        found = model.get_image_features(**processor(images=pictures, return_tensors="pt"))
    theirs = getattr(found, "pooler_output", found).mean(0)
    torch.testing.assert_close(one.embedding, theirs, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(one.projection, model.text_projection.weight.detach(), rtol=1e-3, atol=1e-3)
    as_pt = torch.load(tmp_path / "run" / "soft light.pt", weights_only=True)
    assert as_pt.shape == (1, WIDTH) and torch.equal(as_pt[0], one.embedding)
    assert torch.equal(aesthetic.read(tmp_path / "run" / "soft light.pt").embedding, one.embedding)
    description = describe(tmp_path / "run" / "soft light.safetensors")
    assert description["kind"] == "aesthetic gradient" and description["width"] == WIDTH
    assert any("aesthetic" in line for line in lines(description))
    assert (
        tag_for("aesthetic_gradient", "x", tmp_path / "run" / "soft light.safetensors") == f"<aesthetic:x:1{FURTHER}>"
    )
    assert tag_for("aesthetic_gradient", "x", tmp_path / "run" / "soft light.pt") == "<aesthetic:x:1>"


def test_as_a_person_runs_it_killed_and_resumed_to_the_same_bytes(job, tmp_path, monkeypatch):
    made = job()
    assert running.start(made, tmp_path / "whole") == 0
    real = aesthetic_gradient.load_picture

    def die(path):
        if path.name.startswith("picture 2"):
            raise KeyboardInterrupt
        return real(path)

    monkeypatch.setattr(aesthetic_gradient, "load_picture", die)
    with pytest.raises(KeyboardInterrupt):
        running.start(made, tmp_path / "broken")
    monkeypatch.undo()
    assert not (tmp_path / "broken" / "soft light.safetensors").exists()
    done = run_trainer("resume", tmp_path / "broken")
    assert done.returncode == 0, done.stderr
    one, other = (tmp_path / run / "soft light.safetensors" for run in ("whole", "broken"))
    assert one.read_bytes() == other.read_bytes()
    assert events_of(tmp_path / "broken")[-1]["event"] == "done" and running.resume(tmp_path / "broken") == 0
    words = ("--clip-model", made.clip_model, "--data", made.data, "--name", "again", "--run", tmp_path / "again")
    done = run_trainer("aesthetic_gradient", *words, "--preset", "aesthetic-gradient", "--set", "device=cpu")
    assert done.returncode == 0 and "Done" in done.stderr, done.stderr
    assert (tmp_path / "again" / "again.pt").exists()


def test_a_stop_is_heard_and_what_cannot_be_read_is_said(job, tmp_path, monkeypatch):
    made = job()
    (tmp_path / "图片 mine" / "broken.png").write_bytes(b"no picture")
    real = aesthetic_gradient.load_picture

    def stopping(path):
        send_command(tmp_path / "run", "stop")
        return real(path)

    monkeypatch.setattr(aesthetic_gradient, "load_picture", stopping)
    assert running.start(made, tmp_path / "run") == running.STOPPED
    monkeypatch.undo()
    assert running.resume(tmp_path / "run") == 0
    assert any("broken.png" in event["text"] for event in events_of(tmp_path / "run", "note"))


def test_check_speaks_as_for_the_other_methods(job, tmp_path, capsys):
    file = tmp_path / "job.yaml"
    file.write_text(spec.to_yaml(job()), encoding="utf-8")
    assert main(["check", str(file), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["exposures"] == 3 and found["folders"][0]["pictures"] == 3 and found["memory"]["fits"]


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda clip: shutil.rmtree(clip), "clip_model: .* is not a folder"),
        (lambda clip: (clip / "config.json").unlink(), "clip_model: .* has no config.json"),
        (lambda clip: (clip / "model.safetensors").unlink(), "clip_model: .* has neither"),
        (lambda clip: (clip / "config.json").write_text("{"), "clip_model: .* cannot be read"),
        (lambda clip: (clip / "config.json").write_text('{"model_type": "t5"}'), "clip_model: .* kind 't5'"),
        (lambda clip: (clip / "model.safetensors").write_bytes(b"12"), "model.safetensors"),
        (lambda clip: make_clip(clip.parent / "x") and shutil.copy(
            ROOT / "assets/base/athanor-base.safetensors", clip / "model.safetensors"), "clip_model: the weights"),
    ],
)  # fmt: skip
def test_bad_clip_folders(job, tmp_path, spoil, sentence):
    made = job()
    spoil(tmp_path / "clip")
    with pytest.raises(InputError, match=sentence):
        running.start(made, tmp_path / "run")


def test_bad_options_and_files(job, tmp_path):
    for changes, sentence in [
        ({"clip_model": ""}, "clip_model: is empty"),
        ({"data": str(tmp_path / "none")}, "data: the folder"),
        ({"steps": 4}, "steps: there is no such option"),
        ({"base": "x"}, "base: there is no such option"),
    ]:
        with pytest.raises(InputError, match=sentence):
            running.start(job(**changes), tmp_path / "run")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no pictures"):
        running.start(job(data=str(tmp_path / "empty")), tmp_path / "run")
    for number, content in enumerate([torch.zeros(1, 4), torch.rand(3, 4), [1], torch.tensor([float("nan")])]):
        torch.save(content, tmp_path / f"{number}.pt")
        with pytest.raises(InputError, match=rf"{number}\.pt"):
            aesthetic.read(tmp_path / f"{number}.pt")


def test_the_image_half_alone_says_what_will_be_missing(job, tmp_path):
    half = make_clip(tmp_path / "half", whole=False)
    assert running.start(job(clip_model=str(half)), tmp_path / "run") == 0
    assert aesthetic.read(tmp_path / "run" / "soft light.safetensors").projection is None
    assert any("text_projection" in event["text"] for event in events_of(tmp_path / "run", "note"))
