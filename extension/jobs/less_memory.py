"""A run whose memory did not suffice goes on by itself with the next smaller plan, from its last state.

Each step of the ladder takes less memory and changes what is learned as little as can be: first what changes nothing,
then smaller batches of which as many more are added up, last the base in 8 bits. What was done is written into the
job, into the events ("reduced"), and so onto the page.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from extension.jobs.files import read_json, write_text
from extension.jobs.lease import ATTACH, HAND_OVER, SIDE_BY_SIDE, read_record
from extension.jobs.reasons import is_out_of_memory, log_tail
from trainers import spec
from trainers.errors import InputError
from trainers.events import EventLog, read_events

_ORDINARY = (0, 2)
"""Exit codes that say: done, rejected."""
_STOPPED, _KILLED = 3, -9
SPILLS = "memory"
"""The check that stops a run whose memory spills into the computer's own, where every step takes many times as long."""


def kills_by_the_system() -> int | None:
    """How many processes this system has ended for want of memory since it was started; None where it does not say."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        lines = Path("/proc/vmstat").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), None)


def ran_out(run: Path, code: int, log_from: int, kills_before: int | None) -> bool:
    """Whether a trainer that ended with `code` did so because memory was lacking, or spilled.

    Args:
        log_from: where its part of log.txt begins.
        kills_before: `kills_by_the_system` from before it was started.
    """
    if code in _ORDINARY or read_json(run / "asked.json"):
        return False
    events, _ = read_events(run / "events.jsonl")
    last = events[-1] if events else {"event": ""}
    if code == _STOPPED:
        return last["event"] == "stopped" and last.get("check") == SPILLS
    if last["event"] == "failed":
        return is_out_of_memory([str(last.get("why", "")), str(last.get("advice", ""))])
    if code == _KILLED:
        now = kills_by_the_system()
        return now is not None and kills_before is not None and now > kills_before
    return is_out_of_memory(log_tail(run / "log.txt", log_from))


def _smaller_batch(job: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    size = int(job["batch_size"])
    parts = next(number for number in range(2, size + 1) if size % number == 0)
    changes = {"batch_size": size // parts, "gradient_accumulation": int(job["gradient_accumulation"]) * parts}
    return changes, f"batches of {size} became {parts} times {size // parts}, added up"


def _ladder(job: Mapping[str, Any], mode: str, trains: bool) -> Iterator[tuple[dict[str, Any], str]]:
    """(changes, what was done) of each plan that takes less, the nearest first."""
    if not trains and int(job["vae_batch_size"]) > 1:
        yield {"vae_batch_size": 1}, "pictures are encoded one by one"
    if mode == SIDE_BY_SIDE and job["gpu_sharing"] == "auto":
        yield {"gpu_sharing": HAND_OVER}, "the WebUI makes room"
    if job["gradient_checkpointing"] != "on":
        yield {"gradient_checkpointing": "on"}, "gradient checkpointing was turned on"
    if int(job["batch_size"]) > 1:
        yield _smaller_batch(job)
    if job["base_dtype"] != "fp8" and job["method"] != "dreambooth" and job["device"] != "cpu":
        yield {"base_dtype": "fp8"}, "the base is kept in 8 bits"


def smaller_job(job: spec.Job, mode: str, trains: bool, steps: int | None) -> tuple[spec.Job, str] | None:
    """The job with the next smaller plan, and what was done, for a sentence; None where nothing smaller is left.

    Args:
        mode: how the device was shared.
        trains: it had begun to train, so preparing is not what took too much.
        steps: the steps that it is to take in all, which smaller batches must not change.
    """
    for changes, done in _ladder(job, mode, trains):
        if "batch_size" in changes and steps:
            changes |= {"steps": steps, "epochs": None}
        try:
            return spec.parse({**job, **changes, "run": job.run}), done
        except InputError:
            continue  # this method, or another option, does not go with it
    return None


def newest_step(run: Path) -> int:
    """How many steps the newest state of a run has done."""
    try:
        word = (run / "state" / "current").read_text(encoding="utf-8").partition("-")[0].strip()
    except OSError:
        return 0
    return int(word) if word.isdigit() else 0


def reduce(run: Path) -> str:
    """Writes the next smaller plan into a run's job; what was done, "" where nothing smaller is left."""
    file = run / "job.yaml"
    try:
        job = spec.parse(spec.read_yaml(file))
    except InputError:
        return ""  # it never came as far as being accepted
    events, _ = read_events(run / "events.jsonl")
    begun = max((number for number, event in enumerate(events) if event["event"] == "launched"), default=0)
    trains = any(event["event"] == "start" for event in events[begun:])
    steps = next((event.get("steps") for event in reversed(events) if event["event"] == "start"), None)
    mode = str(read_record(run).get("mode", ""))
    if mode == ATTACH and not any(event["event"] == "attached" for event in events[begun:]):
        mode = SIDE_BY_SIDE  # it could not be, so the trainer had a copy of its own
    found = smaller_job(job, mode, trains, steps)
    if found is None:
        return ""
    smaller, done = found
    write_text(file, spec.to_yaml(smaller))
    log = EventLog(run / "events.jsonl")
    check = str(events[-1].get("check") or "") if events and events[-1]["event"] == "stopped" else ""
    why = "the memory spilled into the computer's own" if check == SPILLS else "the memory did not suffice"
    log.emit("reduced", what=done, step=newest_step(run), why=why, check=check)
    log.close()
    return done
