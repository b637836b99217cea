"""What the options do to a run: families, memory, optimizers, formats, and what happens to a step that is not finite.
These runs happen in the test's own process; `test_training_run.py` runs the trainer as a user does."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from training_helpers import events_of, header_of, job_values, make_pictures

from trainers import running, spec
from trainers.engine import loop as loops
from trainers.engine import results, state
from trainers.engine import step as steps
from trainers.formats.adapters import read_adapter
from trainers.formats.safetensors_io import load


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    return make_pictures(tmp_path_factory.mktemp("pictures") / "some pictures", 3)


@pytest.fixture
def train(tiny_base, pictures, tmp_path):
    """`train("sd1", steps=2, …)` -> (exit code, run folder)."""
    count = 0

    def run(family: str = "sd1", **changes) -> tuple[int, Path]:
        nonlocal count
        count += 1
        values = {**job_values(tiny_base(family), pictures, steps=2, save_dtype="fp32"), **changes}
        folder = tmp_path / f"run {count}"
        return running.start(spec.parse(values), folder), folder

    return run


def result(folder: Path) -> Path:
    return next(folder.glob("*.safetensors"))


@pytest.mark.parametrize(
    ("family", "changes", "sites", "version"),
    [
        ("sd1", {}, 192 + 72, "sd_v1"),
        ("sd1", {"conv_rank": 2, "train_text_encoder": False}, 278, "sd_v1"),
        ("sd2", {"prediction": "v", "zero_terminal_snr": True}, 192 + 138, "sd_v2_v"),
        ("sdxl", {}, 722 + 72 + 192, "sdxl_base_v1-0"),
        ("sdxl", {"train_unet": False}, 72 + 192, "sdxl_base_v1-0"),
    ],
)
def test_families(train, family, changes, sites, version):
    code, folder = train(family, **changes)
    assert code == 0
    header = header_of(result(folder))
    metadata = header.pop("__metadata__")
    assert len({key.partition(".")[0] for key in header}) == sites
    assert metadata["ss_base_model_version"] == version
    tensors, _ = load(result(folder))
    moved = [name for name, tensor in tensors.items() if "lora_up" in name and tensor.abs().max() > 0]
    # SDXL reads one layer before the last of its first encoder, and only the pooled vector of the second sees all.
    assert len(moved) >= 0.95 * sites


@pytest.mark.parametrize("optimizer", ["adamw", "prodigy", "adafactor", "lion", "schedulefree"])
def test_each_optimizer_resumes_to_the_same_bytes(train, optimizer):
    changes = {"optimizer": optimizer, "steps": 4, "state_every": 2, "caption_drop": 0.3}
    code, straight = train(**changes)
    assert code == 0
    _, stopped = train(**changes)
    result(stopped).unlink()
    (stopped / "events.jsonl").unlink()
    (stopped / "state" / "current").write_text("00000002", encoding="utf-8")
    assert running.resume(stopped) == 0
    assert events_of(stopped, "start")[0]["resumed_from"] == 2
    assert result(stopped).read_bytes() == result(straight).read_bytes()


def test_memory_options_train_the_same(train):
    """Checkpointing changes nothing; smaller number formats change little."""
    common = {"steps": 3, "learning_rate": 0.01, "optimizer_args": ["eps=0.001"], "train_text_encoder": False}
    _, plain = train(**common)
    reference = torch.cat([tensor.flatten() for name, tensor in load(result(plain))[0].items() if "lora_up" in name])
    for changes, allowed in (
        ({"gradient_checkpointing": "on"}, 1e-4),
        ({"precision": "bf16"}, 0.2),
        ({"base_dtype": "fp8"}, 0.3),
        ({"base_dtype": "fp16"}, 0.05),
    ):
        code, folder = train(**common, **changes)
        assert code == 0
        other = torch.cat([tensor.flatten() for name, tensor in load(result(folder))[0].items() if "lora_up" in name])
        assert (other - reference).norm() <= allowed * reference.norm(), changes
        job = spec.read_yaml(folder / "job.yaml")
        assert all(job[name] == value for name, value in changes.items())


def test_learning_lowers_the_loss(train, pictures):
    code, folder = train(
        steps=40, batch_size=3, learning_rate=0.005, text_encoder_lr=0.001, validation_data=str(pictures),
        min_snr_gamma=0,
    )  # fmt: skip
    assert code == 0
    first, last = events_of(folder, "validation")[0], events_of(folder, "validation")[-1]
    assert first["loss"] == first["base_loss"] == last["base_loss"]
    assert last["loss"] < 0.9 * first["base_loss"]


def test_ranks_and_rates_of_blocks(train):
    _, folder = train(block_ranks={"mid": 2, "text": 0, "down_0": 0}, rank=4, alpha=4)
    tensors, _ = load(result(folder))
    ranks = {name: len(tensor) for name, tensor in tensors.items() if "lora_down" in name}
    assert not any("lora_te" in name or "down_blocks_0" in name for name in ranks)
    assert {rank for name, rank in ranks.items() if "mid_block" in name} == {2}
    assert {rank for name, rank in ranks.items() if "mid_block" not in name} == {4}
    scales = {float(tensors[name.replace("lora_down.weight", "alpha")]) / rank for name, rank in ranks.items()}
    assert scales == {1.0}
    _, folder = train(block_lrs={"mid": 0.0}, train_text_encoder=False, weight_decay=0)
    tensors, _ = load(result(folder))
    still = {name for name, tensor in tensors.items() if "lora_up" in name and not tensor.any()}
    assert still and all("mid_block" in name for name in still)


def test_rslora_is_folded_into_alpha(train):
    _, folder = train(rslora=True, rank=4, alpha=2)
    tensors, metadata = load(result(folder))
    assert {float(tensor) for name, tensor in tensors.items() if name.endswith("alpha")} == {2 * math.sqrt(4)}
    assert metadata["ss_network_alpha"] == "4.0"


def test_formats_hold_the_same_adapter(train):
    read = {}
    for form in ("kohya", "diffusers", "peft"):
        code, folder = train(file_format=form)
        assert code == 0
        path = folder / "测试 ball" if form == "peft" else result(folder)
        entries = read_adapter(path).entries
        read[form] = {
            name: entry["lora_up"].flatten(1)
            @ entry["lora_down"].flatten(1)
            * (entry["alpha"] / len(entry["lora_down"]))
            for name, entry in entries.items()
        }
    for form in ("diffusers", "peft"):
        assert read[form].keys() == read["kohya"].keys()
        for name, delta in read["kohya"].items():
            torch.testing.assert_close(read[form][name], delta, rtol=1e-5, atol=1e-9)


def test_going_on_from_a_file(train, capsys):
    _, first = train(steps=2)
    _, second = train(steps=1, init_from=str(result(first)), learning_rate=0.0, alpha=4, train_text_encoder=True)
    before, after = (read_adapter(result(folder)).entries for folder in (first, second))
    for name, entry in before.items():
        delta = entry["lora_up"].flatten(1) @ entry["lora_down"].flatten(1) * entry["alpha"] / 4
        again = after[name]["lora_up"].flatten(1) @ after[name]["lora_down"].flatten(1) * after[name]["alpha"] / 4
        torch.testing.assert_close(again, delta, rtol=1e-5, atol=1e-8)


def test_regularisation_masks_and_long_captions(train, tmp_path):
    data = make_pictures(tmp_path / "masked", 2, caption=", ".join(["a long list of words"] * 40))
    for number in range(2):
        mask = Image.new("L", (64, 64), 0)
        mask.paste(255, (0, 0, 32, 64))
        mask.save(data / f"picture {number}-masklabel.png")
    (data / "picture 1.txt").write_text("short", encoding="utf-8")
    regular = make_pictures(tmp_path / "class", 2, caption="a thing")
    for trained in (True, False):
        code, folder = train(
            data=str(data), masks="files", regularisation_data=str(regular), prior_weight=0.5, batch_size=4,
            train_text_encoder=trained, tensorboard=True, steps=2,
        )  # fmt: skip
        assert code == 0
        assert header_of(result(folder))["__metadata__"]["ss_num_reg_images"] == "2"
        assert list((folder / "tensorboard").glob("events*"))


def test_lora_plus_gives_the_second_matrix_its_own_rate(train):
    code, folder = train(steps=1, lora_plus=8, learning_rate=1e-3, text_encoder_lr=1e-4)
    assert code == 0
    rates = events_of(folder, "step")[0]["lr"].values()
    assert sorted(rates) == pytest.approx([1e-4, 8e-4, 1e-3, 8e-3])


@pytest.mark.parametrize("text", [True, False])
def test_regularisation_pictures_held_to_the_base(train, tmp_path, monkeypatch, text):
    """At the first step the adapter does nothing yet, so there is nothing to correct; later it is pulled back."""
    regular = make_pictures(tmp_path / "class", 2, caption="a thing")
    losses = []
    real = steps.sample_losses

    def watched(session, batch, drawn):
        learned, plain = real(session, batch, drawn)
        losses.append((plain[batch.regularisation].tolist(), plain[~batch.regularisation].tolist()))
        return learned, plain

    monkeypatch.setattr(steps, "sample_losses", watched)
    code, folder = train(
        regularisation_data=str(regular), prior_target="base", batch_size=4, train_text_encoder=text, steps=4,
        learning_rate=1e-2, dropout=0.1,
    )  # fmt: skip
    assert code == 0 and result(folder).is_file()
    assert losses[0][0] and max(losses[0][0]) < 1e-9 and min(losses[0][1]) > 0
    assert min(losses[3][0]) > 1e-7


def test_a_step_that_is_not_finite_changes_nothing(train, monkeypatch):
    """Two bad steps in a row are passed over; three go back to the last good state at half the rate."""
    real, bad = loops.micro_step, {1, 2}

    def sometimes_nan(session, index):
        learned, plain = real(session, index)
        if index in bad:
            session.parameters()[0].grad.fill_(math.nan)
        return learned, plain

    monkeypatch.setattr(loops, "micro_step", sometimes_nan)
    code, folder = train(steps=5, state_every=5)
    assert code == 0
    assert [event["step"] for event in events_of(folder, "skipped")] == [2, 3]
    assert all(torch.isfinite(tensor).all() for tensor in load(result(folder))[0].values())
    bad.add(3)
    seen = []

    def recover(session, index):
        seen.append((index, session.optimizer.param_groups[0]["lr"]))
        if len(seen) > 4:
            bad.clear()
        return sometimes_nan(session, index)

    monkeypatch.setattr(loops, "micro_step", recover)
    code, folder = train(steps=6, state_every=6, schedule="constant", learning_rate=0.001)
    assert code == 0
    back = events_of(folder, "rollback")
    assert [(event["to_step"], event["lr_scale"]) for event in back] == [(0, 0.5)]
    assert [index for index, _ in seen] == [0, 1, 2, 3, 0, 1, 2, 3, 4, 5]
    assert {rate for _, rate in seen[:4]} == {0.001} and {rate for _, rate in seen[4:]} == {0.0005}


def test_sample_pictures_that_do_not_fit_are_left_out(train, monkeypatch):
    def full(*given, **options):
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(results.sampling, "draw_one", full)
    code, folder = train(steps=2, sample_prompts=["a ball"], sample_every=1)
    assert code == 0 and result(folder).is_file() and not events_of(folder, "sample")
    assert [event["text"] for event in events_of(folder, "note") if "sample pictures" in event["text"]] == [
        "The memory did not suffice for drawing sample pictures; the training goes on without them."
    ]


def test_a_run_whose_folder_is_gone_ends_and_makes_no_new_one(train, monkeypatch, tmp_path):
    real = loops.micro_step

    def take_away(session, index):
        if index == 1:
            shutil.rmtree(session.folder.path)
        return real(session, index)

    monkeypatch.setattr(loops, "micro_step", take_away)
    code, folder = train(steps=5, state_every=1)
    assert code == 1 and not folder.exists()


def test_a_torn_last_state_is_never_current(tmp_path):
    """Whatever instant a save is cut off at, the pointer names a whole state."""
    states = tmp_path / "state"
    tensors = {"weights": {"a": torch.ones(3)}}
    state.save_state(states, state.Counters(step=1), tensors)
    (states / "00000002.tmp").mkdir()
    (states / "00000002.tmp" / "tensors.pt").write_bytes(b"half")
    (states / "00000003").mkdir()  # renamed, but the pointer was not yet replaced
    found, loaded = state.load_state(states)
    assert found.step == 1 and torch.equal(loaded["weights"]["a"], torch.ones(3))
    state.save_state(states, state.Counters(step=2), tensors)
    assert state.load_state(states)[0].step == 2
    state.save_state(states, state.Counters(step=3), tensors)
    assert state.load_state(states)[0].step == 3
    assert json.loads((states / "00000003" / "counters.json").read_text())["step"] == 3
