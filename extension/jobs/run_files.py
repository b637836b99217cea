"""The files of a run that belong to the queue and not to the trainer, and what they say of its process.

    request.yaml    the job as it was asked for
    submitted.json  when, and the key of the request (a request that arrives twice is one run)
    ticket.json     waits: its place in the queue, its device
    process.json    the newest attempt: its process, its device
    ended.json      how that process ended (nothing where nobody could see it)
    asked.json      that it was asked to stop
    lease.json      how the device is shared with the host's model, and why (see extension.jobs.lease)
    host_tensors.json       where a trainer that attaches finds the host's tensors
    log.txt         what it printed

Standard library only, like `extension.jobs.files`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from extension.jobs.files import read_json
from extension.jobs.processes import Identity, was_running

TRASH = ".trash"


def _number(value: object) -> float:
    """A number of a file that a person may have written in; 0 where it is none."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e15
    return value if is_number else 0.0  # type: ignore[return-value]


@dataclass(frozen=True)
class Ticket:
    """A place in the queue; the smallest `position` is first."""

    position: float
    device: str
    queued: float

    @classmethod
    def read(cls, run: Path) -> Ticket | None:
        """The run's place in the queue; None where it does not wait."""
        raw = read_json(run / "ticket.json")
        if raw is None:
            # A ticket that cannot be read (a disk fault) is still a job that waits.
            return cls(0.0, "", 0.0) if (run / "ticket.json").exists() else None
        return cls(_number(raw.get("position")), str(raw.get("device", "")), _number(raw.get("queued")))

    def content(self) -> dict[str, float | str]:
        return asdict(self)


@dataclass(frozen=True)
class Attempt:
    """One process that worked, or works, on a run.

    Attributes:
        key: tells this attempt from every other.
        log_from: size of log.txt when it began.
    """

    key: str
    process: Identity
    device: str
    began: float
    log_from: int = 0

    @classmethod
    def read(cls, run: Path) -> Attempt | None:
        """The newest attempt that the queue started; None where there is none."""
        raw = read_json(run / "process.json")
        if raw is None:
            return None
        process = Identity(int(_number(raw.get("pid"))), str(raw.get("started", "")))
        return cls(
            str(raw.get("attempt", "")), process, str(raw.get("device", "")), _number(raw.get("began")),
            int(_number(raw.get("log_from"))),
        )  # fmt: skip

    def content(self) -> dict[str, object]:
        return {
            "attempt": self.key, "pid": self.process.pid, "started": self.process.started, "device": self.device,
            "began": self.began, "log_from": self.log_from,
        }  # fmt: skip


def run_folders(runs: Path) -> Iterator[Path]:
    """Every run below `runs`; what starts with a dot is the queue's own."""
    try:
        found = sorted(runs.iterdir())
    except FileNotFoundError:
        return
    for path in found:
        if not path.name.startswith(".") and path.is_dir():
            yield path


def living_process(run: Path) -> Identity | None:
    """The process that works on a run now, whoever started it."""
    attempt = Attempt.read(run)
    if attempt and not (run / "ended.json").exists() and attempt.process.is_alive:
        return attempt.process
    return _holder_of_lock(run)


def _holder_of_lock(run: Path) -> Identity | None:
    """The trainer that a person started from a command line: it wrote its number and its start into run.lock."""
    lock = run / "run.lock"
    try:
        pid, started, *_ = [*lock.read_text(encoding="utf-8").split(), "0", ""]
        pid, written = int(pid), lock.stat().st_mtime
    except (OSError, ValueError):
        return None
    if pid <= 0 or ((run / "ended.json").exists() and (run / "ended.json").stat().st_mtime >= written):
        return None
    if "/" in started:  # the clock may have been set since; a boot and the moment since cannot
        found = Identity(pid, started)
        return found if found.is_alive else None
    return Identity.of(pid) if was_running(pid, written) else None


def busy_devices(runs: Path) -> set[str]:
    """Devices on which a job of the queue is running."""
    busy = set()
    for run in run_folders(runs):
        if (run / "ended.json").exists():
            continue
        attempt = Attempt.read(run)
        if attempt and attempt.process.is_alive:
            busy.add(attempt.device)
    return busy


def waiting(runs: Path) -> list[tuple[Ticket, Path]]:
    """The queue, first in front."""
    tickets = ((Ticket.read(run), run) for run in run_folders(runs))
    return sorted(((ticket, run) for ticket, run in tickets if ticket), key=lambda each: (each[0].position, each[1]))


def ended_record(attempt: str, code: int | None, why: str = "") -> dict[str, object]:
    """The content of ended.json; a negative code is a signal, None a process that could not be started."""
    return {"attempt": attempt, "code": code, "why": why, "time": round(time.time(), 3)}
