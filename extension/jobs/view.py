"""What is known of a run, for the page and for clients: read from its folder, and only from there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from extension.jobs.estimates import MEASURED_STEPS
from extension.jobs.less_memory import SPILLS

QUEUED, PREPARING, TRAINING, STOPPING = "queued", "preparing", "training", "stopping"
STOPPED, DONE, FAILED, INTERRUPTED = "stopped", "done", "failed", "interrupted"
AT_WORK = (PREPARING, TRAINING, STOPPING)
RESUMABLE = (STOPPED, FAILED, INTERRUPTED)

ACTIONS = {
    QUEUED: ("stop", "move", "again", "delete"),
    PREPARING: ("stop", "stop_now", "again"),
    TRAINING: ("stop", "stop_now", "live", "save", "sample", "again"),
    STOPPING: ("stop_now", "again"),
    STOPPED: ("resume", "again", "delete"),
    FAILED: ("resume", "again", "delete"),
    INTERRUPTED: ("resume", "again", "delete"),
    DONE: ("again", "delete"),
}
"""What can be asked of a run in each state."""

_LONGEST_SERIES = 1000
_LONG = ("losses", "validations", "notes", "plan", "log")
"""What a list of runs does without."""


@dataclass
class RunView:
    """One run.

    Attributes:
        state: queued, preparing, training, stopping, stopped, done, failed or interrupted.
        place: how many are started before it, from 1; None where it does not wait.
        doing: what is being prepared, for a person; `done_parts` of `parts` of it.
        progress: from 0 to 1 over the steps.
        eta: seconds until the last step; `eta_measured` once ten steps of this attempt were timed, an estimate before.
        seconds_per_step: median of the last steps.
        losses: (step, loss, running average) of each step.
        validations: the `validation` events.
        samples: the `sample` events whose picture exists.
        outputs: files that can be used, with their step: `{"file", "step", "kind"}`.
        sharing: how the device is shared with the host's model: `{"mode", "reason", "freed_bytes", "attached"}`.
        is_paused: it waits while the host draws.
        problems: why it ended, or why it does not begin; sentences.
        notes: what a person should know; nothing is wrong.
        live: `{"step", "time"}` of the newest snapshot that can be drawn with meanwhile; None where there is none.
        best: the `best` event: `step`, `path`, `loss`, `prior`, `reason`, `why`; None before the end.
        verdict: the `verdict` event, where its sheet is still there.
        wants_publishing: its file is to be put where the host looks, when it is done.
        published: as what it was put there (`name`, `file`); or `taken` and `free`, or `problems`, why it was not.
        actions: what can be asked of it now.
        generation: grows when steps were taken back, so that a client draws its curve anew.
    """

    id: str
    name: str = ""
    method: str = ""
    trigger: str = ""
    base: str = ""
    device: str = ""
    state: str = STOPPED
    place: int | None = None
    submitted: float | None = None
    started: float | None = None
    ended: float | None = None
    step: int = 0
    steps: int | None = None
    epoch: int | None = None
    progress: float = 0.0
    doing: str = ""
    done_parts: int = 0
    parts: int = 0
    eta: float | None = None
    eta_measured: bool = False
    seconds_per_step: float | None = None
    loss_average: float | None = None
    resumed_from: int | None = None
    losses: list[tuple[int, float, float]] = field(default_factory=list)
    validations: list[dict[str, Any]] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)
    outputs: list[dict[str, Any]] = field(default_factory=list)
    sharing: dict[str, Any] = field(default_factory=dict)
    is_paused: bool = False
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    plan: dict[str, Any] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)
    live: dict[str, Any] | None = None
    best: dict[str, Any] | None = None
    verdict: dict[str, Any] | None = None
    wants_publishing: bool = False
    published: dict[str, Any] | None = None
    actions: tuple[str, ...] = ()
    generation: int = 0

    @property
    def has_live(self) -> bool:
        """Whether it can be drawn with while it trains."""
        return self.method in ("lora", "pivotal", "textual_inversion", "hypernetwork")

    @property
    def best_file(self) -> str:
        """The output to use: the best one, else the last."""
        files = [output["file"] for output in self.outputs]
        if self.best and self.best.get("path") in files:
            return str(self.best["path"])
        results = [output["file"] for output in self.outputs if output["kind"] == "result"]
        return next(iter([*results[-1:], *files[-1:]]), "")

    def as_dict(self, since: int = -1, generation: int | None = None, brief: bool = False) -> dict[str, Any]:
        """For JSON.

        Args:
            since: only losses of later steps, where `generation` is the client's and still the same.
            brief: without series, samples, plan and log, as a list of runs needs it.
        """
        left_out = _LONG if brief else ()
        # Not `asdict`, which copies every value of every series: a list of runs is asked for each second.
        content = {one.name: getattr(self, one.name) for one in fields(self) if one.name not in left_out}
        if brief:
            content["samples"] = self.samples[-1:]
            return content
        known = since if generation == self.generation else -1
        content["losses"] = thinned([each for each in self.losses if each[0] > known])
        return content


def thinned(series: Sequence[tuple[int, float, float]], most: int = _LONGEST_SERIES) -> list[tuple[int, float, float]]:
    """At most about `most` points of a series, evenly taken, the last one always."""
    stride = -(-len(series) // most) or 1
    kept = list(series[::stride])
    if series and kept[-1] != series[-1]:
        kept.append(series[-1])
    return kept


class Summary:
    """Events of one run, folded one by one."""

    def __init__(self) -> None:
        self.started: float | None = None
        self.ended: float | None = None
        self.outcome: str | None = None
        self.is_training = False
        self.step = 0
        self.steps: int | None = None
        self.epoch: int | None = None
        self.doing, self.done_parts, self.parts = "", 0, 0
        self.eta: float | None = None
        self.loss_average: float | None = None
        self.resumed_from: int | None = None
        self.losses: list[tuple[int, float, float]] = []
        self.validations: list[dict[str, Any]] = []
        self.samples: dict[str, dict[str, Any]] = {}
        self.saved: dict[str, dict[str, Any]] = {}
        self.notes: list[str] = []
        self.failures: list[str] = []
        self.plan: dict[str, Any] = {}
        self.live: dict[str, Any] | None = None
        self.attached: dict[str, Any] = {}
        self.is_paused = False
        self.best: dict[str, Any] | None = None
        self.verdict: dict[str, Any] | None = None
        self.generation = 0
        self._seconds: list[float] = []

    @property
    def eta_measured(self) -> bool:
        return len(self._seconds) >= MEASURED_STEPS

    @property
    def seconds_per_step(self) -> float | None:
        return sorted(self._seconds)[len(self._seconds) // 2] if self._seconds else None

    def take(self, event: dict[str, Any]) -> None:
        """One more event. Kinds that are not known are passed over: a newer trainer may have more."""
        handler = getattr(self, f"_on_{event['event']}", None)
        if handler is not None:
            handler(event)

    def _begin(self, event: dict[str, Any]) -> None:
        self.outcome, self.ended, self.eta, self.live = None, None, None, None
        self.is_paused = False
        self.failures, self._seconds = [], []
        if self.started is None:
            self.started = event.get("time")

    def _on_launched(self, event: dict[str, Any]) -> None:
        self._begin(event)
        self.is_training, self.doing, self.parts = False, "loading", 0
        self.attached = {}

    def _on_plan(self, event: dict[str, Any]) -> None:
        self.plan = {name: value for name, value in event.items() if name not in ("event", "time")}

    def _on_attached(self, event: dict[str, Any]) -> None:
        self.attached = {name: event.get(name) for name in ("kind", "bytes", "tensors", "private_bytes")}

    def _on_paused(self, event: dict[str, Any]) -> None:
        self.is_paused = True

    def _on_continued(self, event: dict[str, Any]) -> None:
        self.is_paused = False

    def _on_reduced(self, event: dict[str, Any]) -> None:
        step = event.get("step") or 0
        where = f"continued from step {step}" if step else "began again"
        # Runs from before the event had the field say it in their own words.
        check = event.get("check", SPILLS if "spilled" in str(event.get("why")) else "")
        if check == SPILLS:
            self.notes.append(f"The memory spilled into the computer's own: {event.get('what')}, {where}.")
        else:
            self.notes.append(f"The memory did not suffice: {event.get('what')}, {where}.")

    def _on_memory(self, event: dict[str, Any]) -> None:
        taken, planned = (float(event.get(name) or 0) / 2**30 for name in ("peak_bytes", "planned_bytes"))
        if taken:
            self.notes.append(f"Memory: {taken:.1f} GiB at most; {planned:.1f} GiB were expected.")

    def _on_progress(self, event: dict[str, Any]) -> None:
        self.doing = str(event.get("what", ""))
        self.done_parts, self.parts = int(event.get("done", 0)), int(event.get("total", 0))

    def _on_note(self, event: dict[str, Any]) -> None:
        text = str(event.get("text", ""))
        if text and text not in self.notes:
            self.notes.append(text)

    def _on_check(self, event: dict[str, Any]) -> None:
        text = " ".join(str(event.get(name, "")) for name in ("text", "what_to_do")).strip()
        if text and text not in self.notes:
            self.notes.append(text)

    def _on_start(self, event: dict[str, Any]) -> None:
        self._begin(event)
        self.is_training, self.doing, self.parts = True, "", 0
        self.steps = event.get("steps")
        self.resumed_from = event.get("resumed_from")
        self._go_back_to(self.resumed_from or 0)

    def _go_back_to(self, step: int) -> None:
        """Steps after `step` are done again: what is known of them goes."""
        if self.losses and self.losses[-1][0] > step:
            self.losses = [each for each in self.losses if each[0] <= step]
            self.validations = [each for each in self.validations if each.get("step", 0) <= step]
            self.generation += 1
        self.step = step

    def _on_rollback(self, event: dict[str, Any]) -> None:
        self._go_back_to(int(event.get("to_step", 0)))
        self.notes.append(f"Went back to step {event.get('to_step')}: {event.get('why', '')}.")

    def _on_step(self, event: dict[str, Any]) -> None:
        self.is_training, self.doing = True, ""
        self.step, self.steps = int(event.get("step", 0)), event.get("steps", self.steps)
        self.epoch, self.eta = event.get("epoch"), event.get("eta")
        self.loss_average = event.get("loss_average")
        if isinstance(event.get("seconds"), (int, float)):
            self._seconds = [*self._seconds[-19:], float(event["seconds"])]
        if event.get("loss") is not None and self.loss_average is not None:
            self.losses.append((self.step, float(event["loss"]), float(self.loss_average)))

    def _on_skipped(self, event: dict[str, Any]) -> None:
        self.step = int(event.get("step", self.step))

    def _on_validation(self, event: dict[str, Any]) -> None:
        step = event.get("step")
        self.validations = [each for each in self.validations if each.get("step") != step]
        self.validations.append({name: value for name, value in event.items() if name != "event"})

    def _on_sample(self, event: dict[str, Any]) -> None:
        self.samples[str(event.get("path"))] = {name: event.get(name) for name in ("step", "path", "prompt", "seed")}

    def _on_saved(self, event: dict[str, Any]) -> None:
        if event.get("kind") in ("result", "intermediate"):
            path = str(event.get("path"))
            self.saved[path] = {"file": path, "step": event.get("step"), "kind": event["kind"]}

    def _on_snapshot(self, event: dict[str, Any]) -> None:
        self.live = {"step": event.get("step"), "time": event.get("time")}

    def _on_best(self, event: dict[str, Any]) -> None:
        self.best = {name: value for name, value in event.items() if name not in ("event", "time")}

    def _on_verdict(self, event: dict[str, Any]) -> None:
        self.verdict = {name: value for name, value in event.items() if name != "event"}

    def _end(self, event: dict[str, Any], outcome: str) -> None:
        self.outcome, self.ended, self.eta, self.doing = outcome, event.get("time"), None, ""
        self.live, self.is_paused = None, False

    def _on_stopped(self, event: dict[str, Any]) -> None:
        self._end(event, STOPPED)
        self.step = int(event.get("step") or 0)
        if event.get("why"):
            self.notes.append(str(event["why"]))

    def _on_done(self, event: dict[str, Any]) -> None:
        self._end(event, DONE)
        self.step = int(event.get("step", self.step))

    def _on_failed(self, event: dict[str, Any]) -> None:
        self._end(event, FAILED)
        self.failures = [text for text in (event.get("advice"), event.get("why")) if text]

    def files(self, run: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Samples and outputs that are still there, oldest first."""
        samples = [each for path, each in self.samples.items() if (run / path).is_file()]
        outputs = [each for path, each in self.saved.items() if (run / path).exists()]
        return sorted(samples, key=lambda each: each["step"] or 0), sorted(outputs, key=lambda each: each["step"] or 0)
