"""Looks after a run while it goes on: the checks that need figures of its steps (`trainers.checks.running`).

A finding becomes an event `check` and a line, once. A red one asks the loop to save and stop; whoever resumes the run
goes on in spite of it, and it is not said again.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from trainers.checks import STOP, Finding, running
from trainers.checks.facts import is_toy
from trainers.engine import objectives
from trainers.errors import InputError
from trainers.events import read_events
from trainers.rng import generator

if TYPE_CHECKING:
    from trainers.engine.session import Session
    from trainers.engine.state import Counters

FIRST_STEPS, LAST_STEPS, FIRST_RATES = 20, 3, 3
_TIMESTEPS = (250, 500, 750)


class Watch:
    """The running checks of one session.

    Attributes:
        stop_why: why the run should save and stop; None while it should go on.
        stop_check: the check that says so.
    """

    def __init__(self, session: Session, show: Any) -> None:
        self.s, self.show = session, show
        self.stop_why: str | None = None
        self.stop_check = ""
        self._first: list[float] = []
        self._last: list[float] = []
        self._start: dict[str, float] | None = None
        self._looked = False
        self._held_out: list[tuple[int, float]] | None = None

    # --- telling

    def _tell(self, found: Iterable[Finding | None], counters: Counters, at_end: bool = False) -> None:
        for finding in found:
            key = finding and f"{finding.id}:{finding.severity}"
            if finding is None or key in counters.told:
                continue
            counters.told.append(key)
            self.s.events.emit("check", step=counters.step, **finding.as_dict())
            self.show.line(f"{finding.text} {finding.what_to_do}".strip())
            held = finding.severity == STOP and finding.id not in self.s.job.override_checks
            if held and not at_end:
                self.stop_check = finding.id
                self.stop_why = f"Stopped by the check “{finding.id}”. To go on all the same, resume the run."

    def why_stopped(self) -> dict[str, str]:
        """What the event `stopped` says beside its step."""
        return {"why": self.stop_why, "check": self.stop_check} if self.stop_why else {}

    def begin_again(self, counters: Counters) -> None:
        """A run that got a smaller plan since memory was said to be short may find that it is short still."""
        kinds = [each["event"] for each in read_events(self.s.folder.events_file)[0]]
        said = [number for number, kind in enumerate(kinds) if kind == "check"]
        reduced = [number for number, kind in enumerate(kinds) if kind == "reduced"]
        if reduced and (not said or reduced[-1] > said[-1]):
            counters.told = [key for key in counters.told if not key.startswith("memory:")]

    # --- before the first step

    @torch.no_grad()
    def before_first_step(self) -> None:
        """Raises `InputError` where the base plainly predicts something else than was said."""
        if not self.s.world.is_main:
            return
        self._start = self._sums()
        batch = self.s.dataset.batch(0)
        if not batch.captions:
            return
        finding = running.prediction(self.s.job.prediction, *self._losses(batch))
        if finding is not None and "base" not in self.s.job.override_checks:
            self.s.events.emit("check", step=0, **finding.as_dict())
            raise InputError(finding.refusal())

    def _losses(self, batch: Any) -> tuple[float, float, float]:
        """Mean squared error of the base's answers for one picture under the declared prediction and the other, and the
        latter's share of the target's own mean square."""
        kinds = (self.s.job.prediction, "v" if self.s.job.prediction == "epsilon" else "epsilon")
        count = len(_TIMESTEPS)
        latents = batch.latents[:1].expand(count, -1, -1, -1)
        noise = torch.randn(latents.shape, generator=generator(self.s.job.seed, "prediction check"))
        steps, alphas = torch.tensor(_TIMESTEPS), self.s.alphas_cumprod
        noisy = objectives.add_noise(latents, noise, steps, alphas)
        with self.s.trainable.without():
            output = self.s.predict(noisy, steps, batch.captions[:1] * count, batch.time_ids[:1].expand(count, -1))
        output = output.float().cpu()
        targets = [objectives.target(kind, latents, noise, steps, alphas) for kind in kinds]
        declared, other = [(output - target).pow(2).mean().item() for target in targets]
        return declared, other, other / targets[1].pow(2).mean().item()

    def _sums(self) -> dict[str, float]:
        return {
            name: tensor.detach().double().abs().sum().item() for name, tensor in self.s.trainable.tensors().items()
        }

    # --- between the steps

    def step(self, counters: Counters, seconds: float) -> None:
        """After every step that was taken."""
        if not self.s.world.is_main:
            return
        if len(self._first) < FIRST_STEPS:
            self._first.append(seconds)
        self._last = [*self._last[1 - LAST_STEPS :], seconds]
        if self.s.device.type == "cuda" and len(self._first) == FIRST_STEPS:
            usual = statistics.median(self._first)
            if min(self._last) >= running.SPILL_TIMES * usual:
                free, total = torch.cuda.mem_get_info(self.s.device)
                self._tell([running.spill(min(self._last), usual, 1 - free / total)], counters)
        self._look_for_change(counters)

    def _look_for_change(self, counters: Counters) -> None:
        """Once, after a tenth of the steps and not before the learning rate has risen."""
        due = max(math.ceil(running.SHARE_UNTIL_LEARNED * self.s.total_steps), self.s.job.warmup + FIRST_RATES)
        if not self._looked and counters.step >= due:
            self._looked = True
            if self._is_unchanged():
                self._tell([running.nothing_changed(counters.step)], counters)

    def _is_unchanged(self) -> bool:
        """Whether every adapter still adds nothing, or (where nothing starts at zero) all is as it was."""
        tensors = self.s.trainable.tensors()
        ups = [tensor for name, tensor in tensors.items() if name.endswith("lora_up.weight")]
        if ups:
            return not any(bool(tensor.any()) for tensor in ups)
        return self._start is not None and self._sums() == self._start

    def validation(self, counters: Counters, fields: dict[str, float], is_last: bool) -> None:
        """After the held-out and the unrelated pictures were measured."""
        found = []
        if "loss" in fields and math.isfinite(fields["loss"]):
            if self._held_out is None:
                self._held_out = self._measured_before(counters.step)
            self._held_out.append((counters.step, fields["loss"]))
            found.append(running.burnt(self._held_out))
        if "prior_loss" in fields:
            toy = is_toy(self.s.info.parameters)
            found.append(
                running.forgetting(counters.step, fields["prior_loss"], fields["prior_base_loss"], toy, self.s.job)
            )
        self._tell(found, counters, at_end=is_last)

    def _measured_before(self, step: int) -> list[tuple[int, float]]:
        """Held-out losses of an earlier process of this run."""
        events, _ = read_events(self.s.folder.events_file)
        found = {each["step"]: each["loss"] for each in events if each["event"] == "validation" and each.get("loss")}
        return sorted((at, loss) for at, loss in found.items() if at < step)

    # --- at the end

    def end(self, counters: Counters) -> None:
        """After the last step: what became of the weights and the pictures."""
        if not self.s.world.is_main:
            return
        found = [self._delta(), self._pictures(counters.step)]
        self._tell(found, counters, at_end=True)

    def _delta(self) -> Finding | None:
        if self.s.job.get("kind") != "lora" or is_toy(self.s.info.parameters):
            return None
        norms = {name: _norm(each) for name, each in self.s.trainable.entries().items()}
        site = max(norms, key=norms.__getitem__)
        return running.delta(norms[site], site)

    def _pictures(self, step: int) -> Finding | None:
        pairs = [
            (
                self.s.folder.samples / f"{0:06d}-{number:02d}.png",
                self.s.folder.samples / f"{step:06d}-{number:02d}.png",
            )
            for number in range(len(self.s.job.sample_prompts))
        ]
        there = [pair for pair in pairs if all(path.exists() for path in pair)]
        return running.pictures_alike(max(_difference(*pair) for pair in there)) if there else None


def _norm(entry: dict[str, Any]) -> float:
    """Frobenius norm of scale * up @ down, from the small products only: trace(up' up down down')."""
    up, down = entry["lora_up"].flatten(1), entry["lora_down"].flatten(1)
    square = ((up.T @ up) * (down @ down.T)).sum().clamp(min=0)
    return float(square.sqrt() * entry["alpha"] / down.shape[0])


def _difference(one: Any, other: Any) -> float:
    """Mean absolute difference of two pictures, from 0 to 1."""
    first, second = (np.asarray(Image.open(path).convert("RGB"), dtype=np.float32) for path in (one, other))
    return float(np.abs(first - second).mean() / 255) if first.shape == second.shape else 1.0
