"""The loop that every method shares: steps, what happens between them, and what happens when something goes wrong."""

from __future__ import annotations

import math
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from trainers.engine import lr_schedules, state
from trainers.engine.attached import HostGone, watch_of
from trainers.engine.finite import Diverged, for_json, require_finite
from trainers.engine.results import Results
from trainers.engine.scalars import Scalars
from trainers.engine.session import Session
from trainers.engine.state import Counters
from trainers.engine.step import micro_step, prepare
from trainers.engine.turns import Turns
from trainers.engine.watch import Watch
from trainers.events import is_waiting, take_command, take_commands
from trainers.options import rate_steps

SKIPS_BEFORE_ROLLBACK = 3
ROLLBACKS_BEFORE_GIVING_UP = 3
ROLLBACK_LR_FACTOR = 0.5
STOP, SAVE, SAMPLE, SNAPSHOT = 1, 2, 4, 8
COMMAND_BITS = {"stop": STOP, "save": SAVE, "sample": SAMPLE, "snapshot": SNAPSHOT}


class FolderGone(Exception):
    """Somebody took the run's folder away: what is learned has no place to go."""


class Loop:
    """Runs a session to its end, a stop, or a failure."""

    def __init__(self, session: Session, show: Any) -> None:
        self.s, self.show = session, show
        self.counters = Counters()
        self.resumed_from: int | None = None
        self.stop_asked = False
        self._watch, self._scalars = Watch(session, show), Scalars(session)
        self.results = Results(session, show, self._watch, self._scalars)
        self._base_rates = [group["lr"] for group in session.optimizer.param_groups]
        self._step_seconds: list[float] = []
        self._turns = Turns(session.lease.drawing, session.events.emit)
        self._check_host = watch_of(session.lease, session.host_base)

    def ask_to_stop(self) -> None:
        """Finish the step, save and end; what a signal does."""
        self.stop_asked = True

    # --- state -------------------------------------------------------------------------------------------------

    def _tensors(self) -> dict[str, Any]:
        content = {"weights": self.s.trainable.tensors(), "optimizer": self.s.optimizer.state_dict()}
        if self.s.ema:
            content["ema"] = self.s.ema.state_dict()
        if self.s.scaler:
            content["scaler"] = self.s.scaler.state_dict()
        return content

    def _load(self, tensors: dict[str, Any]) -> None:
        with torch.no_grad():
            live = self.s.trainable.tensors()
            for name, saved in tensors["weights"].items():
                live[name].copy_(saved)
        self.s.optimizer.load_state_dict(tensors["optimizer"])
        if self.s.ema:
            self.s.ema.load_state_dict(tensors["ema"])
        if self.s.scaler:
            self.s.scaler.load_state_dict(tensors["scaler"])

    def resume(self) -> None:
        """Go on from the newest state, if there is one."""
        found = state.load_state(self.s.folder.states)
        if found is not None:
            self.counters, tensors = found
            self._load(tensors)
            self.resumed_from = self.counters.step
            self._watch.begin_again(self.counters)

    def save_state(self) -> None:
        require_finite(self.s.trainable)
        if self.s.world.is_main:
            state.save_state(self.s.folder.states, self.counters, self._tensors())
            self.s.events.emit("saved", step=self.counters.step, kind="state", path="state/current")
        self.s.world.wait()

    # --- the steps ---------------------------------------------------------------------------------------------

    def _set_rates(self) -> float:
        job, counters = self.s.job, self.counters
        if job.learning_rates:
            factor = lr_schedules.stepped(counters.step, rate_steps(job.learning_rates), job.warmup)
        else:
            factor = lr_schedules.factor(
                counters.step, self.s.total_steps, lr_schedules.kind_for(job), job.warmup, job.cycles
            )
        for group, rate in zip(self.s.optimizer.param_groups, self._base_rates, strict=True):
            group["lr"] = rate * factor * counters.lr_scale
        return factor

    def _gradients(self) -> tuple[float, float, float]:
        """Gradients of one step over all its batches and processes; (loss, plain loss, gradient norm)."""
        self.s.optimizer.zero_grad(set_to_none=True)
        accumulate = self.s.job.gradient_accumulation
        first = self.counters.step * accumulate
        parts = [torch.stack(micro_step(self.s, first + part)) for part in range(accumulate)]
        losses = torch.stack(parts).double().mean(dim=0) if self.s.device.type != "mps" else torch.stack(parts).mean(0)
        parameters = self.s.parameters()
        self.s.world.sum_gradients(parameters)
        if self.s.scaler:
            self.s.scaler.unscale_(self.s.optimizer)
        limit = self.s.job.max_grad_norm or math.inf
        norm = torch.nn.utils.clip_grad_norm_([p for p in parameters if p.grad is not None], limit)
        if self.counters.step + 1 < self.s.total_steps:
            prepare(self.s, first + accumulate)
        # The one moment of a step that waits for the device.
        learned, plain, norm = torch.cat([losses, norm.to(losses).reshape(1)]).tolist()
        return *self.s.world.sum(learned, plain), norm

    def _step(self) -> None:
        started = time.perf_counter()
        self._set_rates()
        learned, plain, norm = self._gradients()
        if self._check_host is not None:
            self._check_host()  # what was computed over memory that is gone must not be learned
        spoilt = getattr(self.s.optimizer, "spoilt", False)
        if math.isfinite(learned) and math.isfinite(norm) and not spoilt:
            self._apply()
            self.counters.skipped_in_a_row = 0
            self.counters.step += 1
            seconds = time.perf_counter() - started
            self._report_step(learned, plain, norm, seconds)
            self._watch.step(self.counters, seconds)
        else:
            self._skip("the gradient was not finite" if math.isfinite(learned) else "the loss was not finite")

    def _apply(self) -> None:
        if self.s.scaler:
            self.s.scaler.step(self.s.optimizer)
            self.s.scaler.update()
        else:
            self.s.optimizer.step()
        self.s.trainable.constrain()
        if self.s.ema:
            self.s.ema.update(self.s.parameters())

    def _skip(self, why: str) -> None:
        """A non-finite step changes nothing. Several in a row go back to the last good state with a lower rate."""
        counters = self.counters
        if self.s.scaler:  # an overflow of the scaled loss is usual: the scale shrinks and the run goes on
            self.s.scaler.update()
        self.s.optimizer.zero_grad(set_to_none=True)
        counters.step += 1
        counters.skipped += 1
        counters.skipped_in_a_row += 1
        self.s.events.emit("skipped", step=counters.step, why=why)
        self.show.line(f"Step {counters.step} changed nothing: {why}.")
        limit = SKIPS_BEFORE_ROLLBACK if not self.s.scaler else 10 * SKIPS_BEFORE_ROLLBACK
        if counters.skipped_in_a_row >= limit:
            self._roll_back(f"{counters.skipped_in_a_row} steps in a row, {why}")

    def _roll_back(self, why: str) -> None:
        rollbacks, at = self.counters.rollbacks + 1, self.counters.step
        if rollbacks > ROLLBACKS_BEFORE_GIVING_UP:
            raise Diverged(why)
        lr_scale = self.counters.lr_scale * ROLLBACK_LR_FACTOR
        found = state.load_state(self.s.folder.states)
        if found is None:
            raise Diverged(why)
        self.s.world.wait()  # every process has read it before one writes the next
        self.counters, tensors = found
        self._load(tensors)
        self.counters.rollbacks, self.counters.lr_scale = rollbacks, lr_scale
        self.counters.skipped_in_a_row = 0
        self.save_state()
        self.s.events.emit("rollback", step=at, to_step=self.counters.step, lr_scale=lr_scale, why=why)
        self.show.line(
            f"Went back from step {at} to step {self.counters.step}: {why}. The learning rate is now {lr_scale:g} "
            "of what was asked for."
        )

    @property
    def _pace(self) -> float:
        """Seconds that a step takes."""
        return sorted(self._step_seconds)[len(self._step_seconds) // 2] if self._step_seconds else 0.0

    def _report_step(self, learned: float, plain: float, norm: float, seconds: float) -> None:
        counters = self.counters
        average = counters.loss_average
        counters.loss_average = plain if average is None else average + (plain - average) * 0.02
        self._step_seconds = [*self._step_seconds[-19:], seconds]
        eta = self._pace * (self.s.total_steps - counters.step)
        rates = _rates(self.s.optimizer.param_groups)
        fields = {"loss": plain, "weighted_loss": learned, "loss_average": counters.loss_average, "grad_norm": norm}
        epoch = (counters.step - 1) // self.s.steps_per_epoch + 1
        self.s.events.emit(
            "step", step=counters.step, steps=self.s.total_steps, epoch=epoch, **for_json(fields), lr=rates,
            seconds=round(seconds, 4), eta=round(eta, 1),
        )  # fmt: skip
        self._scalars.log({f"train/{name}": value for name, value in fields.items()}, counters.step)
        self.show.step(counters.step, self.s.total_steps, counters.loss_average, eta)

    # --- between the steps -------------------------------------------------------------------------------------

    def _due(self, every: int, every_epochs: int = 0) -> bool:
        step = self.counters.step
        by_epoch = every_epochs * self.s.steps_per_epoch
        return bool((every and step % every == 0) or (by_epoch and step % by_epoch == 0))

    def _commands(self) -> int:
        """What was asked for through the run folder or a signal, the same in every process."""
        bits = 0
        if self.s.world.is_main:
            for command in take_commands(self.s.folder.path):
                bits |= COMMAND_BITS[command]
            bits |= STOP if self.stop_asked or self._watch.stop_why else 0
        return self.s.world.from_main(bits)

    def _between_steps(self) -> bool:
        """What is due after a step; True when the run was asked to stop."""
        job, asked = self.s.job, self._commands()
        if not self.s.folder.events_file.exists():
            raise FolderGone(f"{self.s.folder.path} was deleted or moved away, so the run ends.")
        to_save = self._due(job.save_every, job.save_every_epochs)
        to_measure = self._due(job.validate_every) or (job.find_best and to_save)
        to_draw = asked & SAMPLE or self._due(job.sample_every, job.sample_every_epochs)
        self._snapshot(asked, bool(to_measure or to_draw))
        if to_measure:
            self.results.validate(self.counters)
        if to_draw:
            self.results.draw_samples(self.counters.step)
        if asked & (SAVE | STOP) or to_save:
            self.results.write("intermediate", self.counters.step)
        if asked & (SAVE | STOP) or self._due(job.state_every):
            self.save_state()
        return bool(asked & STOP)

    def _snapshot(self, asked: int, soon_busy: bool) -> None:
        if asked & SNAPSHOT:
            self.results.live.ask()
        self.results.snapshot(self.counters.step, soon_busy)

    def _while_paused(self) -> bool:
        """Whether to pause no longer. The picture that is paused for may be drawn with a snapshot of this very run."""
        if self.results.live.is_possible and take_command(self.s.folder.path, "snapshot"):
            self._snapshot(SNAPSHOT, soon_busy=False)
        return self._stop_is_waiting()

    def _lost_its_base(self, error: Exception) -> bool:
        """Saves and says so, where the WebUI has ended whose model is trained on; an error of CUDA may come of it
        first, and then nothing can be saved any more beyond the last state."""
        if self._check_host is None:
            return False
        if not isinstance(error, HostGone):
            try:
                self._check_host()
            except HostGone:
                pass
            else:
                return False
        with suppress(RuntimeError):
            self.save_state()
        why = "The WebUI whose model was trained on has ended. Resume goes on, from the model's file if need be."
        self.s.events.emit("stopped", step=state.newest_step(self.s.folder.states), why=why)
        return True

    def run(self) -> str:
        """Train to the end: "done", or "stopped" when that was asked for, or when the WebUI ended whose model is
        trained on. Raises `Diverged`."""
        try:
            return self._run()
        except (HostGone, RuntimeError) as error:
            if not self._lost_its_base(error):
                raise
            return "stopped"
        finally:
            self._scalars.close()

    def _stop_is_waiting(self) -> bool:
        return self.stop_asked or is_waiting(self.s.folder.path, "stop")

    def _run(self) -> str:
        job, total = self.s.job, self.s.total_steps
        began = time.monotonic()
        self.s.events.emit(
            "start", method=job.method, name=job.name, steps=total, resumed_from=self.resumed_from, process=os.getpid()
        )
        if self.resumed_from is None:
            self._watch.before_first_step()
            self.save_state()  # something to go back to before the first state is due
            self.results.validate(self.counters)
            self.results.draw_samples(self.counters.step)
        elif not self.counters.baseline:
            self.results.validate(self.counters)
        while self.counters.step < total:
            self._step()
            if self.counters.step < total and self._between_steps():
                self.s.events.emit("stopped", step=self.counters.step, **self._watch.why_stopped())
                return "stopped"
            self._turns.wait(self._while_paused)
        path = self._finish()
        self.s.events.emit("done", step=total, path=path.name, seconds=round(time.monotonic() - began, 3))
        return "done"

    def _finish(self) -> Path:
        """All that comes of a run that has all its steps; the result's path."""
        self._snapshot(0, soon_busy=True)
        self.results.validate(self.counters)
        self.results.draw_samples(self.counters.step)
        self.results.report_memory(self.counters.step)
        self._watch.end(self.counters)
        path = self.results.write("result", self.counters.step)
        self.results.tell_words()
        self.save_state()
        self.results.judge(self._pace * self.s.total_steps, self._stop_is_waiting)
        return path


def _rates(groups: list[dict[str, Any]]) -> dict[str, float]:
    """The learning rates by part, equal ones of a part once."""
    found: dict[tuple[str, float], None] = {}
    for group in groups:
        found.setdefault((group.get("name", ""), float(group["lr"])))
    return {f"{number}:{name}": rate for number, (name, rate) in enumerate(found)}
