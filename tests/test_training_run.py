"""The trainer as a user runs it: a process, a job file, a run folder, a file that comes out."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from training_helpers import (
    command,
    environment,
    events_of,
    header_of,
    job_values,
    make_pictures,
    run_trainer,
    write_job,
)

from trainers.events import send_command
from trainers.formats.hashes import file_body_sha256
from trainers.formats.safetensors_io import load

LIVELY = {  # everything that draws random numbers or keeps state, so that a resume has something to get wrong
    "steps": 8,
    "batch_size": 2,
    "state_every": 3,
    "shuffle_captions": True,
    "caption_drop": 0.2,
    "dropout": 0.1,
    "flip": True,
    "crop": "random",
    "ema": 0.9,
    "noise_offset": 0.05,
    "warmup": 2,
    "schedule": "cosine_restarts",
    "gradient_accumulation": 2,
    "learning_rate": 0.001,
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    return make_pictures(tmp_path_factory.mktemp("data") / "10_ball 图片", 5)


@pytest.fixture(scope="module")
def uninterrupted(tiny_base, pictures, tmp_path_factory) -> Path:
    """The result of the lively job, run from beginning to end."""
    folder = tmp_path_factory.mktemp("straight")
    job = write_job(folder / "job.yaml", job_values(tiny_base("sd1"), pictures, **LIVELY))
    finished = run_trainer("run", job, "--run", folder / "run")
    assert finished.returncode == 0, finished.stderr
    return folder / "run" / "测试 ball.safetensors"


def test_a_run_folder_and_a_file_come_out(uninterrupted):
    run = uninterrupted.parent
    header = header_of(uninterrupted)
    metadata = header.pop("__metadata__")
    sites = {key.partition(".")[0] for key in header}
    assert len(sites) == 192 + 72
    assert {key.partition(".")[2] for key in header} == {"lora_down.weight", "lora_up.weight", "alpha"}
    assert list(metadata) == sorted(metadata)
    assert metadata["ss_network_dim"] == "4" and metadata["ss_network_alpha"] == "2.0"
    assert metadata["ss_steps"] == "8" and metadata["ss_base_model_version"] == "sd_v1"
    assert metadata["ss_num_train_images"] == "50"
    assert metadata["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert metadata["sshs_model_hash"] == file_body_sha256(uninterrupted)
    assert "ss_training_finished_at" not in metadata
    assert str(run) not in json.dumps(metadata, ensure_ascii=False)
    job = yaml.safe_load((run / "job.yaml").read_text(encoding="utf-8"))
    assert job["learning_rate"] == 0.001 and job["family"] == "sd1" and job["precision"] == "fp32"
    kinds = [event["event"] for event in events_of(run)]
    assert kinds[0] == "plan" and kinds[-1] == "done" and kinds.count("step") == 8
    assert not list(run.rglob("*.tmp")) and not list(run.rglob("*.part"))


def _wait_for_step(process: subprocess.Popen, run: Path, step: int) -> None:
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and process.poll() is None:
        if any(event["step"] >= step for event in events_of(run, "step")):
            return
        time.sleep(0.02)
    raise AssertionError(f"the run never reached step {step}")


def _started(tiny_base, pictures, folder: Path, **changes) -> tuple[subprocess.Popen, Path]:
    job = write_job(folder / "job.yaml", job_values(tiny_base("sd1"), pictures, **{**LIVELY, **changes}))
    process = subprocess.Popen(
        command("run", job, "--run", folder / "run"), env=environment(), stderr=subprocess.DEVNULL
    )
    return process, folder / "run"


@pytest.mark.parametrize("step", [1, 5, 7])
def test_killed_and_resumed_gives_the_same_bytes(tiny_base, pictures, uninterrupted, tmp_path, step):
    process, run = _started(tiny_base, pictures, tmp_path)
    _wait_for_step(process, run, step)
    process.kill()
    process.wait()
    assert not (run / uninterrupted.name).exists()
    resumed = run_trainer("resume", run)
    assert resumed.returncode == 0, resumed.stderr
    assert (run / uninterrupted.name).read_bytes() == uninterrupted.read_bytes()


def test_commands_samples_and_validation_change_nothing(tiny_base, pictures, uninterrupted, tmp_path):
    held_out = make_pictures(tmp_path / "held out", 2, caption="a ball")
    process, run = _started(
        tiny_base, pictures, tmp_path,
        sample_prompts=["a red ball"], sample_steps=2, validation_data=str(held_out), validate_every=4, save_every=3,
    )  # fmt: skip
    _wait_for_step(process, run, 1)
    for asked in ("save", "sample", "snapshot"):
        send_command(run, asked)
    _wait_for_step(process, run, 3)
    send_command(run, "stop")
    assert process.wait(timeout=200) == 3
    stopped = events_of(run, "stopped")
    assert len(stopped) == 1 and (run / "state" / "current").exists()
    resumed = run_trainer("resume", run)
    assert resumed.returncode == 0, resumed.stderr
    own, other = header_of(run / uninterrupted.name), header_of(uninterrupted)
    # Only how many pictures were held out may differ: it is a fact of the job, not of the weights.
    assert own.pop("__metadata__")["ss_num_validation_images"] == "2"
    assert other.pop("__metadata__")["ss_num_validation_images"] == "0"
    assert own == other
    assert file_body_sha256(run / uninterrupted.name) == file_body_sha256(uninterrupted)
    assert len(events_of(run, "snapshot")) >= 1
    assert len(list((run / "samples").glob("*.png"))) >= 3
    assert len(events_of(run, "validation")) >= 3
    again = run_trainer("resume", run)
    assert again.returncode == 0 and "is done" in again.stdout


@pytest.mark.skipif(not hasattr(signal, "SIGTERM"), reason="needs POSIX signals")
def test_a_polite_termination_saves(tiny_base, pictures, tmp_path):
    process, run = _started(tiny_base, pictures, tmp_path, steps=500)
    _wait_for_step(process, run, 2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=100) == 3
    step = events_of(run, "stopped")[0]["step"]
    assert json.loads((run / "state" / f"{step:08d}" / "counters.json").read_text())["step"] == step
    second = subprocess.Popen(command("resume", run), env=environment(), stderr=subprocess.DEVNULL)
    try:
        _wait_for_step(second, run, step + 1)
        third = run_trainer("resume", run)
        assert third.returncode == 2 and "another trainer" in third.stderr
    finally:
        second.kill()
        second.wait()


def test_two_processes_train_like_one(tiny_base, pictures, tmp_path):
    # A large eps: where a gradient is almost zero, Adam's g / |g| would turn rounding into whole steps.
    same = {"steps": 3, "learning_rate": 0.01, "optimizer_args": ["eps=0.001"], "save_dtype": "fp32"}
    one = write_job(tmp_path / "one.yaml", job_values(tiny_base("sd1"), pictures, batch_size=4, **same))
    two = write_job(tmp_path / "two.yaml", job_values(tiny_base("sd1"), pictures, batch_size=2, **same))
    alone = run_trainer("run", one, "--run", tmp_path / "one")
    assert alone.returncode == 0, alone.stderr
    words = "--multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no"
    together = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", *words.split(), "--main_process_port", "0",
         "-m", "trainers", "run", str(two), "--run", str(tmp_path / "two")],
        env=environment(), capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert together.returncode == 0, together.stderr[-3000:]
    first, _ = load(tmp_path / "one" / "测试 ball.safetensors")
    second, metadata = load(tmp_path / "two" / "测试 ball.safetensors")
    assert metadata["ss_total_batch_size"] == "4"
    moved = max(float(tensor.abs().max()) for name, tensor in first.items() if "lora_up" in name)
    worst = max(float((first[name] - second[name]).abs().max()) for name in first)
    assert moved > 1e-5 and worst < 0.001 * moved


def test_a_full_disk_leaves_no_half_file(tiny_base, pictures, tmp_path):
    resource = pytest.importorskip("resource")
    job = write_job(tmp_path / "job.yaml", job_values(tiny_base("sd1"), pictures, steps=3, rank=16))

    def small_files_only() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))

    process = subprocess.run(
        command("run", job, "--run", tmp_path / "run"),
        env=environment(), capture_output=True, text=True, timeout=300, preexec_fn=small_files_only,
    )  # fmt: skip
    assert process.returncode == 1
    assert "Traceback" not in process.stderr and "disk" in process.stderr
    assert not (tmp_path / "run" / "测试 ball.safetensors").exists()
    assert not list((tmp_path / "run").glob("*.part"))
    resumed = run_trainer("resume", tmp_path / "run")
    assert resumed.returncode == 0, resumed.stderr


def test_a_base_that_gives_nan_stops_with_advice(tiny_base, pictures, tmp_path):
    import torch
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken.safetensors"
    tensors = load_file(shutil.copy(tiny_base("sd1"), broken))
    tensors["model.diffusion_model.input_blocks.0.0.weight"].fill_(torch.nan)
    save_file(tensors, broken)
    job = write_job(tmp_path / "job.yaml", job_values(broken, pictures, steps=100))
    process = run_trainer("run", job, "--run", tmp_path / "run")
    assert process.returncode == 1
    assert "Lower learning_rate" in process.stderr and "Traceback" not in process.stderr
    assert not (tmp_path / "run" / "测试 ball.safetensors").exists()
    assert len(events_of(tmp_path / "run", "rollback")) == 3
    assert (tmp_path / "run" / "error.txt").exists()
