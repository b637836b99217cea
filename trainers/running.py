"""Starting, resuming and checking a run: what stands around the loop, and how every ending is told."""

from __future__ import annotations

import contextlib
import errno
import signal
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path

from trainers.display import Display
from trainers.engine import runfolder
from trainers.engine.runfolder import RunFolder
from trainers.engine.world import World, join_world
from trainers.errors import InputError
from trainers.events import EventLog, take_commands
from trainers.spec import Job

DONE, FAILED, STOPPED = 0, 1, 3
DIVERGED_ADVICE = (
    "The loss stayed non-finite although the learning rate was lowered three times. Lower learning_rate, use "
    "precision=fp32 or bf16, and look for broken pictures; then start a new run."
)
DISK_ADVICE = "The disk is full. Nothing that was saved is lost: free some room and resume the run."
MEMORY_ADVICE = (
    "The memory did not suffice. Lower batch_size or resolution, set gradient_checkpointing=on or base_dtype=fp8, "
    "then resume the run."
)


def check(job: Job) -> int:
    """Say what is wrong with a job, or what it will do; nothing is trained or written."""
    from trainers.data.survey import survey
    from trainers.engine import precision
    from trainers.engine.session import check_base, make_plan

    job, info = check_base(job)
    device = precision.device_for(job.device)
    precision.resolve(job.precision, device)
    found = survey(job)
    for line in [*info.lines(), *found.lines(), *make_plan(job, info, device).lines()]:
        print(line)
    print("The job is fine.")
    return DONE


def start(job: Job, folder: Path | None) -> int:
    """A new run. Everything that can be rejected is rejected before its folder is made."""
    from trainers.data.survey import survey
    from trainers.engine import precision
    from trainers.engine.session import check_base

    world = join_world(cpu=job.device == "cpu")
    job, _ = check_base(job)
    precision.resolve(job.precision, precision.device_for(job.device))
    survey(job, remember=world.is_main)
    if folder is None:
        folder = runfolder.unused_folder(Path("runs"), job.name)
    if world.is_main:
        run, job = runfolder.create(job, folder)
    world.wait()
    run = RunFolder(folder)
    return _train(run.read_job(), run, world, resuming=False)


def resume(folder: Path) -> int:
    """Go on with an existing run from its newest state."""
    run = RunFolder(folder)
    job = run.read_job()
    if run.result(job).exists() and _is_done(run):
        print(f"This run is done: {run.result(job)}")
        return DONE
    return _train(job, run, join_world(cpu=job.device == "cpu"), resuming=True)


def _is_done(run: RunFolder) -> bool:
    from trainers.events import read_events

    events, _ = read_events(run.events_file)
    return any(event["event"] == "done" for event in events)


@contextlib.contextmanager
def _signals_stop(loop) -> Iterator[None]:
    """Ctrl-C and a polite termination end the run as a stop does: the step is finished and the state saved."""

    def ask(number, frame) -> None:
        loop.stop_asked = True

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    chosen = [signal.SIGINT, signal.SIGTERM, *([signal.SIGBREAK] if hasattr(signal, "SIGBREAK") else [])]
    former = {number: signal.signal(number, ask) for number in chosen}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _train(job: Job, run: RunFolder, world: World, resuming: bool) -> int:
    from trainers.engine.lock import RunLock

    display = Display(quiet=not world.is_main)
    with RunLock(run.path) if world.is_main else contextlib.nullcontext():
        if world.is_main:
            take_commands(run.path)  # commands meant for an earlier process
        events = run.events(write=world.is_main)
        try:
            return _run_loop(job, run, world, events, display, resuming)
        except InputError as error:
            _tell(events, "failed", why="; ".join(error.problems), advice="")
            raise
        except Exception as error:
            return _fail(run, events, display, error)
        finally:
            display.close()
            events.close()
            with contextlib.suppress(Exception):  # the others may be gone already
                world.close()


def _run_loop(job: Job, run: RunFolder, world: World, events: EventLog, display: Display, resuming: bool) -> int:
    from trainers.engine.loop import Loop
    from trainers.engine.session import check_base, open_session

    job, info = check_base(job)

    def report(done: int, total: int, what: str) -> None:
        events.emit("progress", what=what, done=done, total=total)
        display.progress(done, total, what)

    session = open_session(job, info, run, world, events, display.line, report)
    loop = Loop(session, display)
    if resuming:
        loop.resume()
    with _signals_stop(loop):
        outcome = loop.run()
    if outcome == "stopped":
        display.line(f"Stopped after step {loop.counters.step}; go on with: python -m trainers resume {run.path}")
        return STOPPED
    display.line(f"Done: {run.result(job)}")
    return DONE


def _advice(error: Exception) -> str:
    from trainers.engine.loop import Diverged

    if isinstance(error, Diverged):
        return DIVERGED_ADVICE
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
        return DISK_ADVICE
    if (
        isinstance(error, MemoryError)
        or "out of memory" in str(error).lower()
        or "can't allocate" in str(error).lower()
    ):
        return MEMORY_ADVICE
    return ""


def _tell(events: EventLog, event: str, **fields: str) -> None:
    with contextlib.suppress(OSError):  # the disk may be full; the exit code and stderr still say it
        events.emit(event, **fields)


def _fail(run: RunFolder, events: EventLog, display: Display, error: Exception) -> int:
    advice = _advice(error)
    last = f"{error.__class__.__name__}: {error}".splitlines()[0]
    with contextlib.suppress(OSError):
        run.error_file.write_text(
            "".join(traceback.format_exception(type(error), error, error.__traceback__)), encoding="utf-8"
        )
    _tell(events, "failed", why=last, advice=advice)
    display.line(advice or last)
    if advice:
        display.line(last)
    return FAILED
