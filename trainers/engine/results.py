"""What a run measures, draws and writes between its steps and at its end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from trainers.engine import memory, optimizers, sampling
from trainers.engine.best import best_of_run
from trainers.engine.finite import for_json, require_finite
from trainers.engine.live import Live
from trainers.engine.own_prior import own_prior, wants_own_prior
from trainers.engine.scalars import Scalars
from trainers.engine.session import Session
from trainers.engine.state import Counters
from trainers.engine.validation import held_out_loss
from trainers.engine.verdict import draw_verdict
from trainers.engine.watch import Watch
from trainers.engine.writing import result_metadata
from trainers.errors import is_out_of_memory


class Results:
    """Measures, draws and writes one run as far as it has come.

    Attributes:
        live: the snapshots that one draws with meanwhile.
    """

    def __init__(self, session: Session, show: Any, watch: Watch, scalars: Scalars) -> None:
        self.s, self.show = session, show
        self.live = Live(session)
        self._watch, self._scalars = watch, scalars
        self._undrawn = False

    @contextmanager
    def best_weights(self) -> Iterator[None]:
        """The weights that are measured, drawn with and saved: the average where there is one, without dropout. The
        training weights come back bit for bit."""
        averaged = self.s.ema.averaged(self.s.parameters()) if self.s.ema else nullcontext()
        evaluation = optimizers.evaluation_weights(self.s.optimizer, self.s.parameters())
        with evaluation, averaged, self.s.trainable.at_rest():
            yield

    # --- files

    def write(self, kind: str, step: int) -> Path:
        """The result ("result"), or a file of what it is so far ("intermediate")."""
        require_finite(self.s.trainable)
        path = self.s.folder.result(self.s.job, None if kind == "result" else step)
        if self.s.world.is_main:
            with self.best_weights():
                self.s.trainable.save(path, result_metadata(self.s, step))
            beside = self.s.trainable.beside(path) if hasattr(self.s.trainable, "beside") else []
            for each in (*beside, path):  # the result itself last: the newest of a step counts
                self.s.events.emit("saved", step=step, kind=kind, path=each.name)
        return path

    def snapshot(self, step: int, soon_busy: bool) -> None:
        """A snapshot for whoever draws with the run meanwhile, where one is due."""
        if self.live.is_due(step, soon_busy):
            with self.best_weights():
                self.live.write(step)

    def tell_words(self) -> None:
        """What an embedding learned, in words of the vocabulary."""
        if self.s.world.is_main and hasattr(self.s.trainable, "in_words"):
            with self.best_weights():
                for sentence in self.s.trainable.in_words():
                    self._note(sentence)

    def _note(self, sentence: str) -> None:
        self.s.events.emit("note", text=sentence)
        self.show.line(sentence)

    # --- figures

    def validate(self, counters: Counters) -> None:
        """Measure on the held-out and the unrelated pictures; the base's own losses are measured once."""
        if not self.s.world.is_main:
            return
        sets = {"loss": self.s.validation, "prior_loss": self._prior()}
        sets = {name: items for name, items in sets.items() if items}
        if not sets:
            return
        baseline = counters.baseline
        if not baseline:
            with self.s.trainable.without():
                baseline.update({name: self._measure(items) for name, items in sets.items()})
        if counters.step == 0 and not self.s.job.get("init_from"):
            now = dict(baseline)  # nothing is learned yet
        else:
            with self.best_weights():
                now = {name: self._measure(items) for name, items in sets.items()}
        fields = {**now, **{name.replace("loss", "base_loss"): value for name, value in baseline.items()}}
        self.s.events.emit("validation", step=counters.step, **for_json(fields))
        self._scalars.log({f"validation/{name}": value for name, value in fields.items()}, counters.step)
        self.show.line(_validation_text(counters.step, fields))
        self._watch.validation(counters, fields, counters.step >= self.s.total_steps)

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

    def report_memory(self, step: int) -> None:
        """What the run took, beside what was expected of it."""
        self.s.memory_use.end_of("training")
        facts, plan = self.s.memory_use.facts(), self.s.plan
        self.s.events.emit(
            "memory", step=step, **facts, planned_bytes=plan.peak_bytes, planned_stages=dict(plan.stages)
        )
        if facts["peak_bytes"]:
            taken, expected = memory.human(facts["peak_bytes"]), memory.human(plan.peak_bytes)
            self.show.line(f"Memory: {taken} at most; {expected} were expected.")

    # --- pictures

    def draw_samples(self, step: int) -> None:
        """The sample prompts. Where the memory does not suffice for that the run goes on without, and says so."""
        if not self.s.job.sample_prompts or not self.s.world.is_main:
            return
        try:
            self._draw_samples(step)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if not self._undrawn:
                self._note("The memory did not suffice for drawing sample pictures; the training goes on without them.")
            self._undrawn = True
        finally:
            self.s.models.park_vae()
        self.s.memory_use.end_of("drawing pictures")

    def _draw_samples(self, step: int) -> None:
        job, side = self.s.job, self.s.job.resolution // 8 * 8
        self.s.folder.samples.mkdir(exist_ok=True)
        self.s.models.need_vae()
        self.s.memory_use.end_of("training")
        with self.best_weights(), self.s.autocast():
            for number, prompt in enumerate(job.sample_prompts):
                seed = job.sample_seed + number
                picture = sampling.draw_one(
                    self.s.models.base, self.s.conditioner, prompt, seed=seed, size=(side, side),
                    steps=job.sample_steps, cfg=job.sample_cfg, negative=job.negative_prompt,
                    zero_terminal_snr=job.zero_terminal_snr,
                )  # fmt: skip
                path = self.s.folder.samples / f"{step:06d}-{number:02d}.png"
                sampling.save_png(picture, path)
                self.s.events.emit("sample", step=step, path=f"samples/{path.name}", prompt=prompt, seed=seed)

    def judge(self, training_seconds: float, is_stopped: Callable[[], bool]) -> None:
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
        draw_verdict(self.s, choice, training_seconds=training_seconds, is_stopped=is_stopped)


def _validation_text(step: int, fields: dict[str, float]) -> str:
    parts = (
        [f"Step {step}: held-out loss {fields['loss']:.4f} (base {fields['base_loss']:.4f})"]
        if "loss" in fields
        else []
    )
    if "prior_loss" in fields:
        parts.append(f"unrelated pictures {fields['prior_loss']:.4f} (base {fields['prior_base_loss']:.4f})")
    return ", ".join(parts)
