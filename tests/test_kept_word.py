"""The taught pictures a second time under an ordinary word: what is said of them, and that the model is held there."""

from __future__ import annotations

import pytest
from training_helpers import events_of, job_values, killed_and_resumed, make_pictures

from trainers import running, spec
from trainers.data.kept import under_word
from trainers.errors import InputError
from trainers.formats.safetensors_io import load


@pytest.mark.parametrize(
    ("caption", "said"),
    [
        ("photo of zog toy, on a table", "photo of toy, on a table"),
        ("Zog, red", "toy, red"),
        ("a toy on a table", "a toy on a table"),
        ("on a table", "toy, on a table"),
        ("zogs are no zog", "zogs are no toy"),
        ("", "toy"),
    ],
)
def test_the_word_takes_the_triggers_place(caption, said):
    assert under_word(caption, "zog", "toy") == said


@pytest.fixture
def train(tiny_base, tmp_path):
    pictures = make_pictures(tmp_path / "pictures", 3, caption="zog toy, number {n}")

    def run(folder="run", **changes):
        values = job_values(tiny_base("sd1"), pictures, trigger="zog", name="zog", batch_size=2, prior_target="base")
        values |= {"learning_rate": 0.01, "text_encoder_lr": 0.01, "kept_word": "toy", **changes}
        return running.start(spec.parse(values), tmp_path / folder), tmp_path / folder

    return run


def test_half_of_each_batch_is_held_under_it(train, monkeypatch):
    from trainers.engine import step

    seen, real = [], step.sample_losses

    def noted(session, batch, drawn):
        losses = real(session, batch, drawn)
        seen.append((list(batch.captions), batch.regularisation.tolist(), losses[1].tolist()))
        return losses

    monkeypatch.setattr(step, "sample_losses", noted)
    code, folder = train(steps=3, verdict=False)
    assert code == 0
    for captions, regular, losses in seen:
        assert sorted(regular) == [False, True]
        for caption, held, loss in zip(captions, regular, losses, strict=True):
            assert caption.startswith("toy, number" if held else "zog toy, number")
            assert (loss < 0.01) == held  # near the base's own prediction from the first step
    first = {held: loss for held, loss in zip(seen[0][1], seen[0][2], strict=True)}
    assert first[True] < 1e-9  # nothing is learned yet
    assert load(folder / "zog.safetensors")[1]["ss_num_reg_images"] == "3"
    assert not any("kept:" in note["text"] for note in events_of(folder, "note"))


def test_without_a_trigger_it_is_said(train):
    code, folder = train(steps=1, trigger="", verdict=False)
    assert code == 0 and load(folder / "zog.safetensors")[1]["ss_num_reg_images"] == "0"
    assert any("no trigger" in note["text"] for note in events_of(folder, "note"))


def test_resumes_to_the_same_bytes(train, monkeypatch):
    whole, broken = killed_and_resumed(train, monkeypatch, verdict=False)
    assert (whole / "zog.safetensors").read_bytes() == (broken / "zog.safetensors").read_bytes()


def test_it_needs_the_base_as_its_target(train):
    with pytest.raises(InputError, match="kept_word: holds"):
        train(prior_target="noise")
