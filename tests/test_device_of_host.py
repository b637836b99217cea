"""`device: auto` is the device that the WebUI draws on, from the host's flag to the trainer's process."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
from jobs_helpers import fake_environment, kill_all, look_until, values

from extension.hosts import workshops
from extension.hosts.a1111 import A1111
from extension.hosts.forge import Forge
from extension.hosts.reforge import ReForge
from extension.jobs.estimates import Kind
from extension.jobs.manager import Jobs
from extension.jobs.run_files import Ticket
from trainers.engine.precision import device_for
from trainers.errors import InputError
from trainers.events import read_events
from trainers.spec import AUTO_DEVICE


@pytest.mark.parametrize("made", [A1111, Forge, ReForge])
@pytest.mark.parametrize(
    ("drawn_on", "trained_on"),
    [
        (torch.device("cuda", 1), "cuda:1"),  # --device-id 1
        (torch.device("cuda"), "cuda:0"),  # A1111 without the flag
        (torch.device("cpu"), "cpu"),  # --use-cpu all, --always-cpu
        (torch.device("mps"), "mps"),
        (torch.device("privateuseone", 0), "cpu"),  # DirectML: the trainers do not know it, and there is no other here
        (None, "cpu"),
    ],
)
def test_auto_is_what_a_host_draws_on(made, drawn_on, trained_on, monkeypatch):
    devices = SimpleNamespace(device=drawn_on)
    monkeypatch.setitem(sys.modules, "modules", SimpleNamespace(devices=devices))
    monkeypatch.setitem(sys.modules, "modules.devices", devices)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert workshops.auto_device(made()) == trained_on


def _start_of(jobs: Jobs, run: str) -> dict:
    look_until(jobs, run, "done")
    events, _ = read_events(jobs.runs / run / "events.jsonl")
    return next(event for event in events if event["event"] == "start")


def test_the_queue_and_the_trainer_are_told_the_same(tmp_path):
    jobs = Jobs(tmp_path / "runs", fake_environment(), "cuda:1")
    assert jobs.environment.process_variables()[AUTO_DEVICE] == "cuda:1"  # for `check` and its memory plan
    try:
        jobs.submit(values("auto", device="auto"))
        jobs.submit(values("named", device="cuda:0"))
        assert [Ticket.read(jobs.runs / run).device for run in ("auto", "named")] == ["cuda:1", "cuda:0"]
        assert _start_of(jobs, "auto")["device"] == "cuda:1"
        assert _start_of(jobs, "named")["device"] == "cuda:0"

        # Queued before the WebUI was started again with another card: it trains where the queue keeps room for it.
        jobs.submit(values("before", device="auto"))
        assert _start_of(Jobs(jobs.runs, fake_environment(), "cuda:0"), "before")["device"] == "cuda:1"
    finally:
        kill_all(jobs)


def test_a_trainer_takes_the_named_card_for_auto_alone(monkeypatch):
    monkeypatch.setenv(AUTO_DEVICE, "cuda:1")
    with pytest.raises(InputError, match="'cuda:1' was asked for"):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        device_for("auto")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert device_for("auto") == torch.device("cuda", 1)
    assert device_for("cuda") == torch.device("cuda", 0) and device_for("cpu") == torch.device("cpu")
    monkeypatch.delenv(AUTO_DEVICE)
    assert device_for("auto") == torch.device("cuda", 0)


def test_what_one_card_measured_holds_for_the_others():
    assert Kind("sd1", "lora", "cuda:1") == Kind("sd1", "lora", "cuda") != Kind("sd1", "lora", "cpu")
