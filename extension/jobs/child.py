"""The first moment of a trainer's process: it takes its job out of the queue itself, then becomes the trainer.

Run as `python -m extension.jobs.child RUN_FOLDER ATTEMPT [--program MODULE]`. Because the process that will do the
work takes the ticket, and writes down its own number before, there is no instant at which a killed host could lose a
job or have it run twice: the ticket is there, or the process is known.
"""

from __future__ import annotations

import os
import runpy
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path

from extension.jobs.files import locked, write_json
from extension.jobs.processes import Identity
from extension.jobs.run_files import Attempt, Ticket, busy_devices, ended_record, living_process
from trainers.events import EventLog
from trainers.spec import AUTO_DEVICE

NOT_MINE = 75
"""Exit code: the job was taken by another process, or its device is in use; nothing has changed."""


def claim(run: Path, key: str) -> bool:
    """Takes the run's ticket, if it is still there and its device is free."""
    with locked(run.parent):
        ticket = Ticket.read(run)
        if ticket is None or living_process(run) or ticket.device in busy_devices(run.parent):
            return False
        me = Identity.of(os.getpid())
        if me is None:
            raise RuntimeError("this system does not tell when a process began")
        log = run / "log.txt"
        attempt = Attempt(key, me, ticket.device, round(time.time(), 3), log.stat().st_size if log.exists() else 0)
        write_json(run / "process.json", attempt.content())
        os.environ[AUTO_DEVICE] = ticket.device  # which the queue keeps free for this run
        for former in ("ended.json", "asked.json", "error.txt"):
            (run / former).unlink(missing_ok=True)
        events = EventLog(run / "events.jsonl")
        events.emit("launched", process=me.pid, attempt=key)
        events.close()
        (run / "ticket.json").unlink()  # last: until here, a kill leaves the job in the queue
    return True


def arguments_for(run: Path) -> list[str]:
    """What the trainer is told: to go on where there is something to go on with, else to begin."""
    if (run / "job.yaml").exists():
        return ["resume", str(run)]
    return ["run", str(run / "request.yaml"), "--run", str(run)]


def work(run: Path, key: str, program: str) -> int:
    """Runs the trainer in this process and writes down how it ended."""
    sys.argv = [program, *arguments_for(run)]
    code = 1
    try:
        runpy.run_module(program, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else 0 if leaving.code is None else 1
        if isinstance(leaving.code, str):
            print(leaving.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    with suppress(FileNotFoundError):  # the run's folder was taken away meanwhile
        write_json(run / "ended.json", ended_record(key, code))
    return code


def main(words: list[str]) -> int:
    """Returns the exit code."""
    run, key = Path(words[0]), words[1]
    program = words[3] if words[2:3] == ["--program"] else "trainers"
    if not claim(run, key):
        return NOT_MINE
    return work(run, key, program)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
