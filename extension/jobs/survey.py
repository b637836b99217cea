"""What a job would do, said before it is started.

The trainers' own `check` is asked, in their environment and in a process of its own; how long a step takes is known
from former runs on this machine, or estimated from its speed.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from extension.jobs import estimates
from extension.jobs.environment import ROOT, Environment
from extension.jobs.reasons import memory_sentence
from extension.jobs.store import parsed
from extension.recipes import describe_base
from trainers import spec
from trainers.errors import InputError

SECONDS = 180.0
_REJECTED = 2


@dataclass
class Survey:
    """What `check` found.

    Attributes:
        facts: family, prediction, resolution, steps, folders (pictures, captioned, skipped, notes), memory.
        seconds: expected duration of all steps; None where nothing is known.
        seconds_from: the former run whose steps were measured; empty for a rough estimate from the machine's speed.
    """

    facts: dict[str, Any] = field(default_factory=dict)
    seconds: float | None = None
    seconds_from: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def survey(values: Mapping[str, Any], environment: Environment, runs: Path, device: str = "cpu") -> Survey:
    """What a job would train on, for how long, and with how much memory. Takes some seconds.

    Args:
        device: what the job's device is here, such as "cuda:1".

    Raises:
        InputError: every problem of the job.
    """
    job = parsed(values)
    if environment.problem:
        raise InputError(environment.problem)
    facts = _checked(job, environment)
    found = Survey(facts)
    parameters = describe_base(Path(job["base"])).parameters if job.get("base") else 0
    kind = estimates.Kind(str(facts.get("family")), job.method, device, parameters)
    work = estimates.work(facts.get("resolution"), job)
    per_step, found.seconds_from = estimates.seconds_per_step(kind, work, runs)
    found.seconds = round(per_step * facts["steps"], 1) if per_step and facts.get("steps") else None
    return found


def memory_plan(values: Mapping[str, Any], environment: Environment) -> dict[str, Any]:
    """What a job would take now and what is free; empty where the trainers cannot say."""
    try:
        job = spec.parse({name: value for name, value in values.items() if name != "run"})
        return _checked(job, environment).get("memory", {})
    except InputError:
        return {}  # the trainer itself will say what is wrong


def _checked(job: spec.Job, environment: Environment) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="athanor-") as folder:
        file = Path(folder) / "job.yaml"
        file.write_text(spec.to_yaml(job), encoding="utf-8", newline="\n")
        return _ask(environment.command(environment.program, "check", file, "--json"), environment)


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
