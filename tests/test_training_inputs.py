"""What a person gets wrong: one clear sentence each, exit code 2, no traceback, no run folder."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from training_helpers import job_values, make_pictures, write_job

from trainers import cli


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    return make_pictures(tmp_path_factory.mktemp("pictures") / "my pictures", 3)


@pytest.fixture
def rejected(tiny_base, pictures, tmp_path, capsys, monkeypatch):
    """Runs a job with some changes in this process and gives the sentences it was rejected with."""
    monkeypatch.chdir(tmp_path)

    def run(words: str = "run", **changes) -> str:
        values = {**job_values(tiny_base("sd1"), pictures), **changes}
        job = write_job(tmp_path / "job.yaml", values)
        code = cli.main([words, str(job), *(["--run", str(tmp_path / "run")] if words == "run" else [])])
        text = capsys.readouterr().err
        assert code == 2, text
        assert "Traceback" not in text
        assert not (tmp_path / "run").exists()
        return text

    return run


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rnak": 8}, ["rnak", '"rank"']),
        ({"optimizer": "adamv"}, ["optimizer", "adamw"]),
        ({"rank": 0}, ["rank", "from 1 to 1024"]),
        ({"learning_rate": "fast"}, ["learning_rate", "fast"]),
        ({"rank": ""}, ["rank: is empty", "from 1 to 1024"]),
        ({"steps": 10**7}, ["steps", "from 1 to 1000000 (steps)"]),
        ({"steps": None}, ["steps"]),
        ({"epochs": 3}, ["steps", "epochs"]),
        ({"name": "../evil"}, ["name", "path"]),
        ({"name": ""}, ["name", "empty"]),
        ({"name": "con"}, ["name", "Windows"]),
        ({"method": "lara"}, ["method", "lora"]),
        ({"train_unet": False, "train_text_encoder": False}, ["nothing would be learned"]),
        ({"timestep_min": 500, "timestep_max": 100}, ["timestep_min"]),
        ({"block_ranks": {"dwon_1": 4}}, ["block_ranks", '"down_1"']),
        ({"device": "cuda:9"}, ["device"]),
        ({"precision": "fp16"}, ["precision", "CPU"]),
        ({"optimizer_args": ["betsa=1"]}, ["optimizer_args", '"betas"']),
        ({"zero_terminal_snr": True}, ["zero_terminal_snr", "epsilon"]),
        ({"base": "nowhere.safetensors"}, ["nowhere.safetensors"]),
        ({"data": "nowhere"}, ["data", "does not exist"]),
        ({"validation_data": "nowhere either"}, ["validation_data", "nowhere either"]),
        ({"clip_skip": 99}, ["clip_skip"]),
    ],
)
def test_options(rejected, changes, words):
    text = rejected(**changes)
    assert len(text.strip().splitlines()) == 1, text
    for word in words:
        assert word in text


def test_every_problem_is_said_at_once(rejected):
    text = rejected(rank=-1, seed="x", flipp=True)
    assert all(word in text for word in ("rank", "seed", '"flip"')) and len(text.strip().splitlines()) == 3


def test_no_pictures(rejected, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "empty" in rejected(data=str(tmp_path / "empty"))


def test_only_broken_pictures(rejected, tmp_path):
    folder = make_pictures(tmp_path / "broken", 2)
    for picture in folder.glob("*.png"):
        picture.write_bytes(picture.read_bytes()[:60])
    assert "broken" in rejected(data=str(folder))


def test_missing_captions(rejected, tmp_path):
    folder = make_pictures(tmp_path / "half", 4)
    (folder / "picture 2.txt").unlink()
    text = rejected(data=str(folder))
    assert "caption" in text and "picture 2.png" in text


class _Evil:
    def __reduce__(self):
        return print, ("code was run",)


def test_bases_that_are_none(rejected, tmp_path, tiny_base, capsys):
    evil = tmp_path / "evil.ckpt"
    evil.write_bytes(pickle.dumps(_Evil()))
    text = rejected(base=str(evil))
    assert "evil.ckpt" in text
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(tiny_base("sd1").read_bytes()[:100_000])
    assert "cut.safetensors" in rejected(base=str(cut))
    folder = tmp_path / "not a model"
    folder.mkdir()
    assert "not a model" in rejected(base=str(folder))


def test_a_job_file_that_is_none(tmp_path, capsys):
    (tmp_path / "a.yaml").write_text("rank: [1,\n", encoding="utf-8")
    assert cli.main(["run", str(tmp_path / "a.yaml")]) == 2
    assert "a.yaml" in capsys.readouterr().err
    assert cli.main(["run", str(tmp_path / "none.yaml")]) == 2
    assert cli.main(["resume", str(tmp_path)]) == 2
    assert "not a run folder" in capsys.readouterr().err
    assert cli.main(["lora", "--base", "x"]) == 2
    assert cli.main(["lora", "--base", "x", "--data", "y", "--name", "z", "--set", "rank"]) == 2
    assert "option=value" in capsys.readouterr().err


def test_a_folder_that_holds_a_run_is_kept(tiny_base, pictures, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "job.yaml").write_text("name: old\n", encoding="utf-8")
    job = write_job(tmp_path / "job.yaml", job_values(tiny_base("sd1"), pictures))
    assert cli.main(["run", str(job), "--run", str(tmp_path / "run")]) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert (tmp_path / "run" / "job.yaml").read_text(encoding="utf-8") == "name: old\n"


def test_check_says_what_will_happen(tiny_base, pictures, tmp_path, capsys):
    job = write_job(tmp_path / "job.yaml", job_values(tiny_base("sd1"), pictures))
    assert cli.main(["check", str(job)]) == 0
    shown = capsys.readouterr().out
    assert "3 pictures to train on, 3 with captions" in shown
    assert "Memory plan" in shown and "The job is fine." in shown


def test_a_base_that_lacks_a_layer_is_told_by_the_layers_name(rejected, tiny_base, tmp_path):
    tensors = load_file(tiny_base("sd1"))
    lacking = [name for name in tensors if "output_blocks.3.0.skip_connection" in name]
    broken = tmp_path / "broken 基.safetensors"
    save_file({name: tensor for name, tensor in tensors.items() if name not in lacking}, broken)
    told = rejected(base=str(broken), conv_rank=4)
    assert lacking and "base" in told and "broken 基.safetensors" in told and "has no layer" in told
