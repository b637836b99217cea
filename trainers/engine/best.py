"""Which of a run's files is the best: by the held-out loss, as long as what the model knew is kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainers.events import read_events

PRIOR_LIMIT = 1.05
"""How much the loss on unrelated pictures may grow, as a factor on the base's own; beyond it too much is forgotten."""


@dataclass(frozen=True)
class Saved:
    """One file of a run and what was measured with its weights.

    Attributes:
        loss: on the held-out pictures; None where there are none.
        prior: loss on unrelated pictures over the base's own; None where it was not measured.
    """

    step: int
    path: str
    loss: float | None = None
    prior: float | None = None


@dataclass(frozen=True)
class Choice:
    """The best file, and why: "lowest" held-out loss, "kept" (the others forget too much), "forgets" (all of them do,
    this one least), or "last" (there is nothing to compare). `files` are all that there were."""

    best: Saved
    reason: str
    files: tuple[Saved, ...]

    def sentence(self) -> str:
        """For a person."""
        best = self.best
        prior = f", unrelated pictures at {best.prior:.3f} of the base's loss" if best.prior else ""
        loss = f"{best.loss:.4f}" if best.loss is not None else ""
        among = sum(each.loss is not None for each in self.files)
        if self.reason == "lowest":
            return f"step {best.step} has the lowest held-out loss of {among} files ({loss}{prior})."
        if self.reason == "kept":
            return (
                f"step {best.step} has the lowest held-out loss of those that keep what the model knew ({loss}{prior})."
            )
        if self.reason == "forgets":
            return f"every file forgets what the model knew, step {best.step} least{prior}."
        if best.loss is None:
            return f"step {best.step}, the last; overfitting is not measurable, as no pictures are held out."
        return f"step {best.step}, the last and the only file that was measured ({loss}{prior})."


def saved_files(events: Iterable[Mapping[str, Any]], folder: Path) -> list[Saved]:
    """The files of a run that are still there with what was measured at their steps, oldest first."""
    measured: dict[int, Mapping[str, Any]] = {}
    files: dict[int, str] = {}
    for event in events:
        if event["event"] == "validation":
            measured[int(event["step"])] = event
        elif event["event"] == "saved" and event.get("kind") in ("intermediate", "result"):
            files[int(event["step"])] = str(event["path"])
    found = []
    for step, path in sorted(files.items()):
        if (folder / path).exists():
            said = measured.get(step, {})
            prior, base = said.get("prior_loss"), said.get("prior_base_loss")
            found.append(Saved(step, path, said.get("loss"), prior / base if prior and base else None))
    return found


def choose(files: Sequence[Saved]) -> Choice:
    """The best of at least one file; of equal ones the earlier."""
    measured, every = [each for each in files if each.loss is not None], tuple(files)
    if len(measured) < 2:
        return Choice(files[-1], "last", every)
    keeping = [each for each in measured if each.prior is None or each.prior <= PRIOR_LIMIT]
    if not keeping:
        return Choice(min(measured, key=lambda each: each.prior), "forgets", every)
    best = min(keeping, key=lambda each: each.loss)
    lowest = min(measured, key=lambda each: each.loss)
    return Choice(best, "lowest" if best == lowest else "kept", every)


def best_of_run(events_file: Path) -> Choice | None:
    """The best file of a run by its events; None where it has none."""
    events, _ = read_events(events_file)
    files = saved_files(events, events_file.parent)
    return choose(files) if files else None
