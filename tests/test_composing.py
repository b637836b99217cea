"""Recipes from answers: every combination is a job, the pace is exposures, memory keeps the effective batch."""

from __future__ import annotations

import os
import shlex
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pytest

from extension import choosing, composing, job_files, own_presets
from extension.composing import Wish, compose, methods
from extension.jobs import estimates
from extension.recipes import Base
from trainers import spec
from trainers.engine import memory
from trainers.errors import InputError
from trainers.options import METHODS, ONE_PASS, fields_for
from trainers.presets import load_preset

FILE = Path("m.safetensors")
BASES = {
    "sd1": Base(FILE, "m", "sd1"), "sd2": Base(FILE, "m", "sd2"), "sdxl": Base(FILE, "m", "sdxl"),
    "toy": Base(FILE, "m", "sd1", 64, parameters=7_299_140), "unknown": Base(FILE, "m"),
}  # fmt: skip
PARAMETERS = {
    "sd1": {"unet": 859_520_964, "text_encoder": 123_060_480, "vae": 83_653_863},
    "sd2": {"unet": 865_910_724, "text_encoder": 340_387_840, "vae": 83_653_863},
    "sdxl": {
        "unet": 2_567_463_684, "text_encoder": 123_060_480, "text_encoder_2": 694_659_840, "vae": 83_653_863,
    },
}  # fmt: skip
ADAPTER = {"sd1": 1.2e6, "sdxl": 2.9e6}  # values of a LoRA for each rank


def _job(values):
    asked = {"name": "x", "base": "b.safetensors", "data": "d", "clip_model": "c"}
    known = {option.name for option in fields_for(values["method"])}
    return spec.parse({**values, **{name: value for name, value in asked.items() if name in known}})


def _batch(values):
    return values.get("batch_size", 1) * values.get("gradient_accumulation", 1)


def test_every_combination_is_a_valid_job():
    sizes = (None, *composing.memory_classes())
    combinations = product(BASES.values(), composing.table("purposes"), composing.table("paces"), METHODS, sizes)
    for base, purpose, pace, method, size in combinations:
        made = compose(Wish(base, purpose, pace, method, size))
        assert _job(made.values).method == method
        taught = _batch(made.values) / (2 if made.values.get("kept_word") else 1)
        assert made.exposures is None or made.exposures == round(made.values["steps"] * taught)


def test_the_pace_is_exposures_and_ends_before_pictures_are_learned_by_heart():
    full = compose(Wish(BASES["sd1"], "style"))
    assert compose(Wish(BASES["sd1"], "style", "thorough")).exposures == 2 * full.exposures
    assert compose(Wish(BASES["sd1"], "style", "quick")).exposures == pytest.approx(0.4 * full.exposures, abs=2)
    assert compose(Wish(BASES["sd1"], "object", "quick")).exposures == composing.LEAST_EXPOSURES
    few = compose(Wish(BASES["sd1"], "style", pictures=4))
    assert few.capped and few.exposures == 2000 and few.values["warmup"] == pytest.approx(50, abs=1)


@pytest.mark.parametrize("size", composing.memory_classes())
@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_memory_keeps_the_effective_batch_names_what_it_alters_and_fits(family, size):
    for purpose in composing.table("purposes"):
        plain = compose(Wish(BASES[family], purpose))
        fitted = compose(Wish(BASES[family], purpose, memory=size))
        assert _batch(fitted.values) == _batch(plain.values) and fitted.exposures == plain.exposures
        unsaid = {name for name in fitted.values if fitted.values[name] != plain.values.get(name)}
        assert unsaid - {"batch_size", "gradient_accumulation"} == set(fitted.changes)
        job = _job({**fitted.values, "precision": "bf16"})
        plan = memory.make_plan(
            family=family, parameters=PARAMETERS[family], trainable=int(job.rank * ADAPTER[family]), job=job,
            resolution=job.resolution, device_type="cuda", free_bytes=int((size - 0.6) * 2**30),
        )  # fmt: skip
        assert plan.fits, (purpose, plan.lines())
        assert plan.base_dtype != "fp8" or "base_dtype" in fitted.changes


# Values of the UNet's cross-attention, of a hypernetwork's layers, and of a LoRA for each rank, at the published sizes.
CROSS_ATTENTION = {"sd1": 43_962_560, "sd2": 50_352_320, "sdxl": 545_670_400}
NETWORKS = {"sd1": 21.9e6, "sd2": 25.6e6, "sdxl": 50e6}
RANK = {"sd1": 1.2e6, "sd2": 1.3e6, "sdxl": 2.9e6}


@pytest.mark.parametrize("family", list(CROSS_ATTENTION))
@pytest.mark.parametrize("method", [name for name in METHODS if name not in ONE_PASS])
def test_the_table_of_methods_says_what_the_memory_plan_does(family, method):
    """For the smallest card's recipe, with the base as that recipe keeps it, and what the driver takes."""
    job = _job({**compose(Wish(BASES[family], method=method, memory=6)).values, "precision": "bf16"})
    trained = {"textual_inversion": 1e4, "dreambooth": CROSS_ATTENTION[family], "hypernetwork": NETWORKS[family]}
    plan = memory.make_plan(
        family=family, parameters=PARAMETERS[family], job=job, resolution=job.resolution or 768, device_type="cuda",
        trainable=int(trained.get(method) or job.rank * RANK[family]), free_bytes=None,
    )  # fmt: skip
    exact = [one for one in (plan, *plan.smaller_plans) if one.base_dtype == job.base_dtype or one.base_dtype != "fp8"]
    smallest = min(one.peak_bytes for one in exact) + memory.DRIVER
    assert methods()[method]["memory"][family] == pytest.approx(smallest / 2**30, rel=0.08)


def test_a_toy_learns_by_the_recipe_of_the_demonstration():
    from trainers.demo.tasks import TRAINED, task_for

    for method in TRAINED:
        shown, made = load_preset(task_for(method).preset), compose(Wish(BASES["toy"], "style", method=method))
        assert made.preset == task_for(method).preset and "toy" not in methods()[method].get("recipe", {})
        assert {**shown, **made.values} == {**made.values, "method": method} and made.values["steps"] == shown["steps"]
        assert bool(made.values.get("regularisation_data")) == ("prior_weight" in shown)


def test_a_toys_recipe_shows_the_pictures_that_hold_it_to_its_base():
    toy = compose(Wish(BASES["toy"])).values
    assert any(Path(toy["regularisation_data"]).glob("*.png")) and toy["prior_target"] == "base"
    assert "regularisation_data" not in compose(Wish(BASES["sd1"])).values
    assert "regularisation_data" not in compose(Wish(BASES["toy"], method="aesthetic_gradient")).values


def test_nobody_with_the_embedded_base_has_to_name_a_clip_model():
    made = compose(Wish(BASES["toy"], "style", method="aesthetic_gradient")).values
    assert (Path(made["clip_model"]) / "config.json").is_file()
    assert "clip_model" not in compose(Wish(BASES["sd1"], "style", method="aesthetic_gradient")).values


def test_what_is_no_choice_is_named():
    with pytest.raises(InputError) as told:
        compose(Wish(BASES["sd1"], "persn", "never", "loraa", 7, "sd1-persn"))
    assert len(told.value.problems) == 5 and 'Did you mean "person"' in told.value.problems[0]


def test_a_cards_memory_has_a_class():
    sizes = [None, 4, 6, 7.99, 11, 15.8, 80]
    assert [composing.memory_class(size and int(size * 2**30)) for size in sizes] == [None, None, 6, 8, 8, 12, 24]


def test_the_chooser_advises_what_can_be_done(tmp_path):
    def rows(family="sd1", **said):
        found = choosing.answer(choosing.Question(BASES[family], "person", **said), tmp_path)
        return {row["name"]: row for row in found}

    usual = rows(pictures=20, memory=8)
    assert usual["lora"]["advised"] and next(iter(usual)) == "lora"
    assert not usual["dreambooth"]["against"] and usual["hypernetwork"]["older"]
    assert rows("sdxl", memory=6)["pivotal"]["against"] == [("needs about {0} GB of graphics memory", [7])]
    few = rows(pictures=3, memory=8)
    assert few["textual_inversion"]["advised"] and few["lora"]["against"] == [("needs at least {0} pictures", [5])]
    assert all(row["seconds"] and not row["measured"] for name, row in usual.items() if name != "aesthetic_gradient")


def test_a_former_run_replaces_the_rough_estimate(tmp_path):
    run = tmp_path / "one"
    run.mkdir()
    (run / "job.yaml").write_text("method: lora\nbatch_size: 2\n")
    lines = ['{"event": "plan", "time": 1, "family": "sd1", "device": "cpu", "resolution": 512}']
    lines += ['{"event": "step", "time": 1, "step": 1, "seconds": 3.0}'] * 9
    kind, size = estimates.Kind("sd1", "lora", "cpu"), estimates.work(512, {"batch_size": 4})
    (run / "events.jsonl").write_text("\n".join(lines) + "\n")
    assert estimates.seconds_per_step(kind, size, tmp_path)[1] == ""
    (run / "events.jsonl").write_text("\n".join([*lines, lines[-1]]) + "\n")
    assert estimates.seconds_per_step(kind, size, tmp_path) == (6.0, "one")
    # Steps of eight times the work are an estimate still, and those of a toy say nothing of a real model.
    assert estimates.seconds_per_step(kind, 4 * size, tmp_path) == (24.0, "")
    toy = estimates.Kind("sd1", "lora", "cpu", 7_000_000)
    assert estimates.seconds_per_step(toy, size, tmp_path)[1] == ""
    other = tmp_path / "another"
    other.mkdir()
    (other / "job.yaml").write_text("method: lora\nbatch_size: 16\n")
    (other / "events.jsonl").write_text("\n".join([lines[0], *[lines[1].replace("3.0", "9.0")] * 10]) + "\n")
    assert estimates.seconds_per_step(kind, 4 * size, tmp_path) == (9.0, "another")
    assert estimates.seconds_per_step(kind, size, tmp_path) == (6.0, "one")


def test_own_presets_keep_the_form_and_are_recipes_for_the_command_line(tmp_path):
    own = own_presets.OwnPresets(tmp_path / "presets")
    own.save(
        "my faces 脸", {"method": "lora", "rank": 8, "name": "x", "data": "d", "alpha": None}, {"pace": "quick", "x": 1}
    )
    assert own.names() == ["my faces 脸"]
    loaded = own.load("my faces 脸")
    assert loaded["answers"] == {"pace": "quick"} and loaded["values"]["rank"] == 8
    # What was at its default when it was kept is so again, whatever the recipe of the form says.
    assert loaded["values"]["debiased"] is False and not {"name", "trigger", "data", "base"} & loaded["values"].keys()
    from trainers.presets import load_preset

    assert load_preset(str(tmp_path / "presets" / "my faces 脸.yaml")) == {"method": "lora", "rank": 8}
    for name in ("../x", "", ".x", "a/b", "con"):
        with pytest.raises(InputError):
            own.save(name, {}, {})
    with pytest.raises(InputError, match="rank"):
        own.save("y", {"rank": -1}, {})
    for rank in (16, 16):
        own.save("my faces 脸", {"method": "lora", "rank": rank}, {})
    (replaced,) = (tmp_path / "presets" / ".trash").iterdir()
    assert "rank: 8" in replaced.read_text(encoding="utf-8")
    own.delete("my faces 脸")
    assert own.names() == [] and len(list((tmp_path / "presets" / ".trash").iterdir())) == 2


@pytest.mark.skipif(os.name == "nt", reason="takes a command of a POSIX shell apart")
def test_a_command_line_says_the_same_as_the_form():
    odd = {"trigger": 'it\'s a "zwx"', "sample_prompts": ["a [cat|dog], $HOME", "`id`; rm"], "block_lrs": {"mid": 0.5}}
    values = {"name": "odd name", "base": "b.safetensors", "data": "/a b/数据", "steps": 5, "flip": True, **odd}
    words = shlex.split(job_files.as_command(values, SimpleNamespace(python="python")))
    start, options = words.index("lora"), words.index("--set")
    said = dict(zip((word[2:] for word in words[start + 1 : options : 2]), words[start + 2 : options : 2], strict=True))
    said |= dict(word.split("=", 1) for word in words[options + 1 :])
    assert dict(spec.parse(said)) == dict(spec.parse(values))
