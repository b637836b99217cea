"""The trainer over a host's tensors: every method and family, another number format, and a host that ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_lease_tensors import components_of
from tiny_models import make_tiny
from training_helpers import ROOT, events_of, job_values, make_pictures

from extension.jobs.files import write_json
from extension.jobs.lease import MANIFEST, RECORD
from extension.jobs.processes import Identity
from trainers import running, spec
from trainers.engine import attached
from trainers.engine import loop as loops
from trainers.formats.live_tensors import Shared

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is shared on Linux only")


def lend(run: Path, components: dict, pid: int, **more) -> Shared:
    """Writes what a host writes before it starts a trainer that attaches."""
    run.mkdir(parents=True, exist_ok=True)
    shared = Shared(components)
    host = Identity.of(pid)
    assert host is not None
    about = {"attempt": "a", "host": {"pid": pid, "started": host.started}}
    write_json(run / MANIFEST, shared.description(**about, vae_file=""))
    write_json(run / RECORD, {**about, "mode": "attach", "drawing": "", **more})
    write_json(run / "process.json", {"attempt": "a"})
    return shared


def values(base: Path, tmp_path: Path, **options) -> spec.Job:
    data = tmp_path / "data"
    if not data.exists():
        make_pictures(data, 2)
    given = job_values(base, data, **{"name": "ball", "steps": 2, **options})
    return spec.parse({name: value for name, value in given.items() if value is not None})


def both(base: Path, components: dict, tmp_path: Path, **options) -> list[dict[str, torch.Tensor]]:
    """The results of a run that attached and of one from the file."""
    job = values(base, tmp_path, **options)
    shared = lend(tmp_path / "attached", components, os.getpid())
    assert running.start(job, tmp_path / "attached") == running.DONE
    shared.release()
    told = events_of(tmp_path / "attached", "attached")
    assert told and told[0]["bytes"] > 0, events_of(tmp_path / "attached", "note")
    assert running.start(job, tmp_path / "file") == running.DONE
    assert not events_of(tmp_path / "file", "attached")
    ending = ".pt" if job.method == "hypernetwork" else ".safetensors"
    files = [tmp_path / name / f"ball{ending}" for name in ("attached", "file")]
    if ending == ".pt":
        return [_flat(torch.load(file, weights_only=True)) for file in files]
    return [load_file(file) for file in files]


def _flat(content: dict) -> dict[str, torch.Tensor]:
    pairs = {key: parts for key, parts in content.items() if isinstance(key, int)}
    named = {f"{key}.{number}": part for key, parts in pairs.items() for number, part in enumerate(parts)}
    return {f"{key}.{name}": value for key, part in named.items() for name, value in part.items()}


@pytest.mark.parametrize(
    "family, options",
    [
        ("sd1", {"method": "hypernetwork", "rank": None}),
        ("sd2", {"prediction": "v"}),
        ("sdxl", {"method": "textual_inversion", "rank": None, "sample_prompts": ["a ball"], "sample_steps": 1}),
    ],
)
def test_the_result_is_that_of_the_file(family, options, tiny_base, tmp_path):
    ours, theirs = both(tiny_base(family), components_of(family), tmp_path, **options)
    assert ours.keys() == theirs.keys() and ours
    # To rounding: optimizers turn a gradient near zero into a step of full size, so single values may differ.
    learned = [[event[name] for name in ("loss", "grad_norm")] for event in events_of(tmp_path / "attached", "step")]
    wanted = [[event[name] for name in ("loss", "grad_norm")] for event in events_of(tmp_path / "file", "step")]
    assert torch.allclose(torch.tensor(learned), torch.tensor(wanted), rtol=1e-3)
    one, other = (torch.cat([value.float().flatten() for value in result.values()]) for result in (ours, theirs))
    assert (one - other).abs().mean() < 0.02 * other.abs().mean()


def test_over_weights_in_half_precision(tmp_path):
    base = make_tiny("sd1", tmp_path / "half.safetensors", dtype=torch.float16)
    components = components_of("sd1", torch.float16)
    ours, theirs = both(base, components, tmp_path, sample_prompts=["a ball"], sample_steps=1)
    assert ours.keys() == theirs.keys()
    for key in theirs:
        assert torch.allclose(ours[key].float(), theirs[key].float(), rtol=1e-2, atol=1e-4), key
    run = tmp_path / "another kind"
    shared = lend(run, components, os.getpid())
    assert running.start(values(base, tmp_path, kind="dora", train_text_encoder=False), run) == running.DONE
    shared.release()
    assert "the WebUI's are float16" in events_of(run, "note")[0]["text"] and not events_of(run, "attached")


def test_what_cannot_be_mapped_is_loaded_from_the_file(tiny_base, tmp_path):
    run = tmp_path / "run"
    lend(run, components_of("sd1"), os.getpid()).release()
    description = json.loads((run / MANIFEST).read_text())
    for storage in description["storages"]:
        storage["handle"][1]["bytes"] = "L25vdGhpbmc="  # /nothing
    write_json(run / MANIFEST, description)
    assert running.start(values(tiny_base("sd1"), tmp_path), run) == running.DONE
    notes = [event["text"] for event in events_of(run, "note")]
    assert any(
        note.startswith("The base is loaded from its file, because its memory cannot be mapped") for note in notes
    )


def test_an_older_attempts_lease_does_not_count(tmp_path):
    lend(tmp_path, {}, os.getpid())
    assert attached.read_lease(tmp_path).mode == "attach"
    write_json(tmp_path / "process.json", {"attempt": "b"})
    assert attached.read_lease(tmp_path).mode == ""


def test_a_cuda_trainer_whose_host_ends_saves_and_stops(tiny_base, tmp_path, monkeypatch):
    """On the CPU the memory stays when its owner ends, so here it is called CUDA's: what is seen of it is the same."""
    run, base = tmp_path / "run", tiny_base("sd1")
    host = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], cwd=ROOT)
    shared = lend(run, components_of("sd1"), host.pid)
    real = attached.live_base
    monkeypatch.setattr(attached, "live_base", lambda *given: _as_cuda(real(*given)))
    job = values(base, tmp_path).replace(steps=400)

    def kill_soon() -> None:
        while len(events_of(run, "step")) < 3:
            time.sleep(0.02)
        host.kill()
        host.wait()

    threading.Thread(target=kill_soon, daemon=True).start()
    assert running.start(job, run) == running.STOPPED
    shared.release()
    last = events_of(run)[-1]
    assert last["event"] == "stopped" and "has ended" in last["why"]
    state = (run / "state" / "current").read_text().strip()
    assert int(state) == last["step"] == events_of(run, "step")[-1]["step"]
    assert attached.is_alive((host.pid, "")) is False


def test_an_error_of_the_card_after_the_host_ended_is_no_failure(tiny_base, tmp_path, monkeypatch):
    run, base = tmp_path / "run", tiny_base("sd1")
    host = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    shared = lend(run, components_of("sd1"), host.pid)
    real_base, real_step = attached.live_base, loops.micro_step
    monkeypatch.setattr(attached, "live_base", lambda *given: _as_cuda(real_base(*given)))

    def step(session, index):
        if index == 3:
            host.kill()
            host.wait()
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return real_step(session, index)

    monkeypatch.setattr(loops, "micro_step", step)
    assert running.start(values(base, tmp_path, steps=8, state_every=2), run) == running.STOPPED
    shared.release()
    monkeypatch.undo()
    assert events_of(run)[-1]["step"] == 3
    assert running.resume(run) == running.DONE  # from the file: the host that lent its model is gone
    assert events_of(run, "start")[-1]["resumed_from"] == 3 and len(events_of(run, "attached")) == 1


def _as_cuda(live):
    return replace(live, kind="cuda")
