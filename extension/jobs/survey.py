"""What a job would do, said before it is started.

The trainers' own `check` is asked, in their environment and in a process of its own; how long a step takes is known
from former runs on this machine, or said to be unknown.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from extension.jobs.environment import ROOT, Environment
from extension.jobs.reasons import memory_sentence
from extension.jobs.run_files import run_folders
from trainers import spec
from trainers.errors import InputError
from trainers.events import read_events

SECONDS = 180.0
_MEASURED_STEPS = 10
_RUNS_LOOKED_AT = 20
_REJECTED = 2


@dataclass
class Survey:
    """What `check` found.

    Attributes:
        facts: family, prediction, resolution, steps, folders (pictures, captioned, skipped, notes), memory.
        seconds: expected duration of all steps; None where nothing like it was trained here yet.
        seconds_from: the run that the estimate is from.
    """

    facts: dict[str, Any] = field(default_factory=dict)
    seconds: float | None = None
    seconds_from: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def survey(values: Mapping[str, Any], environment: Environment, runs: Path) -> Survey:
    """What a job would train on, for how long, and with how much memory. Takes some seconds.

    Raises:
        InputError: every problem of the job.
    """
    job = spec.parse({name: value for name, value in values.items() if name != "run"})
    if environment.problem:
        raise InputError(environment.problem)
    with tempfile.TemporaryDirectory(prefix="athanor-") as folder:
        file = Path(folder) / "job.yaml"
        file.write_text(spec.to_yaml(job), encoding="utf-8", newline="\n")
        facts = _ask(environment.command(environment.program, "check", file, "--json"), environment)
    found = Survey(facts)
    found.seconds, found.seconds_from = _estimate(facts, job, runs)
    return found


def _ask(command: list[str], environment: Environment) -> dict[str, Any]:
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment.process_variables(), stdin=subprocess.DEVNULL, capture_output=True,
            text=True, encoding="utf-8", errors="replace", timeout=SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise InputError(f"Looking at the pictures and the model took longer than {SECONDS:g} seconds.") from None
    except OSError as error:
        raise InputError(f"The trainers cannot be started ({error.strerror or error}).") from None
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    if done.returncode == _REJECTED:
        raise InputError(*(lines or ["The trainers rejected this job."]))
    try:
        return json.loads(done.stdout) if done.returncode == 0 else _failed(done.returncode, lines)
    except ValueError:
        return _failed(done.returncode, lines)


def _failed(code: int, lines: list[str]) -> dict[str, Any]:
    last = lines[-1] if lines else f"exit status {code}"
    raise InputError(memory_sentence(lines) or f"The trainers could not look at this job: {last}")


def _estimate(facts: Mapping[str, Any], job: Mapping[str, Any], runs: Path) -> tuple[float | None, str]:
    """Seconds for all steps, from the newest former run of the same kind; sizes are taken as proportional."""
    wanted = (facts.get("family"), job.get("method"), facts.get("device"))
    for run in _newest(runs):
        kind, work, seconds = _measured(run)
        if kind == wanted and seconds and work:
            per_step = seconds * _work(facts.get("resolution"), job) / work
            return (round(per_step * facts["steps"], 1) if facts.get("steps") else None), run.name
    return None, ""


def _newest(runs: Path) -> Iterator[Path]:
    found = [run for run in run_folders(runs) if (run / "events.jsonl").exists() and (run / "job.yaml").exists()]
    yield from sorted(found, key=lambda run: (run / "events.jsonl").stat().st_mtime, reverse=True)[:_RUNS_LOOKED_AT]


def _work(resolution: Any, job: Mapping[str, Any]) -> float:
    """How much a step does, in units that only compare."""
    return float(resolution or 512) ** 2 * int(job.get("batch_size") or 1) * int(job.get("gradient_accumulation") or 1)


def _measured(run: Path) -> tuple[tuple[Any, ...], float, float | None]:
    """Kind, amount of work and median seconds of a former run's steps."""
    try:
        job = spec.read_yaml(run / "job.yaml")
    except InputError:
        return (), 0.0, None
    events, _ = read_events(run / "events.jsonl")
    plans = [event for event in events if event["event"] == "plan"]
    steps = sorted(event["seconds"] for event in events if event["event"] == "step" and "seconds" in event)
    if not plans or len(steps) < _MEASURED_STEPS:
        return (), 0.0, None
    kind = (plans[-1].get("family"), job.get("method"), plans[-1].get("device"))
    return kind, _work(plans[-1].get("resolution"), job), steps[len(steps) // 2]
