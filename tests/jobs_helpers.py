"""Queues with the fake trainer."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from extension.jobs.environment import ROOT, Environment
from extension.jobs.manager import Jobs

TESTS = Path(__file__).resolve().parent


def fake_environment() -> Environment:
    return Environment(Path(sys.executable), "fake_trainer", (ROOT, TESTS), {"OMP_NUM_THREADS": "1"})


def fake_jobs(runs: Path) -> Jobs:
    return Jobs(runs, fake_environment())


def kill_all(jobs: Jobs) -> None:
    """Ends every trainer that still works for `jobs`; for the end of a test."""
    for view in jobs.all():
        jobs.supervisor.kill(jobs.runs / view.id)


def values(name: str = "ball", **changes: Any) -> dict[str, Any]:
    job = {"method": "lora", "name": name, "base": "b.safetensors", "data": "d", "steps": 5, "device": "cpu"}
    return {**job, **changes}


def until(what: Callable[[], Any], seconds: float = 30.0) -> Any:
    """Waits until `what()` is true and returns it."""
    end = time.monotonic() + seconds
    while True:
        found = what()
        if found:
            return found
        assert time.monotonic() < end, f"{what} did not become true in {seconds} seconds"
        time.sleep(0.03)


def look_until(jobs: Jobs, run_id: str, *states: str, seconds: float = 60.0) -> Any:
    """Lets the supervisor look until the run is in one of `states`; returns its view."""

    def reached() -> Any:
        jobs.supervisor.look()
        view = jobs.one(run_id)
        return view if view.state in states else None

    return until(reached, seconds)


def attempts(jobs: Jobs, run_id: str) -> list[str]:
    """One line for each process that ever worked on the run."""
    file = jobs.runs / run_id / "counts.txt"
    return file.read_text().splitlines() if file.exists() else []
