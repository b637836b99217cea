"""The loop that every method shares: steps, what happens between them, and what happens when something goes wrong."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch

from trainers.engine import lr_schedules, memory, optimizers, sampling, state
from trainers.engine.attached import HostGone, watch_of
from trainers.engine.best import best_of_run
from trainers.engine.live import Live
from trainers.engine.own_prior import own_prior, wants_own_prior
from trainers.engine.session import Session
from trainers.engine.state import Counters
from trainers.engine.step import micro_step, prepare
from trainers.engine.turns import Turns
from trainers.engine.validation import held_out_loss
from trainers.engine.verdict import draw_verdict
from trainers.engine.watch import Watch
from trainers.engine.writing import result_metadata
from trainers.events import is_waiting, take_command, take_commands
from trainers.options import rate_steps

SKIPS_BEFORE_ROLLBACK = 3
ROLLBACKS_BEFORE_GIVING_UP = 3
ROLLBACK_LR_FACTOR = 0.5
STOP, SAVE, SAMPLE, SNAPSHOT = 1, 2, 4, 8
COMMAND_BITS = {"stop": STOP, "save": SAVE, "sample": SAMPLE, "snapshot": SNAPSHOT}


class Diverged(Exception):
    """The loss stayed non-finite after every way back was tried."""


class Loop:
    """Runs a session to its end, a stop, or a failure."""

    def __init__(self, session: Session, show: Any) -> None:
        self.s, self.show = session, show
        self.counters = Counters()
        self.live = Live(session)
        self.resumed_from: int | None = None
        self.stop_asked = False
        self._watch = Watch(session, show)
        self._base_rates = [group["lr"] for group in session.optimizer.param_groups]
        self._step_seconds: list[float] = []
        self._tensorboard = None
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

    def _require_finite(self) -> None:
        """Nothing that is not finite reaches a file."""
        if not all(bool(torch.isfinite(tensor).all()) for tensor in self.s.trainable.tensors().values()):
            raise Diverged("the trained weights are no longer finite")

    def save_state(self) -> None:
        self._require_finite()
        if self.s.world.is_main:
            state.save_state(self.s.folder.states, self.counters, self._tensors())
            self.s.events.emit("saved", step=self.counters.step, kind="state", path="state/current")
        self.s.world.wait()

    # --- results -----------------------------------------------------------------------------------------------

    @contextmanager
    def _best_weights(self) -> Iterator[None]:
        """The weights that are measured, drawn with and saved: the average where there is one, without dropout. The
        training weights come back bit for bit."""
        averaged = self.s.ema.averaged(self.s.parameters()) if self.s.ema else nullcontext()
        evaluation = optimizers.evaluation_weights(self.s.optimizer, self.s.parameters())
        with evaluation, averaged, self.s.trainable.at_rest():
            yield

    def write_result(self, kind: str) -> Path:
        self._require_finite()
        step = None if kind == "result" else self.counters.step
        path = self.s.folder.result(self.s.job, step)
        if self.s.world.is_main:
            with self._best_weights():
                self.s.trainable.save(path, result_metadata(self.s, self.counters.step))
            beside = self.s.trainable.beside(path) if hasattr(self.s.trainable, "beside") else []
            for each in (*beside, path):  # the result itself last: the newest of a step counts
                self.s.events.emit("saved", step=self.counters.step, kind=kind, path=each.name)
        return path

    def _tell_words(self) -> None:
        """What an embedding learned, in words of the vocabulary."""
        if self.s.world.is_main and hasattr(self.s.trainable, "in_words"):
            with self._best_weights():
                for sentence in self.s.trainable.in_words():
                    self.s.events.emit("note", text=sentence)
                    self.show.line(sentence)

    def validate(self) -> None:
        """Measure on the held-out and the unrelated pictures; the base's own losses are measured once."""
        if not self.s.world.is_main:
            return
        sets = {"loss": self.s.validation, "prior_loss": self._prior()}
        sets = {name: items for name, items in sets.items() if items}
        if not sets:
            return
        baseline = self.counters.baseline
        if not baseline:
            with self.s.trainable.without():
                baseline.update({name: self._measure(items) for name, items in sets.items()})
        if self.counters.step == 0 and not self.s.job.get("init_from"):
            now = dict(baseline)  # nothing is learned yet
        else:
            with self._best_weights():
                now = {name: self._measure(items) for name, items in sets.items()}
        fields = {**now, **{name.replace("loss", "base_loss"): value for name, value in baseline.items()}}
        self.s.events.emit("validation", step=self.counters.step, **_finite(fields))
        self._log_scalars({f"validation/{name}": value for name, value in fields.items()})
        self.show.line(_validation_text(self.counters.step, fields))
        self._watch.validation(self.counters, fields, self.counters.step >= self.s.total_steps)

    def _prior(self) -> list[Any]:
        """The unrelated pictures to measure on: those that were named, else a few that the base draws itself."""
        s = self.s
        if not s.prior and s.validation and wants_own_prior(s.job):
            with s.trainable.without(), s.autocast():
                s.prior = own_prior(s.models.base, s.conditioner, s.job, s.folder.path / "prior.pt")
        return s.prior

    def _measure(self, items: list[Any]) -> float:
        return held_out_loss(
            items,
            self.s.predict,
            prediction=self.s.job.prediction,
            alphas_cumprod=self.s.alphas_cumprod,
            draws=self.s.job.validation_draws,
        )

    def draw_samples(self) -> None:
        job = self.s.job
        if not job.sample_prompts or not self.s.world.is_main:
            return
        self.s.folder.samples.mkdir(exist_ok=True)
        self.s.models.need_vae()
        side = job.resolution // 8 * 8
        self.s.memory_use.end_of("training")
        with self._best_weights(), self.s.autocast():
            for number, prompt in enumerate(job.sample_prompts):
                picture = sampling.draw_one(
                    self.s.models.base, self.s.conditioner, prompt, seed=job.sample_seed + number, size=(side, side),
                    steps=job.sample_steps, cfg=job.sample_cfg, negative=job.negative_prompt,
                    zero_terminal_snr=job.zero_terminal_snr,
                )  # fmt: skip
                path = self.s.folder.samples / f"{self.counters.step:06d}-{number:02d}.png"
                sampling.save_png(picture, path)
                self.s.events.emit(
                    "sample",
                    step=self.counters.step,
                    path=f"samples/{path.name}",
                    prompt=prompt,
                    seed=job.sample_seed + number,
                )
        self.s.models.park_vae()
        self.s.memory_use.end_of("drawing pictures")

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
            self._skip("loss" if not math.isfinite(learned) else "gradient")

    def _apply(self) -> None:
        if self.s.scaler:
            self.s.scaler.step(self.s.optimizer)
            self.s.scaler.update()
        else:
            self.s.optimizer.step()
        self.s.trainable.constrain()
        if self.s.ema:
            self.s.ema.update(self.s.parameters())

    def _skip(self, what: str) -> None:
        """A non-finite step changes nothing. Several in a row go back to the last good state with a lower rate."""
        counters = self.counters
        if self.s.scaler:  # an overflow of the scaled loss is usual: the scale shrinks and the run goes on
            self.s.scaler.update()
        self.s.optimizer.zero_grad(set_to_none=True)
        counters.step += 1
        counters.skipped += 1
        counters.skipped_in_a_row += 1
        why = f"the {what} was not finite"
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

    def _report_step(self, learned: float, plain: float, norm: float, seconds: float) -> None:
        counters = self.counters
        average = counters.loss_average
        counters.loss_average = plain if average is None else average + (plain - average) * 0.02
        self._step_seconds = [*self._step_seconds[-19:], seconds]
        pace = sorted(self._step_seconds)[len(self._step_seconds) // 2]
        eta = pace * (self.s.total_steps - counters.step)
        rates = _rates(self.s.optimizer.param_groups)
        fields = {"loss": plain, "weighted_loss": learned, "loss_average": counters.loss_average, "grad_norm": norm}
        epoch = (counters.step - 1) // self.s.steps_per_epoch + 1
        self.s.events.emit(
            "step", step=counters.step, steps=self.s.total_steps, epoch=epoch, **_finite(fields), lr=rates,
            seconds=round(seconds, 4), eta=round(eta, 1),
        )  # fmt: skip
        self._log_scalars({f"train/{name}": value for name, value in fields.items()})
        self.show.step(counters.step, self.s.total_steps, counters.loss_average, eta)

    def _log_scalars(self, values: dict[str, float]) -> None:
        if not self.s.job.tensorboard or not self.s.world.is_main:
            return
        if self._tensorboard is None:
            from torch.utils.tensorboard import SummaryWriter

            self._tensorboard = SummaryWriter(str(self.s.folder.path / "tensorboard"))
        for name, value in values.items():
            self._tensorboard.add_scalar(name, value, self.counters.step)

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
        to_save = self._due(job.save_every, job.save_every_epochs)
        to_measure = self._due(job.validate_every) or (job.find_best and to_save)
        to_draw = asked & SAMPLE or self._due(job.sample_every, job.sample_every_epochs)
        self._snapshot(asked, bool(to_measure or to_draw))
        if to_measure:
            self.validate()
        if to_draw:
            self.draw_samples()
        if asked & (SAVE | STOP) or to_save:
            self.write_result("intermediate")
        if asked & (SAVE | STOP) or self._due(job.state_every):
            self.save_state()
        return bool(asked & STOP)

    def _snapshot(self, asked: int, soon_busy: bool) -> None:
        if asked & SNAPSHOT:
            self.live.ask()
        if self.live.is_due(self.counters.step, soon_busy):
            with self._best_weights():
                self.live.write(self.counters.step)

    def _report_memory(self) -> None:
        """What the run took, beside what was expected of it."""
        self.s.memory_use.end_of("training")
        facts, plan = self.s.memory_use.facts(), self.s.plan
        self.s.events.emit(
            "memory", step=self.counters.step, **facts, planned_bytes=plan.peak_bytes, planned_stages=dict(plan.stages)
        )
        if facts["peak_bytes"]:
            taken, expected = memory.human(facts["peak_bytes"]), memory.human(plan.peak_bytes)
            self.show.line(f"Memory: {taken} at most; {expected} were expected.")

    def _while_paused(self) -> bool:
        """Whether to pause no longer. The picture that is paused for may be drawn with a snapshot of this very run."""
        if self.live.is_possible and take_command(self.s.folder.path, "snapshot"):
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
            if self._tensorboard is not None:
                self._tensorboard.close()  # it holds the last minutes back until then

    def _judge(self) -> None:
        """What is said of a run that has all its steps: its best file, and a sheet of pictures to judge by."""
        if not self.s.world.is_main:
            return
        choice = best_of_run(self.s.folder.events_file)
        if choice is None:  # the run's folder was tidied up meanwhile
            return
        best = choice.best
        self.s.events.emit(
            "best", step=best.step, path=best.path, loss=best.loss, prior=best.prior, reason=choice.reason,
            why=choice.sentence(),
        )  # fmt: skip
        self.show.line(f"Best: {choice.sentence()}")
        pace = sorted(self._step_seconds)[len(self._step_seconds) // 2] if self._step_seconds else 0.0
        draw_verdict(self.s, choice, training_seconds=pace * self.s.total_steps, is_stopped=self._stop_is_waiting)

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
            self.validate()
            self.draw_samples()
        elif not self.counters.baseline:
            self.validate()
        while self.counters.step < total:
            self._step()
            if self.counters.step < total and self._between_steps():
                why = {"why": self._watch.stop_why} if self._watch.stop_why else {}
                self.s.events.emit("stopped", step=self.counters.step, **why)
                return "stopped"
            self._turns.wait(self._while_paused)
        self._snapshot(0, soon_busy=True)
        self.validate()
        self.draw_samples()
        self._report_memory()
        self._watch.end(self.counters)
        path = self.write_result("result")
        self._tell_words()
        self.save_state()
        self._judge()
        self.s.events.emit("done", step=total, path=path.name, seconds=round(time.monotonic() - began, 3))
        return "done"


def _rates(groups: list[dict[str, Any]]) -> dict[str, float]:
    """The learning rates by part, equal ones of a part once."""
    found: dict[tuple[str, float], None] = {}
    for group in groups:
        found.setdefault((group.get("name", ""), float(group["lr"])))
    return {f"{number}:{name}": rate for number, (name, rate) in enumerate(found)}


def _finite(fields: dict[str, float]) -> dict[str, float | None]:
    """JSON has no NaN."""
    return {name: value if math.isfinite(value) else None for name, value in fields.items()}


def _validation_text(step: int, fields: dict[str, float]) -> str:
    parts = (
        [f"Step {step}: held-out loss {fields['loss']:.4f} (base {fields['base_loss']:.4f})"]
        if "loss" in fields
        else []
    )
    if "prior_loss" in fields:
        parts.append(f"unrelated pictures {fields['prior_loss']:.4f} (base {fields['prior_base_loss']:.4f})")
    return ", ".join(parts)
