"""The twelve checks: each fires on its own fault, none on the bundled pictures."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from data_helpers import job_for
from PIL import Image, ImageEnhance, ImageFilter
from training_helpers import events_of, job_values, make_pictures, write_job

from trainers import checks, cli, options, spec
from trainers import running as training
from trainers.checks import running, words
from trainers.data.scan import scan
from trainers.engine import models, session, watch
from trainers.engine.state import Counters
from trainers.errors import InputError
from trainers.events import EventLog

ROOT = Path(__file__).resolve().parent.parent
BUNDLED = ROOT / "assets" / "pictures"
USUAL = {"resolution": 256, "steps": 1500, "batch_size": 2, "learning_rate": 2e-4, "name": "x"}


def findings(folder: Path, *, unet: int = 860_000_000, fits: bool = True, base: str = "base", run=None, **changes):
    values = {**USUAL, "base": f"{base}.safetensors", "data": str(folder), "text_encoder_lr": 5e-5, **changes}
    job = spec.parse({**values, "run": run or {}})
    job = job.replace(family="sd1", prediction="epsilon", clip_skip=job.clip_skip or 1)
    plan = SimpleNamespace(peak_bytes=8 << 30, free_bytes=6 << 30, fits=fits)
    found = scan(folder, job.replace(allow_missing_captions=True))
    facts = checks.job_facts(job, {"data": found}, SimpleNamespace(parameters={"unet": unet}), plan)
    return checks.before_start(facts)


def fired(found) -> dict[str, str]:
    """{check: its worst severity} of those that say something is wrong."""
    return {each.id: each.severity for each in reversed(found) if each.severity != "ok"}


@pytest.fixture
def football(tmp_path) -> Path:
    return Path(shutil.copytree(BUNDLED / "football" / "train", tmp_path / "football 足球"))


def pictures(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.png"))


@pytest.mark.parametrize(("options_", "measured"), [({}, False), ({"find_best": True}, True),
                                                   ({"validation_split": 0.1}, True)])  # fmt: skip
def test_it_is_said_whether_learning_by_heart_can_be_measured(football, options_, measured):
    said = {each.id: each.text for each in findings(football, **options_)}["learning"]
    assert ("No pictures are held out" not in said) is measured


@pytest.mark.parametrize("name", ["football/train", "basketball/train", "unrelated"])
def test_the_bundled_pictures_are_clean(name):
    found = findings(BUNDLED / name)
    assert fired(found) == {}
    assert {each.id for each in found} == set(options.CHECKS) == set(checks.BEFORE)
    assert all(each.text.endswith(".") for each in found)


def no_captions_but_one(folder):
    for file in list(folder.glob("*.txt"))[1:]:
        file.unlink()


def captions_of_another_name(folder):
    for file in folder.glob("*.txt"):
        file.rename(folder / f"caption of {file.name}")


def bytes_for_a_caption(folder):
    (folder / "01.txt").write_bytes(b"a\0\xff\xfeball\0")


def nearly_the_same(folder):
    first = Image.open(pictures(folder)[0])
    for number, file in enumerate(pictures(folder)[1:6]):
        ImageEnhance.Brightness(first.resize((250 + number, 250 + number))).enhance(0.97).save(file, quality=70)


def three_left(folder):
    for file in pictures(folder)[3:]:
        file.unlink()
        file.with_suffix(".txt").unlink()


def small(folder):
    picture = Image.open(pictures(folder)[4])
    picture.resize((100, 100)).save(pictures(folder)[4])


def blurred(folder):
    picture = Image.open(pictures(folder)[4])
    picture.filter(ImageFilter.GaussianBlur(6)).save(pictures(folder)[4])


def one_long(folder):
    picture = Image.open(pictures(folder)[0]).convert("RGB")
    strip = Image.new("RGB", (3 * 256, 256))
    for number in range(3):
        strip.paste(picture, (number * 256, 0))
    strip.save(pictures(folder)[0])


def too_long(folder):
    Image.open(pictures(folder)[0]).resize((2000, 256)).save(pictures(folder)[0])


def no_repeats(folder):
    (folder / "0_rest").mkdir()
    pictures(folder)[0].rename(folder / "0_rest" / "a.png")
    (folder / "01.txt").unlink()


def same_background(folder):
    for number, file in enumerate(pictures(folder)[:12]):
        picture = Image.open(file).convert("RGB")
        page = Image.new("RGB", (300, 300), (250, 250, 245))
        page.paste(picture.crop((20, 20, 236, 236)), (30 + number * 2, 50 - number * 2))
        page.filter(ImageFilter.GaussianBlur(2)).save(file)


def same_tag(folder):
    for file in folder.glob("*.txt"):
        file.write_text(f"sks ball, red scarf, {file.stem}", encoding="utf-8")


def test_a_half_empty_batch_of_one_shape_is_not_mended_by_cropping(football):
    said = next(each for each in findings(football, batch_size=64, steps=50) if each.id == "buckets")
    assert said.severity == "warn" and "Crop" not in said.what_to_do


@pytest.mark.parametrize(
    ("sabotage", "changes", "check", "severity", "named"),
    [
        (no_captions_but_one, {}, "captions", "stop", 15),
        (captions_of_another_name, {}, "captions", "stop", 16),
        (bytes_for_a_caption, {}, "captions", "stop", 1),
        (None, {"captions": "caption"}, "captions", "refused", 0),
        (None, {"trigger": "ball"}, "trigger", "warn", 0),
        (None, {"trigger": "supercalifragilistic expialidocious ball"}, "trigger", "warn", 0),
        (None, {"trigger": "(zwx"}, "trigger", "warn", 0),
        (nearly_the_same, {}, "amount", "stop", 5),
        (three_left, {"steps": 500}, "amount", "stop", 0),
        (small, {}, "quality", "stop", 1),
        (blurred, {}, "quality", "warn", 1),
        (one_long, {"batch_size": 4, "steps": 750}, "buckets", "warn", 1),
        (too_long, {"buckets": False}, "buckets", "warn", 1),
        (no_repeats, {}, "buckets", "stop", 1),
        (same_background, {}, "sameness", "warn", 12),
        (same_tag, {"trigger": "sks ball"}, "sameness", "warn", 0),
        (None, {"steps": 100}, "dose", "warn", 0),
        (None, {"steps": 9000}, "dose", "warn", 0),
        (None, {"learning_rate": 1e-3}, "rate", "warn", 0),
        (None, {"text_encoder_lr": 3e-4}, "rate", "warn", 0),
        (None, {"optimizer": "prodigy", "learning_rate": 1e-4, "text_encoder_lr": None}, "rate", "warn", 0),
        (None, {"base": "SD-Turbo-v1"}, "base", "warn", 0),
        (None, {"run": {"host_clip_skip": 2}}, "base", "warn", 0),
        (None, {"fits": False}, "memory", "warn", 0),
    ],
)
def test_each_fires_on_its_own_fault(football, sabotage, changes, check, severity, named):
    if sabotage:
        sabotage(football)
    if severity == "refused":
        with pytest.raises(InputError, match="captions: auto"):
            findings(football, **changes)
        return
    found = findings(football, **changes)
    severities = fired(found)
    assert severities.pop(check) == severity, found
    assert severities == {}, found
    worst = next(each for each in found if each.id == check and each.severity == severity)
    assert len(worst.pictures) == named and worst.what_to_do and worst.text.endswith(".")


def test_a_name_that_is_the_word_is_looked_at_as_a_word_and_none_at_all_is_told(football):
    by_name = {"method": "textual_inversion", "trigger": "", "name": "my (ball)"}
    told = [each.text for each in words.trigger(checks.JobFacts(by_name)) if each.severity == "warn"]
    assert told == ["A prompt reads ( ) in “my (ball)” as an instruction, so it cannot be written there."]
    for file in football.glob("*.txt"):
        file.unlink()
    said = {trigger: fired(findings(football, trigger=trigger)) for trigger in ("", "sks ball")}
    assert said == {"": {"captions": "warn", "trigger": "warn"}, "sks ball": {"captions": "warn"}}


def test_a_toy_is_not_judged_by_the_rates_of_real_models(football):
    assert fired(findings(football, unet=7_000_000, learning_rate=4e-3, text_encoder_lr=8e-3, steps=90)) == {}


def test_red_findings_hold_a_run_back_until_they_are_overridden(tiny_base, tmp_path, capsys):
    data = make_pictures(tmp_path / "three", 3)
    values = job_values(tiny_base("sd1"), data, override_checks=[], steps=1)
    job = write_job(tmp_path / "job.yaml", values)
    assert cli.main(["run", str(job), "--run", str(tmp_path / "run")]) == 2
    refused = capsys.readouterr().err.strip()
    assert refused.startswith("amount: 3 pictures") and "override_checks: amount" in refused
    assert not (tmp_path / "run").exists()
    assert cli.main(["check", str(job)]) == 2
    assert "[STOP] amount" in capsys.readouterr().out
    assert cli.main(["check", str(job), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["checks"]
    assert told[0] == {
        "id": "amount",
        "severity": "stop",
        "text": "3 pictures to learn from; fewer than 5.",
        "pictures": [],
        "what_to_do": told[0]["what_to_do"],
        "overridden": False,
    }
    write_job(job, {**values, "override_checks": ["amount"]})
    assert cli.main(["check", str(job), "--json"]) == 0
    assert [each["overridden"] for each in json.loads(capsys.readouterr().out)["checks"] if each["severity"] == "stop"]


def test_an_unknown_check_names_the_nearest(tmp_path):
    with pytest.raises(InputError, match=r"override_checks: 'amuont' is not a check.*\"amount\""):
        job_for(tmp_path, override_checks=["amuont"])


# --- while it runs


def test_figures_of_a_run_are_judged():
    assert running.prediction("v", 1.52, 0.34, 0.35).what_to_do == "Set prediction: epsilon."
    assert running.prediction("epsilon", 0.34, 1.52, 1.8) is None
    assert running.prediction("epsilon", 1.3, 0.7, 0.98) is None  # an untrained model is of neither kind
    assert "fp32" in running.round_trip(12.0, "half precision").text and running.round_trip(26.0, "fp32") is None
    assert running.round_trip(float("-inf"), "fp32").severity == "warn"
    assert running.spill(5.1, 1.0, 0.97).severity == "stop"
    assert running.spill(5.1, 1.0, 0.6) is None and running.spill(2.0, 1.0, 0.99) is None
    falling = [(step, 1 - step / 1000) for step in range(0, 400, 100)]
    assert running.burnt([]) is None and running.burnt(falling) is None
    assert running.burnt([*falling, (400, 0.75), (500, 0.76)]) is None
    told = running.burnt([*falling, (400, 0.75), (500, 0.76), (600, 0.8)])
    assert "best at step 300" in told.text and told.severity == "warn"
    assert running.forgetting(9, 0.104, 0.1) is None
    assert [running.forgetting(9, loss, 0.1).severity for loss in (0.11, 0.12)] == ["warn", "stop"]
    assert running.forgetting(9, 0.14, 0.1, is_toy=True).severity == "warn"
    held = {"regularisation_data": "r", "prior_target": "noise", "method": "lora"}
    advice = [
        running.forgetting(9, 0.14, 0.1, options=each).what_to_do
        for each in ({}, held, held | {"prior_target": "base"}, held | {"method": "dreambooth"})
    ]
    assert ["regularisation pictures" in each for each in advice] == [True, False, False, False]
    assert ["prior_target" in each for each in advice] == [False, True, False, False]
    assert running.delta(2.4, "a") is None and running.delta(3.0, "a").severity == "warn"
    assert running.pictures_alike(0.02) is None and running.pictures_alike(0.005).severity == "warn"


def test_the_norm_of_a_change_is_that_of_the_whole_matrix():
    entry = {"lora_up": torch.randn(9, 3), "lora_down": torch.randn(3, 7), "alpha": 1.5}
    whole = (entry["lora_up"] @ entry["lora_down"]).norm().item() * 0.5
    assert watch._norm(entry) == pytest.approx(whole, rel=1e-4)


def test_a_card_whose_memory_spills_stops_the_run_until_it_has_a_smaller_plan(tmp_path, monkeypatch):
    told = EventLog(tmp_path / "events.jsonl")
    session = SimpleNamespace(
        world=SimpleNamespace(is_main=True), device=torch.device("cuda", 0), events=told, total_steps=10_000,
        folder=SimpleNamespace(events_file=tmp_path / "events.jsonl"),
        job=SimpleNamespace(override_checks=[], warmup=0),
    )  # fmt: skip
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10, 1000))
    watching, counters = watch.Watch(session, SimpleNamespace(line=lambda text: None)), Counters()
    for seconds in [1.0] * watch.FIRST_STEPS + [6.0] * watch.LAST_STEPS:
        assert watching.stop_why is None
        watching.step(counters, seconds)
    assert watching.why_stopped()["check"] == "memory" and counters.told == ["memory:stop"]
    again = watch.Watch(session, None)
    again.begin_again(counters)
    assert counters.told == ["memory:stop"], "whoever resumes it goes on all the same"
    told.emit("reduced", what="", step=3, why="")
    again.begin_again(counters)
    assert counters.told == []


def test_a_run_that_learns_nothing_saves_and_stops_and_goes_on_when_it_is_told_to(tiny_base, tmp_path):
    data = make_pictures(tmp_path / "balls", 5)
    values = job_values(tiny_base("sd1"), data, steps=12, learning_rate=0, text_encoder_lr=0, sample_prompts=["a ball"])
    run = tmp_path / "run"
    assert training.start(spec.parse(values), run) == training.STOPPED
    (check,) = events_of(run, "check")
    stopped = events_of(run, "stopped")[-1]
    assert (check["id"], check["severity"], check["step"]) == ("learning", "stop", 3)
    assert stopped["step"] == 3 and "“learning”" in stopped["why"] and "resume" in stopped["why"]
    assert training.resume(run) == 0
    assert [each["severity"] for each in events_of(run, "check")] == ["stop", "warn"]  # and the pictures are the same
    assert "same prompt and seed" in events_of(run, "check")[-1]["text"]


def test_a_base_of_the_other_prediction_is_noticed_before_the_first_step(tmp_path, capsys):
    base, data = ROOT / "assets" / "base" / "athanor-base.safetensors", BUNDLED / "football" / "train"
    values = job_values(base, data, prediction="v", steps=1, cache_dir=str(tmp_path / "cache"), override_checks=[])
    job = write_job(tmp_path / "job.yaml", values)
    assert cli.main(["run", str(job), "--run", str(tmp_path / "run")]) == 2
    assert "Set prediction: epsilon" in capsys.readouterr().err
    assert not events_of(tmp_path / "run", "step")


def test_a_bad_autoencoder_goes_on_in_fp32_and_says_so(tiny_base, monkeypatch):
    job = spec.parse(job_values(tiny_base("sd1"), ROOT))
    job, info = session.check_base(job)
    made = models.Models(info, job, torch.device("cpu"), torch.bfloat16)
    good = iter([12.0, 30.0, 30.0])
    monkeypatch.setattr(models, "psnr", lambda one, other: next(good))
    pixels = torch.zeros(1, 3, 64, 64)
    made.encode_moments(pixels)
    assert "12 dB" in made.notes[0] and "fp32" in made.notes[0] and made.base.vae.dtype == torch.float32
    made.encode_moments(pixels)
    made.encode_moments(pixels)
    assert len(made.notes) == 1 and list(good) == [30.0]  # two are looked at


def test_a_bad_autoencoder_is_told_once_by_what_was_seen_last(tiny_base, monkeypatch):
    job, info = session.check_base(spec.parse(job_values(tiny_base("sd1"), ROOT)))
    made = models.Models(info, job, torch.device("cpu"), torch.bfloat16)
    decibels = iter([11.0, 12.0])
    monkeypatch.setattr(models, "psnr", lambda one, other: next(decibels))
    for _ in range(models.ROUND_TRIPS):
        made.encode_moments(torch.zeros(1, 3, 64, 64))
    assert len(made.notes) == 1 and "12 dB in fp32" in made.notes[0] and "Name another with vae" in made.notes[0]
