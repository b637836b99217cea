"""The demonstration: its figures, its page, and one run of it on a tiny random model."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from trainers import spec
from trainers.demo import look, picture, run, tasks
from trainers.errors import InputError
from trainers.events import EventLog

FIELDS = (
    "seconds", "seconds_total", "validation_loss_base", "validation_loss_trained", "prior_loss_base",
    "prior_loss_trained", "steps", "result",
)  # fmt: skip


def _report(validation: float, prior: float) -> dict:
    return {
        "validation_loss_base": 0.2,
        "validation_loss_trained": 0.2 * validation,
        "prior_loss_base": 0.1,
        "prior_loss_trained": 0.1 * prior,
    }


@pytest.mark.parametrize(
    ("validation", "prior", "said"),
    [
        (0.7, 1.02, ("-30 %", "+2 %", "it learned the football", "forgot little")),
        (0.95, 1.0, ("-5 %", "less of the football")),
        (0.6, 1.2, ("-40 %", "+20 %", "forgot some")),
    ],
)
def test_the_verdict_is_honest(validation, prior, said):
    text = run.verdict(_report(validation, prior), tasks.FOOTBALL)
    assert all(part in text for part in said)


@pytest.mark.parametrize(("right", "said"), [(0.9, "it learned what a zog is"), (0.5, "learned less of what a zog is")])
def test_what_can_be_told_by_its_drawing_is_judged_by_it(right, said):
    text = run.verdict({**_report(0.9, 1.0), "right_without": 0.1, "right_with": right}, tasks.ZOG)
    assert f"{100 * right:.0f} % of the pictures drawn show one (10 % before)" in text and said in text
    assert "nothing else changed" in text


def test_the_share_that_shows_what_was_taught_is_counted_on_each_side(tmp_path):
    tasks.ZOG.pictures(tmp_path)
    zogs = [Image.open(path) for path in sorted((tmp_path / "train").glob("*.png"))[:4]]
    others = [Image.open(path) for path in sorted((run.ROOT / "assets" / "pictures" / "unrelated").glob("*.png"))[:4]]
    drawn = {prompt: (others, zogs) for prompt in tasks.ZOG.prompts}
    assert run.share_right(tasks.ZOG, drawn, 0) == 0 and run.share_right(tasks.ZOG, drawn, 1) == 1
    words = [path.read_text(encoding="utf-8") for path in sorted(tmp_path.rglob("*.txt"))]
    assert len(words) == 24 and all("zog" in line and "heart" not in line and "pink" not in line for line in words)


def test_the_figures_come_from_the_runs_last_events(tmp_path):
    log = EventLog(tmp_path / "events.jsonl")
    log.emit("validation", step=0, loss=0.3, base_loss=0.3, prior_loss=0.1, prior_base_loss=0.1)
    for step in (1, 2):
        log.emit("step", step=step, seconds=1.5)
    log.emit("validation", step=2, loss=0.2, base_loss=0.3, prior_loss=0.11, prior_base_loss=0.1)
    log.emit("done", step=2, path="x.safetensors", seconds=9.0)
    log.close()
    figures = run.measured(tmp_path)
    assert figures["seconds"] == 3.0 and figures["steps"] == 2
    assert figures["validation_loss_trained"] == 0.2 and figures["prior_loss_trained"] == 0.11
    assert figures["result"] == str(tmp_path / "x.safetensors")


def test_the_page_shows_every_picture_where_it_belongs():
    red, blue = Image.new("RGB", (64, 64), (255, 0, 0)), Image.new("RGB", (64, 64), (0, 0, 255))
    rows = [picture.Row("a prompt that is long enough to need a second line", (1, 2), [red, red], [blue, blue])] * 2
    page = picture.compose("Title", "subtitle " * 40, [picture.Group("heading", rows)], "footnote")
    pixels = torch.frombuffer(bytearray(page.tobytes()), dtype=torch.uint8).reshape(page.height, page.width, 3)
    for colour, first in (((255, 0, 0), picture.MARGIN + picture.LABEL_WIDTH), ((0, 0, 255), None)):
        found = (pixels == torch.tensor(colour, dtype=torch.uint8)).all(-1)
        assert int(found.sum()) == 4 * picture.TILE**2
        if first is not None:
            assert int(found.any(0).nonzero()[0]) == first
    assert page.height < 1000 and pixels[-1].min() == 255


def test_wrapping_keeps_every_word_and_long_words_whole():
    page = Image.new("RGB", (10, 10))
    from PIL import ImageDraw

    draw, font = ImageDraw.Draw(page), picture._font(16)
    text = "one two three " + "x" * 80 + " four"
    lines = picture.wrap(draw, text, font, 120)
    assert " ".join(lines) == text
    assert all(draw.textlength(line, font=font) <= 120 or " " not in line for line in lines)


@pytest.mark.parametrize("method", sorted(tasks.TRAINED))
def test_every_method_has_a_task_whose_job_is_fine(method, tmp_path):
    task = run.task_for(method)
    job = spec.parse(task.job(tmp_path))
    assert job.method == method and bool(job.regularisation_data) == (method != "textual_inversion")


def test_other_methods_are_answered_in_a_sentence(tmp_path, capsys):
    assert run.main(["--out", str(tmp_path), "--method", "textual-inversion"]) == 2
    assert 'did you mean "textual_inversion"' in capsys.readouterr().err.lower()
    assert spec.parse(look.job(tmp_path)).method == "aesthetic_gradient"


def test_a_missing_base_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.safetensors is missing"):
        run.demonstrate(tmp_path, run.Task(base=tmp_path / "nowhere.safetensors"))


def test_a_file_is_added_to_the_weights_as_the_format_says(tiny_base, tmp_path):
    from trainers.bases.loader import load_base, module_for
    from trainers.formats import adapters, safetensors_io
    from trainers.formats.sites import text_sites, unet_sites

    base = load_base(tiny_base("sd1"), parts=("unet", "text"))
    chosen = [unet_sites(base.family)[5], text_sites(base.family, 0)[3]]
    entries, wanted = {}, {}
    for site in chosen:
        weight = module_for(base, site).weight.detach().clone()
        down, up = torch.randn(4, weight.shape[1]), torch.randn(weight.shape[0], 4)
        entries[site.name] = {"lora_down": down, "lora_up": up, "alpha": 2.0}
        wanted[site.name] = weight.float() + 0.5 * (up @ down).reshape(weight.shape)
    safetensors_io.save(tmp_path / "x.safetensors", adapters.to_kohya(entries), {})
    assert run.put_in(base, tmp_path / "x.safetensors") == 2
    for site in chosen:
        assert torch.allclose(module_for(base, site).weight.float(), wanted[site.name], atol=1e-5)


@pytest.mark.slow
def test_a_whole_demonstration(tiny_base, tmp_path, monkeypatch):
    preset = Path(run.ROOT / "presets" / "demo.yaml").read_text(encoding="utf-8")
    short = "".join(line for line in preset.splitlines(True) if not line.startswith(("steps", "batch", "validation_d")))
    changes = "steps: 2\nbatch_size: 1\nvalidation_draws: 1\nthreads: 1\noverride_checks: [amount]\n"
    (tmp_path / "short.yaml").write_text(short + changes, encoding="utf-8")
    for source, target in (("football/train", "train"), ("football/held-out", "held-out"), ("unrelated", "other")):
        (tmp_path / "few" / target).mkdir(parents=True)
        for path in sorted((run.ROOT / "assets" / "pictures" / source).iterdir())[:4]:
            shutil.copy(path, tmp_path / "few" / target)
    monkeypatch.setattr(run, "SEEDS", (3,))
    monkeypatch.setattr(run, "KEPT", run.KEPT[:1])
    monkeypatch.setattr(run, "DRAWING", {"steps": 2, "cfg": 2.0})
    out = tmp_path / "out put 中文"
    few = tmp_path / "few"
    subject = dataclasses.replace(tasks.FOOTBALL, pictures=few, prompts=tasks.FOOTBALL.prompts[:1])
    run.demonstrate(out, run.Task(tiny_base("sd1"), few / "other", 2, str(tmp_path / "short.yaml"), subject=subject))
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert set(FIELDS) <= set(report)
    assert report["steps"] == 2 and Path(report["result"]).is_file()
    assert report["seconds_total"] > report["seconds"] > 0
    with Image.open(out / "before-after.png") as page:
        assert page.width > 700


@pytest.mark.slow
def test_an_aesthetic_gradient_brings_its_folders_look(tmp_path, monkeypatch):
    """The whole demonstration with two of its prompts: the file by the command line, the pictures by the host."""
    monkeypatch.setattr(look, "PROMPTS", dict(list(look.PROMPTS.items())[1:3]))
    monkeypatch.setattr(look, "KEPT", look.KEPT[:1])
    monkeypatch.setattr(look, "SEEDS", (3,))
    monkeypatch.setattr(look, "DRAWING", {**look.DRAWING, "steps": 12})
    out = tmp_path / "out put 中文"
    report = run.demonstrate_look(out)
    assert report["clip_with"] > report["clip_without"] + 0.2
    assert report["colours_with"] > report["colours_without"] + 0.2
    assert report["untouched_difference"] == 0 and "without it every picture is what it was" in report["verdict"]
    assert Path(report["result"]).is_file() and (out / "before-after.png").is_file()
    assert json.loads((out / "report.json").read_text(encoding="utf-8")) == report


@pytest.mark.slow
def test_a_new_word_finds_what_the_base_can_draw(tmp_path, monkeypatch):
    """Textual Inversion on the embedded base as a process, in a third of the demonstration's steps."""
    preset = yaml.safe_load((run.ROOT / "presets" / "demo" / "textual_inversion.yaml").read_text(encoding="utf-8"))
    short = {**preset, "steps": 50, "threads": 1, "validation_draws": 1}
    short["override_checks"] = ["amount"]
    (tmp_path / "short.yaml").write_text(yaml.safe_dump(short), encoding="utf-8")
    monkeypatch.setattr(run, "SEEDS", (3, 11))
    monkeypatch.setattr(run, "KEPT", run.KEPT[:1])
    monkeypatch.setattr(run, "DRAWING", {**run.DRAWING, "steps": 12})
    subject = dataclasses.replace(tasks.ZOG, prompts=tasks.ZOG.prompts[:2])
    task = dataclasses.replace(run.task_for("textual_inversion"), preset=str(tmp_path / "short.yaml"), subject=subject)
    report = run.demonstrate(tmp_path / "out", task)
    assert report["right_without"] <= 0.25 and report["right_with"] >= 0.75
    assert report["prior_loss_trained"] == report["prior_loss_base"]
