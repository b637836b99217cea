"""The progress protocol between a trainer and whoever watches it: `events.jsonl` and the `control/` folder.

The trainer appends one JSON object per line, complete and flushed; a reader ignores an unterminated last line.
Commands travel the other way as empty files `control/<command>`, which the trainer takes away when it obeys.

Kinds of events and their fields (all have `event` and `time`, seconds since 1970):

=========== ==================================================================================
launched    process (pid), attempt (written by a queue when it starts a trainer on the run)
start       method, name, steps, resumed_from (step or null), process (pid)
plan        items (label to bytes), peak_bytes, precision, base_dtype, checkpointing, lines, family, resolution,
            device (its type)
attached    kind ("cpu" or "cuda"), bytes, tensors, private_bytes (of memory that is the trainer's alone, or null)
progress    what, done, total (preparing: caching pictures, encoding captions, …)
note        text (something a person should know; nothing is wrong with the run)
paused      (the WebUI draws on the same device)
continued   seconds
reduced     what, step, why, check (written by a queue that lets a run go on with less memory; the check that had
            stopped it, "" where none had)
check       step, id, severity, text, what_to_do, pictures, overridden (a finding of `trainers.checks`; after
            a red one the run saves and stops)
step        step, steps, epoch, loss, weighted_loss, loss_average, lr (per group), grad_norm, seconds, eta
skipped     step, why (a non-finite loss or gradient: the step changed nothing)
rollback    step, to_step, lr_scale, why
validation  step, loss, base_loss, prior_loss, prior_base_loss
sample      step, path, prompt, seed
saved       step, path, kind ("result", "intermediate" or "state")
best        step, path, loss, prior (on unrelated pictures, over the base's own), reason (of `engine.best.Choice`), why
verdict     path (of the sheet), step (its best one), prompts, steps, weights
snapshot    step, path (an adapter as it is now, for drawing with it meanwhile)
memory      step, device (its type), peak_bytes, reserved_bytes (by torch, of the driver; on the CPU both are the
            process's own peak), stages (label to bytes), planned_bytes, planned_stages
stopped     step, why (where it was not asked for; the run can be resumed), check (the one that stopped it)
done        step, path, seconds
failed      why, advice
=========== ==================================================================================

Standard library only: the host's process imports this module too.
"""

from __future__ import annotations

import errno
import json
import os
import time
from pathlib import Path
from typing import Any

COMMANDS = ("stop", "save", "sample", "snapshot")


def terminate_last_line(path: Path) -> None:
    """Cut off what follows the last newline, which a killed writer may have left."""
    if not path.exists():
        return
    with open(path, "rb+") as file:
        end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - 65536)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                file.truncate(start + newline + 1)
                return
            end = start
        file.truncate(0)


class EventLog:
    """Appends events to a file. `path=None` keeps nothing, for processes that only help."""

    def __init__(self, path: Path | None) -> None:
        self._file = None
        if path is not None:
            terminate_last_line(path)
            self._file = open(path, "ab", buffering=0)  # noqa: SIM115  (kept open for the run's life)

    def emit(self, event: str, **fields: Any) -> None:
        """Write one line at once; a single unbuffered write, so a kill leaves whole lines or one torn last line."""
        if self._file is None:
            return
        record = {"event": event, "time": round(time.time(), 3), **fields}
        line = json.dumps(record, ensure_ascii=False, allow_nan=False, default=str)
        # A file name that is no text holds half characters, which only JSON's own escapes can carry.
        data = line.encode("utf-8", "backslashreplace") + b"\n"
        end = self._file.seek(0, os.SEEK_END)
        if self._file.write(data) != len(data):  # the disk is full: no half line for the next one to be joined to
            self._file.truncate(end)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def read_events(path: Path, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
    """The complete events from byte `offset` on, and the offset to go on from.

    A line that is not JSON (a disk fault) is passed over; a missing file has no events.
    """
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            data = file.read()
    except FileNotFoundError:
        return [], offset
    end = data.rfind(b"\n") + 1
    events = []
    for line in data[:end].splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and "event" in record:
            events.append(record)
    return events, offset + end


def send_command(run: Path, command: str) -> None:
    """Ask the trainer of the run folder `run` to do one of `COMMANDS`."""
    if command not in COMMANDS:
        raise ValueError(f"{command!r} is not one of {COMMANDS}")
    control = run / "control"
    control.mkdir(parents=True, exist_ok=True)
    (control / command).touch()


def take_commands(run: Path) -> set[str]:
    """The commands waiting in the run folder; they are taken away."""
    control = run / "control"
    try:
        names = set(os.listdir(control)) & set(COMMANDS)
    except FileNotFoundError:
        return set()
    return {name for name in names if _take(control / name)}


def take_command(run: Path, command: str) -> bool:
    """Whether this one waits in the run folder; it is taken away, the others stay."""
    return is_waiting(run, command) and _take(run / "control" / command)


def _take(command: Path) -> bool:
    try:
        command.unlink(missing_ok=True)
    except PermissionError:  # on Windows its writer may still hold it: it is obeyed at the next look
        return False
    return True


def is_waiting(run: Path, command: str) -> bool:
    """Whether a command waits in the run folder; it stays there."""
    return (run / "control" / command).exists()
