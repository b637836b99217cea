"""Reads run folders: events as they are appended, and everything else that tells a run's state."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from extension.jobs import reasons, view
from extension.jobs.files import read_json
from extension.jobs.lease import read_record
from extension.jobs.run_files import Attempt, Ticket, living_process, run_folders, waiting
from extension.jobs.view import RunView, Summary
from trainers import spec
from trainers.errors import InputError
from trainers.events import read_events

REJECTED, STOPPED_CODE = 2, 3
"""Exit codes of the trainer."""


class _Followed:
    """The events of one run so far, and its job file."""

    def __init__(self) -> None:
        self.summary, self.offset, self.inode = Summary(), 0, 0
        self.job: dict[str, Any] = {}
        self._job_stamp: tuple[str, int] | None = None

    def read(self, run: Path) -> None:
        """Takes what was appended since the last look."""
        events_file = run / "events.jsonl"
        try:
            status = events_file.stat()
        except OSError:
            status = None
        if status is None or status.st_size < self.offset or status.st_ino != self.inode:
            self.summary, self.offset = Summary(), 0
        self.inode = status.st_ino if status else 0
        events, self.offset = read_events(events_file, self.offset)
        for event in events:
            self.summary.take(event)
        self._read_job(run)

    def _read_job(self, run: Path) -> None:
        for file in (run / "job.yaml", run / "request.yaml"):
            try:
                stamp = (file.name, file.stat().st_mtime_ns)
            except OSError:
                continue
            if stamp != self._job_stamp:
                try:
                    self.job, self._job_stamp = spec.read_yaml(file), stamp
                except InputError:
                    continue
            return


class Watcher:
    """Views of the runs below one folder. May be asked from several threads.

    Attributes:
        without_live: methods whose results the host draws by itself, from finished files only.
    """

    without_live: frozenset[str] = frozenset()

    def __init__(self, runs: Path) -> None:
        self.runs = Path(runs)
        self._followed: dict[str, _Followed] = {}
        self._lock = threading.Lock()

    def all(self) -> list[RunView]:
        """Every run, without its log: what works first, then what waits, then the newest."""
        places = {run: index for index, (_, run) in enumerate(waiting(self.runs), 1)}
        folders = list(run_folders(self.runs))
        with self._lock:
            for gone in set(self._followed) - {run.name for run in folders}:
                del self._followed[gone]
        views = [self.one(run, places, log=False) for run in folders if _is_run(run)]
        return sorted(views, key=_order)

    def one(self, run: Path, places: dict[Path, int] | None = None, log: bool = True) -> RunView:
        """One run; `log`: with the end of what its trainers printed."""
        if places is None:
            places = {each: index for index, (_, each) in enumerate(waiting(self.runs), 1)}
        try:
            made = self._look(run, places, log)
            _order(made)
            return made
        except (TypeError, ValueError, AttributeError, OverflowError) as error:  # one run must not hide the others
            why = f"{run.name}: its files say what they cannot say ({error}); mend its job.yaml, or delete it."
            return RunView(id=run.name, name=run.name, state=view.FAILED, problems=[why], actions=("delete",))

    def _look(self, run: Path, places: dict[Path, int], log: bool) -> RunView:
        # In this order: a process that has ended before the events are read has written all of them.
        process = living_process(run)
        ticket = Ticket.read(run)
        with self._lock:
            followed = self._followed.setdefault(run.name, _Followed())
            followed.read(run)
            made = _known(run, followed)
            made.log = reasons.log_tail(run / "log.txt") if log else []
            outcome, failures = followed.summary.outcome, list(followed.summary.failures)
            is_training = followed.summary.is_training
        made.place = places.get(run) if ticket else None
        _judge(made, run, process is not None, ticket, outcome, failures, is_training)
        made.actions = _actions(made, run, made.has_live and made.method not in self.without_live)
        return made


def _is_run(run: Path) -> bool:
    return any((run / name).exists() for name in ("request.yaml", "job.yaml", "events.jsonl"))


def _order(made: RunView) -> tuple[int, float, str]:
    if made.state in view.AT_WORK:
        return 0, made.started or 0, made.id
    if made.state == view.QUEUED:
        return 1, made.place or 0, made.id
    return 2, -(made.ended or made.started or made.submitted or 0), made.id


def _sharing(run: Path, told: Summary) -> dict[str, Any]:
    record = read_record(run)
    if not record:
        return {}
    return {**{name: record.get(name) for name in ("mode", "reason", "freed_bytes")}, "attached": told.attached}


def _known(run: Path, followed: _Followed) -> RunView:
    """What events and files say, without a judgement on the state."""
    told, job = followed.summary, followed.job
    samples, outputs = told.files(run)
    attempt = Attempt.read(run)
    steps = told.steps or job.get("steps")
    return RunView(
        id=run.name, name=str(job.get("name") or run.name), method=str(job.get("method", "")),
        trigger=str(job.get("trigger") or ""), base=Path(str(job.get("base", ""))).name,
        device=attempt.device if attempt else str(job.get("device", "")),
        submitted=(read_json(run / "submitted.json") or {}).get("time"),
        started=told.started, ended=told.ended, step=told.step, steps=steps, epoch=told.epoch,
        progress=min(1.0, told.step / steps) if steps else 0.0,
        doing=told.doing, done_parts=told.done_parts, parts=told.parts,
        eta=told.eta, eta_measured=told.eta_measured, seconds_per_step=told.seconds_per_step,
        loss_average=told.loss_average,
        resumed_from=told.resumed_from, losses=list(told.losses), validations=list(told.validations),
        sharing=_sharing(run, told), is_paused=told.is_paused,
        samples=samples, outputs=outputs, notes=list(told.notes), plan=dict(told.plan),
        live=told.live, best=told.best, verdict=told.verdict if _has(run, told.verdict) else None,
        wants_publishing=bool(job.get("publish")), published=read_json(run / "published.json"),
        generation=told.generation,
    )  # fmt: skip


def _has(run: Path, said: dict[str, Any] | None) -> bool:
    return bool(said) and (run / str(said.get("path"))).is_file()


def _judge(
    made: RunView, run: Path, is_alive: bool, ticket: Ticket | None, outcome: str | None, failures: list[str],
    is_training: bool,
) -> None:  # fmt: skip
    """Sets the state, and says why where something ended."""
    asked = read_json(run / "asked.json")
    if is_alive and outcome is None:
        made.state = view.TRAINING if is_training else view.PREPARING
        if asked:
            made.state = view.STOPPING
        return
    if ticket is not None:
        made.state, made.eta = view.QUEUED, None
        return
    made.eta = None
    if outcome is not None:
        made.state = outcome
        if outcome == view.FAILED:
            sentence = reasons.memory_sentence(failures)
            made.problems = [sentence, *failures[-1:]] if sentence else failures
        return
    _judge_silence(made, run, asked)


def _judge_silence(made: RunView, run: Path, asked: dict[str, Any] | None) -> None:
    """The state of a run whose process ended, or never began, without an event that says so."""
    attempt, ended = Attempt.read(run), read_json(run / "ended.json")
    if ended is None and attempt is None and made.started is None:
        made.state = view.STOPPED  # taken out of the queue before it began
        return
    code, why = (ended or {}).get("code"), str((ended or {}).get("why", ""))
    tail = reasons.log_tail(run / "log.txt", attempt.log_from if attempt else 0)
    made.ended = (ended or {}).get("time", made.ended)
    if asked and asked.get("what") == "stop_now":
        made.state = view.STOPPED
        made.notes.append("Stopped at once; it goes on from its last saved state.")
    elif code == STOPPED_CODE:
        made.state = view.STOPPED
    elif code == REJECTED:
        made.state, made.problems = view.FAILED, tail[-8:]
    elif code == 0:
        made.state = view.DONE if made.outputs else view.STOPPED
    else:
        made.state = view.FAILED if why else view.INTERRUPTED
        made.problems = reasons.interrupted(code, why, tail)


def _actions(made: RunView, run: Path, has_live: bool) -> tuple[str, ...]:
    allowed = view.ACTIONS[made.state]
    if not has_live:
        allowed = tuple(action for action in allowed if action != "live")
    if (run / "request.yaml").exists() or (run / "job.yaml").exists():
        return allowed
    return tuple(action for action in allowed if action not in ("resume", "again"))
