"""Starting, resuming and checking a run: what stands around the loop, and how every ending is told."""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import json
import math
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from trainers import checks, snapshot
from trainers.bases.detect import BaseInfo, inspect_vae
from trainers.checks import Finding
from trainers.data.captions import template_lines
from trainers.data.dataset import split_validation
from trainers.data.survey import Survey, survey
from trainers.display import Display
from trainers.engine import optimizers, precision, runfolder, state
from trainers.engine.attached import ATTACH, read_lease
from trainers.engine.finite import Diverged
from trainers.engine.lock import RunLock
from trainers.engine.loop import Loop
from trainers.engine.memory import MemoryPlan
from trainers.engine.runfolder import RunFolder
from trainers.engine.session import check_base, make_plan, open_session
from trainers.engine.world import World, join_world
from trainers.errors import InputError, is_out_of_memory
from trainers.events import EventLog, is_waiting, read_events, take_commands
from trainers.formats.families import FAMILIES
from trainers.methods import one_pass
from trainers.options import ONE_PASS
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


def settle(job: Job, attached: bool = False) -> tuple[Job, BaseInfo, MemoryPlan, Survey]:
    """Everything that is known before a model is loaded: the job with every choice made and fixed (a resumed run must
    not choose otherwise because less memory is free), the base, the memory plan and what the folders hold.

    `attached`: the base will be a WebUI's own."""
    device = precision.device_for(job.device)
    job, info = check_base(job)
    optimizers.check(job)
    check_files(job, info)
    found = survey(job, remember=True)
    plan = make_plan(job, info, device, attached)
    fixed = job.replace(
        precision=plan.precision,
        base_dtype=plan.base_dtype,
        gradient_checkpointing="on" if plan.gradient_checkpointing else "off",
    )
    return fixed, info, plan, found


def checked(job: Job, info: BaseInfo, plan: MemoryPlan, found: Survey) -> list[Finding]:
    """What the checks say of a settled job, the worst first."""
    return checks.before_start(checks.job_facts(job, found.scans, info, plan))


def facts(job: Job, plan: MemoryPlan, found: Survey, findings: list[Finding]) -> dict[str, Any]:
    """What `check` says, for programs. `steps` is an estimate where the job counts in epochs: pictures of different
    shapes do not share a batch."""
    per_step = job.batch_size * job.gradient_accumulation
    steps = job.steps or job.epochs * math.ceil(found.exposures("data") / per_step)
    memory = {name: getattr(plan, name) for name in ("peak_bytes", "free_bytes", "fits", "precision", "base_dtype")}
    return {
        "family": job.family,
        "title": FAMILIES[job.family].title,
        "prediction": job.prediction,
        "resolution": job.resolution,
        "device": precision.device_for(job.device).type,
        "steps": steps,
        "steps_are_exact": bool(job.steps),
        "exposures": steps * per_step,
        "folders": found.facts(),
        "held_out": held_out(job, found),
        "checks": [finding.as_dict() for finding in findings],
        "memory": {
            **memory,
            "gradient_checkpointing": plan.gradient_checkpointing,
            "items": dict(plan.items),
            "reasons": plan.reasons,
        },
    }


def held_out(job: Job, found: Survey) -> int:
    """How many of the pictures to train on will be held out for measuring."""
    return 0 if job.validation_data else len(split_validation(found.scans["data"].pictures, job)[1])


def check_files(job: Job, info: BaseInfo) -> None:
    """What else the run will open, so that it does not end after an hour of preparing."""
    if job.vae:
        inspect_vae(job.vae)
    elif not info.has_vae:
        raise InputError(f"{info.path}: this model has no autoencoder; name one with the option vae.")
    if job.get("init_from") and not Path(job.init_from).exists():
        raise InputError(f"init_from: {job.init_from} does not exist; name the LoRA file to go on from.")
    if job.get("template"):
        template_lines(job.template)  # it says what is wrong
    if job.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise InputError("tensorboard: the package tensorboard is not installed; install it, or turn tensorboard off.")


def check(job: Job, as_json: bool = False) -> int:
    """Say what is wrong with a job, or what it will do; nothing is trained. Red findings are an answer in JSON, and a
    refusal otherwise."""
    if job.method in ONE_PASS:
        return _check_one_pass(job, as_json)
    job, info, plan, found = settle(job)
    findings = checked(job, info, plan, found)
    if as_json:
        print(json.dumps(facts(job, plan, found, findings), ensure_ascii=False, default=str))
        return DONE
    print(f"Base: {FAMILIES[info.family].title}, {job.prediction} prediction, {job.resolution} px.")
    aside = held_out(job, found)
    told = [f"{aside} of them are held out for measuring."] if aside else []
    for line in [*found.lines(), *told, *plan.lines()]:
        print(line)
    for finding in findings:
        print(finding.line())
    checks.require(findings)
    print("The job is fine.")
    return DONE


def _check_one_pass(job: Job, as_json: bool) -> int:
    found = one_pass(job.method).facts(job)
    if as_json:
        print(json.dumps(found, ensure_ascii=False))
        return DONE
    print(f"{found['title']}: {found['exposures']} pictures to look at.")
    for note in found["folders"][0]["notes"]:
        print(note)
    print("The job is fine.")
    return DONE


def start(job: Job, folder: Path | None) -> int:
    """A new run. Everything that can be rejected is rejected before its folder is made."""
    world = join_world(cpu=job.device == "cpu")
    if world.size > 1 and folder is None:
        raise InputError("--run: name the run's folder when several processes train together.")
    if world.size > 1 and job.method in ONE_PASS:
        raise InputError(f"method: {job.method} is one pass over the pictures; start it without accelerate.")
    if world.is_main:
        if job.method in ONE_PASS:
            one_pass(job.method).facts(job)  # it says what is wrong
        else:
            job, info, plan, found = settle(job, folder is not None and read_lease(folder).mode == ATTACH)
            checks.require(checked(job, info, plan, found))
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
    with contextlib.suppress(OSError):
        run.error_file.unlink(missing_ok=True)  # it speaks of an earlier attempt
    return _train(job, run, join_world(cpu=job.device == "cpu"), resuming=True)


def _is_done(run: RunFolder) -> bool:
    events, _ = read_events(run.events_file)
    return any(event["event"] == "done" for event in events)


class StopAsked(BaseException):
    """A stop was asked for while the run was being made ready: there is no step to finish."""


def _stop_now() -> None:
    raise StopAsked


@contextlib.contextmanager
def _signals(ask: Callable[[], None]) -> Iterator[None]:
    """Ctrl-C and a polite termination call `ask`, for as long as the context lasts."""

    def handle(number, frame) -> None:
        ask()

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    chosen = [signal.SIGINT, signal.SIGTERM, *([signal.SIGBREAK] if hasattr(signal, "SIGBREAK") else [])]
    former = {number: signal.signal(number, handle) for number in chosen}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler or signal.SIG_DFL)


def _train(job: Job, run: RunFolder, world: World, resuming: bool) -> int:
    display = Display(quiet=not world.is_main)
    with RunLock(run.path) if world.is_main else contextlib.nullcontext():
        if world.is_main:
            take_commands(run.path)  # commands meant for an earlier process
        events = run.events(write=world.is_main)
        try:
            with _signals(_stop_now):
                return _run_loop(job, run, world, events, display, resuming)
        except StopAsked:
            _tell(events, "stopped", step=state.newest_step(run.states))
            display.line(f"Stopped before the first step; go on with: {_to_resume(run)}")
            return STOPPED
        except InputError as error:
            cause = error.__cause__
            if isinstance(cause, OSError) or is_out_of_memory(cause):  # of a run that had been accepted
                return _fail(run, world, events, display, cause)
            _tell(events, "failed", why="; ".join(error.problems), advice="")
            raise
        except Exception as error:
            return _fail(run, world, events, display, error)
        finally:
            display.close()
            events.close()
            with contextlib.suppress(Exception):  # the others may be gone already
                world.close()


def _run_loop(job: Job, run: RunFolder, world: World, events: EventLog, display: Display, resuming: bool) -> int:
    def report(done: int, total: int, what: str) -> None:
        events.emit("progress", what=what, done=done, total=total)
        display.progress(done, total, what)
        if world.is_main and is_waiting(run.path, "stop"):
            take_commands(run.path)
            raise StopAsked

    if job.method in ONE_PASS:
        return _run_one_pass(job, run, events, display, report)
    job, info = check_base(job)
    if world.is_main:
        _tell_changes(job, run, events, display, resuming)
    session = open_session(job, info, run, world, events, display.line, report)
    loop = Loop(session, display)
    if resuming:
        loop.resume()
    with _signals(loop.ask_to_stop):
        outcome = loop.run()
    if outcome == "stopped":
        display.line(f"Stopped after step {loop.counters.step}; go on with: {_to_resume(run)}")
        return STOPPED
    display.line(f"Done: {run.result(job)}")
    return DONE


def _to_resume(run: RunFolder) -> str:
    """The command that goes on with a run, from any folder and with any Python on the path."""
    words = [sys.executable, "-m", "trainers", "resume", str(run.path.absolute())]
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)


def _tell_changes(job: Job, run: RunFolder, events: EventLog, display: Display, resuming: bool) -> None:
    """Says which pictures and captions are not what they were when the job was queued (or last worked on), and
    remembers what they are now."""
    before = snapshot.read(run.path)
    now = snapshot.take_all(job, before)
    for option, record in now.items():
        found = "; ".join(snapshot.changes(before[option], record) if option in before else [])
        if found:
            asked = f"{option}: since the job was queued, {found}."
            text = f"{option}: since the run was last worked on, {found}." if resuming else asked
            events.emit("note", text=text)
            display.line(text)
    runfolder.replace_text(run.path / snapshot.FILE, snapshot.as_text(now))


def _run_one_pass(
    job: Job, run: RunFolder, events: EventLog, display: Display, report: Callable[[int, int, str], None]
) -> int:
    """The events of a run of one step. There is nothing to resume from before its end, and little to do again."""

    def say(note: str) -> None:
        events.emit("note", text=note)
        display.line(note)

    began = time.monotonic()
    events.emit("start", method=job.method, name=job.name, steps=1, resumed_from=None, process=os.getpid())
    one_pass(job.method).run(job, run.result(job), report, say)
    events.emit("saved", step=1, kind="result", path=run.result(job).name)
    seconds = round(time.monotonic() - began, 3)
    events.emit("done", step=1, path=run.result(job).name, seconds=seconds)
    display.line(f"Done: {run.result(job)}")
    return DONE


def _advice(error: Exception) -> str:
    if isinstance(error, Diverged):
        return DIVERGED_ADVICE
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return DISK_ADVICE
    return MEMORY_ADVICE if is_out_of_memory(error) else ""


def _tell(events: EventLog, event: str, **fields: str | int) -> None:
    with contextlib.suppress(OSError):  # the disk may be full; the exit code and stderr still say it
        events.emit(event, **fields)


def _fail(run: RunFolder, world: World, events: EventLog, display: Display, error: Exception) -> int:
    advice = _advice(error)
    last = f"{error.__class__.__name__}: {error}".splitlines()[0]
    # When one process fails the others soon do, for want of it: each has a file, so that the cause is not lost.
    file = run.error_file if world.is_main else run.error_file.with_name(f"error-{world.rank}.txt")
    with contextlib.suppress(OSError):
        file.write_text("".join(traceback.format_exception(type(error), error, error.__traceback__)), encoding="utf-8")
    _tell(events, "failed", why=last, advice=advice)
    display.line(advice or last)
    if advice:
        display.line(last)
    return FAILED
