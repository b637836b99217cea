"""How the device is shared between the host's model and a training: the choice, and what is done before and after.

    attach        the trainer maps the host's tensors: no second copy, and one can go on drawing
    hand_over     the host frees its model, the trainer loads the file, the host loads its model again afterwards
    side_by_side  both have a copy

What was chosen is written into the run folder (`lease.json`) before the trainer is started, with the reason; the
trainer reads it, the page shows it. Knows no host: what a host can lend is asked of a `Lender`.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from extension.jobs.files import read_json, write_json
from extension.jobs.processes import Identity
from extension.jobs.turns import DRAWING_FILE
from trainers import spec
from trainers.errors import InputError
from trainers.options import ONE_PASS

ATTACH, HAND_OVER, SIDE_BY_SIDE = "attach", "hand_over", "side_by_side"
RECORD, MANIFEST = "lease.json", "host_tensors.json"
_WORDS = {ATTACH: "attach", HAND_OVER: "hand the model over", SIDE_BY_SIDE: "train side by side"}
_log = logging.getLogger(__name__)
_ROOM = 0.92  # as the trainers' own plan


@dataclass(frozen=True)
class Holding:
    """The model that a host has in memory.

    Attributes:
        checkpoint: its file.
        device: "cpu", "cuda:0", …
        nbytes: what it takes there.
        problem: why nobody can attach to it, as a clause; "" where it can be tried.
    """

    checkpoint: Path | None
    device: str
    nbytes: int
    problem: str = ""


class Lent(Protocol):
    """A host's tensors in a trainer's hands."""

    nbytes: int

    def release(self) -> None:
        """The trainer has ended, or never came."""


class CannotLend(Exception):
    """A host cannot do what was planned; a clause says why."""


class Lender(Protocol):
    """What a host can do for a training. Every method may wait until the host draws nothing."""

    def holding(self) -> Holding | None:
        """The model that is in memory, None where there is none. Never waits."""

    def export(self, manifest: Path, about: Mapping[str, Any]) -> Lent:
        """Writes what a trainer needs to map the model's tensors, and keeps them as they are until it is released.

        Raises:
            CannotLend: nothing was changed.
        """

    def free(self) -> int:
        """Frees the model; returns the bytes that came free, as measured.

        Raises:
            CannotLend: nothing was changed.
        """

    def restore(self) -> None:
        """Has the model back, as far as it was freed."""


@dataclass(frozen=True)
class Choice:
    """How a device is shared, and the reason in a sentence."""

    mode: str
    reason: str


Memory = Callable[[], Mapping[str, Any]]


def same_file(one: Path | None, other: str | Path) -> bool:
    """Whether both names lead to one file."""
    try:
        return one is not None and one.samefile(other)
    except OSError:
        return False


def attach_problem(job: Mapping[str, Any], holding: Holding) -> str:
    """Why a job cannot train on the host's own tensors, as a clause; "" where it can."""
    if job.get("method") == "dreambooth":
        return "DreamBooth changes the model's own weights, so it trains a copy"
    if job.get("method") in ONE_PASS:
        return "it takes no base model, only a CLIP model"
    if not same_file(holding.checkpoint, str(job.get("base", ""))):
        return "the WebUI has another model loaded"
    if str(job.get("kind") or "lora") != "lora" and holding.device != "cpu":
        return f"adapters of the kind {job['kind']} are formed from the base's weights, in another number format"
    if job.get("class_prompt") and holding.device != "cpu":
        return "pictures of the class are drawn first, with a copy"
    if job.get("base_dtype") == "fp8":
        return "base_dtype asks for a base in 8 bits, which the WebUI's is not"
    return holding.problem


def choose(job: Mapping[str, Any], device: str, holding: Holding | None, memory: Memory) -> Choice:
    """How a job and the host's model share `device`.

    Args:
        memory: the trainers' memory plan (`peak_bytes`, `free_bytes`, `fits`) beside the host's model; asked for only
            where it matters, because that takes seconds.
    """
    if holding is None:
        return Choice(SIDE_BY_SIDE, "The WebUI has no model in memory.")
    if holding.device != device:
        return Choice(SIDE_BY_SIDE, f"The WebUI's model lies on {holding.device}, and this trains on {device}.")
    if job.get("method") in ONE_PASS and device == "cpu":
        return Choice(SIDE_BY_SIDE, "It takes no base model, only a CLIP model beside the WebUI's.")
    wanted = str(job.get("gpu_sharing") or "auto")
    problem = attach_problem(job, holding)
    if wanted in ("auto", ATTACH) and not problem:
        how = "as you asked" if wanted == ATTACH else "without a second copy, and you can go on drawing"
        return Choice(ATTACH, f"It trains on the very model that the WebUI has loaded, {how}.")
    if wanted in (HAND_OVER, SIDE_BY_SIDE):
        return Choice(wanted, f"You asked to {_WORDS[wanted]}.")
    return _beside_or_instead(problem, memory)


def _beside_or_instead(problem: str, memory: Memory) -> Choice:
    because = f"It does not attach, because {problem}."
    plan = memory()
    needed, free = plan.get("peak_bytes"), plan.get("free_bytes")
    if plan.get("fits") and free is not None:
        return Choice(SIDE_BY_SIDE, f"{because} Both fit: {_gib(needed)} of {_gib(free)} that are free will be used.")
    room = "" if not needed or free is None else f" ({_gib(needed)} are needed and {_gib(free)} are free)"
    return Choice(HAND_OVER, f"{because} The WebUI makes room{room} and loads its model again afterwards.")


def memory_when(mode: str, holding: Holding | None, memory: Mapping[str, Any]) -> dict[str, Any]:
    """A memory plan that was made beside the host's model, for another way to share the device."""
    plan = dict(memory)
    if mode == ATTACH:
        plan["peak_bytes"] = max(0, plan.get("peak_bytes", 0) - (plan.get("items") or {}).get("base weights", 0))
    if mode == HAND_OVER and plan.get("free_bytes") is not None and holding is not None:
        plan["free_bytes"] += holding.nbytes
    if mode != SIDE_BY_SIDE and plan.get("free_bytes") is not None:
        plan["fits"] = plan["peak_bytes"] <= plan["free_bytes"] * _ROOM
    return plan


def _gib(size: float | None) -> str:
    return f"{(size or 0) / 2**30:.1f} GiB"


def read_record(run: Path) -> dict[str, Any]:
    """What was agreed for the newest attempt at a run; empty where nothing was."""
    return read_json(run / RECORD) or {}


class Leases:
    """What the trainings that this process started have of its host.

    Args:
        memory: the trainers' memory plan for a job, see `choose`.
    """

    def __init__(self, lender: Lender, memory: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> None:
        self.lender, self._memory = lender, memory
        self._lent: dict[Path, Lent | None] = {}
        self._lock = threading.Lock()

    def foresee(self, job: Mapping[str, Any], device: str, memory: Mapping[str, Any]) -> Choice:
        """What would be chosen now."""
        return choose(job, device, self.lender.holding(), lambda: memory)

    @property
    def attached(self) -> list[Path]:
        """The runs that have the host's tensors now."""
        with self._lock:
            return [run for run, lent in self._lent.items() if lent is not None]

    def begin(self, run: Path, attempt: str, device: str, job: Mapping[str, Any]) -> None:
        """Does what has to be done before a trainer is started on a run, and writes down how the device is shared."""
        (run / MANIFEST).unlink(missing_ok=True)
        try:
            self._begin(run, attempt, device, job)
        except Exception as error:  # whatever a host's own code does: a training must not wait for it forever
            _log.exception("Athanor could not arrange how the device is shared")
            self.end(run)
            reason = f"The WebUI could not share its model ({error.__class__.__name__}: {error})."
            write_json(run / RECORD, {"attempt": attempt, "mode": SIDE_BY_SIDE, "reason": reason, "freed_bytes": None})

    def _begin(self, run: Path, attempt: str, device: str, job: Mapping[str, Any]) -> None:
        holding = self.lender.holding()
        choice = choose(job, device, holding, lambda: self._memory(job))
        me = Identity.of(os.getpid())
        host = {"pid": me.pid, "started": me.started} if me else {}
        record: dict[str, Any] = {"attempt": attempt, "device": device, "host": host, "freed_bytes": None}
        if choice.mode == ATTACH:
            choice = self._attach(run, attempt, host, holding, choice, job)
        if choice.mode == HAND_OVER:
            choice, record["freed_bytes"] = self._hand_over(run, choice)
        pauses = holding is not None and holding.device == device and job.get("pause_while_drawing", True)
        record |= {"mode": choice.mode, "reason": choice.reason}
        record["drawing"] = os.path.relpath(run.parent / DRAWING_FILE, run) if pauses else ""
        write_json(run / RECORD, record)

    def _attach(self, run: Path, attempt: str, host: Any, holding: Holding, choice: Choice, job: Any) -> Choice:
        about = {"attempt": attempt, "host": host, "checkpoint": str(holding.checkpoint)}
        try:
            lent = self.lender.export(run / MANIFEST, about)
        except CannotLend as problem:
            return _beside_or_instead(str(problem), lambda: self._memory(job))
        with self._lock:
            self._lent[run] = lent
        return choice

    def _hand_over(self, run: Path, choice: Choice) -> tuple[Choice, int | None]:
        try:
            freed = self.lender.free()
        except CannotLend as problem:
            return Choice(SIDE_BY_SIDE, f"The WebUI could not make room, because {problem}."), None
        with self._lock:
            self._lent[run] = None
        return choice, freed

    def end(self, run: Path) -> None:
        """The trainer of a run has ended, however that was: tensors are the host's alone again, and a model that was
        handed over comes back once no other training needs the room."""
        with self._lock:
            if run not in self._lent:
                return
            lent = self._lent.pop(run)
            handed_over = any(other is None for other in self._lent.values())
        (run / MANIFEST).unlink(missing_ok=True)
        try:
            if lent is not None:
                lent.release()
            elif not handed_over:
                self.lender.restore()
        except Exception:  # the host loads its model when it next draws; the queue has to go on
            _log.exception("Athanor could not have the WebUI's model back")


def job_of(run: Path) -> dict[str, Any]:
    """The options of a run that is about to be started."""
    for name in ("job.yaml", "request.yaml"):
        try:
            return spec.read_yaml(run / name)
        except InputError:
            continue
    return {}
