"""A run is a folder: where everything of one run lies, and how its files are written so that a kill at any instant
leaves it consistent.

    job.yaml  events.jsonl  log.txt  error.txt  control/  samples/  live/  state/<step>/  state/current
    NAME.safetensors
"""

from __future__ import annotations

import os
import time
import uuid
from pathlib import Path

import torch

from trainers import spec
from trainers.errors import InputError
from trainers.events import EventLog
from trainers.options import result_ending
from trainers.spec import Job


def replace_text(path: Path, text: str) -> None:
    """Write a small text file so that readers see the old or the new one, never a half."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    replace(temporary, path)


def replace(source: Path, target: Path) -> None:
    """`os.replace`, tried again for a second where Windows refuses because a reader or virus scanner has it open."""
    for pause in (0.05, 0.1, 0.2, 0.4) if os.name == "nt" else ():
        try:
            return os.replace(source, target)
        except PermissionError:
            time.sleep(pause)
    os.replace(source, target)


class RunFolder:
    """The paths of one run."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    job_file = property(lambda self: self.path / "job.yaml")
    events_file = property(lambda self: self.path / "events.jsonl")
    error_file = property(lambda self: self.path / "error.txt")
    samples = property(lambda self: self.path / "samples")
    states = property(lambda self: self.path / "state")
    cache = property(lambda self: self.path / "cache")
    verdict = property(lambda self: self.path / "verdict")
    live = property(lambda self: self.path / "live")

    def result(self, job: Job, step: int | None = None) -> Path:
        """Where the result is written; with a step, where an intermediate one is."""
        tail = "" if step is None else f"-{step:06d}"
        return self.path / f"{job.name}{tail}{result_ending(job)}"

    def events(self, write: bool = True) -> EventLog:
        return EventLog(self.events_file if write else None)

    def read_job(self) -> Job:
        """The job of an existing run."""
        if not self.job_file.exists():
            raise InputError(f"{self.path}: this is not a run folder (it has no job.yaml).")
        return spec.parse(spec.read_yaml(self.job_file))


def stamped(job: Job) -> Job:
    """The job with its session id, start time and number of CPU threads (sums are split over them), which are fixed
    once so that a resumed run writes the same bytes."""
    run = dict(job.run)
    run.setdefault("session_id", uuid.uuid4().int >> 96)
    run.setdefault("started_at", round(time.time(), 3))
    run.setdefault("threads", job.threads or torch.get_num_threads())
    return Job(dict(job), run)


def create(job: Job, path: Path) -> tuple[RunFolder, Job]:
    """Make the run folder and write its complete job; refuses a folder that already holds a run."""
    folder = RunFolder(path)
    if folder.job_file.exists():
        raise InputError(
            f"{path}: this folder already holds a run; continue it with `python -m trainers resume`, "
            "or give another folder with --run."
        )
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        job = stamped(job)
        replace_text(folder.job_file, spec.to_yaml(job))
    except OSError as error:
        raise InputError(f"{path}: the run folder cannot be written ({error.strerror or error}).") from None
    return folder, job


def unused_folder(parent: Path, name: str) -> Path:
    """`parent/name`, or with a number behind it when that is taken."""
    candidate, number = parent / name, 2
    while candidate.exists():
        candidate = parent / f"{name}-{number}"
        number += 1
    return candidate
