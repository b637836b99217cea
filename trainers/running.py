"""Starting, resuming and checking a run: what stands around the loop, and how every ending is told."""

from __future__ import annotations

import contextlib
import errno
import signal
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path

from trainers.bases.detect import BaseInfo
from trainers.data.survey import Survey, survey
from trainers.display import Display
from trainers.engine import optimizers, precision, runfolder
from trainers.engine.lock import RunLock
from trainers.engine.loop import Diverged, Loop
from trainers.engine.memory import MemoryPlan
from trainers.engine.runfolder import RunFolder
from trainers.engine.session import check_base, make_plan, open_session
from trainers.engine.world import World, join_world
from trainers.errors import InputError
from trainers.events import EventLog, read_events, take_commands
from trainers.formats.families import FAMILIES
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


def settle(job: Job) -> tuple[Job, BaseInfo, MemoryPlan, Survey]:
    """Everything that is known before a model is loaded: the job with every choice made and fixed (a resumed run must
    not choose otherwise because less memory is free), the base, the memory plan and what the folders hold."""
    job, info = check_base(job)
    device = precision.device_for(job.device)
    optimizers.check(job)
    found = survey(job, remember=True)
    plan = make_plan(job, info, device)
    fixed = job.replace(
        precision=plan.precision,
        base_dtype=plan.base_dtype,
        gradient_checkpointing="on" if plan.gradient_checkpointing else "off",
    )
    return fixed, info, plan, found


def check(job: Job) -> int:
    """Say what is wrong with a job, or what it will do; nothing is trained."""
    job, info, plan, found = settle(job)
    print(f"Base: {FAMILIES[info.family].title}, {job.prediction} prediction, {job.resolution} px.")
    for line in [*found.lines(), *plan.lines()]:
        print(line)
    print("The job is fine.")
    return DONE


def start(job: Job, folder: Path | None) -> int:
    """A new run. Everything that can be rejected is rejected before its folder is made."""
    world = join_world(cpu=job.device == "cpu")
    if world.size > 1 and folder is None:
        raise InputError("--run: name the run's folder when several processes train together.")
    if world.is_main:
        job, *_ = settle(job)
        if folder is None:
            folder = runfolder.unused_folder(Path("runs"), job.name)
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
    events, _ = read_events(run.events_file)
    return any(event["event"] == "done" for event in events)


@contextlib.contextmanager
def _signals_stop(loop: Loop) -> Iterator[None]:
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
    display = Display(quiet=not world.is_main)
    with RunLock(run.path) if world.is_main else contextlib.nullcontext():
        if world.is_main:
            take_commands(run.path)  # commands meant for an earlier process
        events = run.events(write=world.is_main)
        try:
            return _run_loop(job, run, world, events, display, resuming)
        except InputError as error:
            if isinstance(error.__cause__, OSError):  # the disk failed under a run that had been accepted
                return _fail(run, events, display, error.__cause__)
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
    if isinstance(error, Diverged):
        return DIVERGED_ADVICE
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
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
