"""Training on the embedded host's own model: no second copy, the same pictures meanwhile, the same result."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
import torch
from jobs_helpers import look_until, until
from safetensors.torch import load_file
from tiny_models import make_tiny
from training_helpers import events_of, job_values, make_pictures

from extension.hosts.embedded.engine import Studio
from extension.hosts.embedded.lease import EmbeddedLender
from extension.hosts.embedded.places import Places
from extension.hosts.embedded.request import Request
from extension.jobs.environment import Environment
from extension.jobs.lease import ATTACH, HAND_OVER, MANIFEST
from extension.jobs.manager import Jobs

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is shared on Linux only")
WIDE = {"unet_widths": (64, 128, 192, 192), "text_widths": (768,)}


class Place:
    """An embedded host over one base, with its queue."""

    def __init__(self, folder: Path, base: Path) -> None:
        self.base = base
        self.studio = Studio(base, Places(folder / "host"), device="cpu")
        self.jobs = Jobs(folder / "runs", Environment(Path(sys.executable), variables={"OMP_NUM_THREADS": "1"}))
        self.jobs.borrow_from(EmbeddedLender(self.studio))
        self.studio.turn = self.jobs.turns.drawing
        self.data = make_pictures(folder / "pictures", 2)

    def submit(self, name: str, **options) -> Path:
        self.jobs.submit(job_values(self.base, self.data, name=name, trigger="ball", **options))
        return self.jobs.runs / name

    def draw(self) -> bytes:
        request = Request(prompt="a ball", steps=2, sampler_name="Euler", seed=7, width=64, height=64)
        return self.studio.draw(request).pictures[0].image.tobytes()

    def until(self, run: Path, *states: str):
        return look_until(self.jobs, run.name, *states, seconds=300)

    def until_free(self) -> None:
        """Until the supervisor has seen that the trainer ended."""
        until(lambda: self.jobs.supervisor.look() or not self.jobs.supervisor._started, 60)


@pytest.fixture
def place(tmp_path, tiny_base):
    made = []

    def make(base: Path | None = None) -> Place:
        made.append(Place(tmp_path, base or tiny_base("sd1")))
        return made[0]

    yield make
    for one in made:
        for view in one.jobs.all():
            one.jobs.supervisor.kill(one.jobs.runs / view.id)


def test_attaching_costs_no_copy_and_changes_nothing(place, tmp_path):
    base = make_tiny("sd1", tmp_path / "wide.safetensors", **WIDE)
    here = place(base)
    drawn = here.draw()
    attached = here.submit("attached", steps=2)
    assert here.until(attached, "training", "done", "failed").state != "failed"
    assert here.draw() == drawn
    view = here.until(attached, "done", "failed")
    assert view.sharing["mode"] == ATTACH
    told = view.sharing["attached"]
    assert told["bytes"] > 400e6 and told["private_bytes"] < told["bytes"] / 10
    here.until_free()
    assert not (attached / MANIFEST).exists() and here.draw() == drawn
    from_file = here.submit("file", steps=2, gpu_sharing="side_by_side")
    assert here.until(from_file, "done", "failed").state == "done"
    assert not events_of(from_file, "attached")
    ours, theirs = (load_file(run / f"{run.name}.safetensors") for run in (attached, from_file))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_killed_attached_trainer_leaves_the_host_its_model(place):
    here = place()
    drawn = here.draw()
    run = here.submit("ball", steps=500, state_every=1)
    here.until(run, "training")
    until(lambda: here.jobs.one("ball").step >= 2, 120)
    assert here.jobs.supervisor.leases.attached == [run]
    here.jobs.supervisor.kill(run)
    here.until_free()
    assert here.jobs.supervisor.leases.attached == [] and not (run / MANIFEST).exists()
    assert here.draw() == drawn
    here.jobs.resume("ball")
    here.until(run, "training", "done")
    until(lambda: here.jobs.one("ball").resumed_from, 120)
    assert here.jobs.one("ball").sharing["mode"] == ATTACH


def test_a_model_is_handed_over_and_comes_back(place):
    here = place()
    drawn = here.draw()
    run = here.submit("ball", steps=300, gpu_sharing="hand_over")
    here.until(run, "training")
    assert not here.studio.model.in_memory
    sharing = here.jobs.one("ball").sharing
    assert sharing["mode"] == HAND_OVER and sharing["freed_bytes"] > 10e6
    here.jobs.supervisor.kill(run)
    here.until_free()
    assert here.studio.model.in_memory and here.draw() == drawn


def test_a_trainer_pauses_while_the_host_draws(place):
    here = place()
    run = here.submit("ball", steps=1000)
    here.until(run, "training")
    with here.jobs.turns.drawing():
        until(lambda: here.jobs.one("ball").is_paused, 60)
        step = here.jobs.one("ball").step
        time.sleep(0.5)
        assert here.jobs.one("ball").step == step
    until(lambda: here.jobs.one("ball").step > step, 60)
    here.jobs.stop("ball")
    here.until(run, "stopped")
    assert not here.jobs.one("ball").is_paused
