"""The verdict sheet: what a run came to, on one picture, drawn at its end without being asked for.

Each line is a prompt with its fixed seed: before, then saved files from early to late, each at several strengths.
Its PNG carries the recipe (`trainers.formats.recipe_png`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from trainers.engine import sampling
from trainers.engine.best import Choice, Saved
from trainers.engine.sheet import compose_sheet
from trainers.formats.recipe_png import KEYWORD, shareable
from trainers.options import default_samples
from trainers.spec import Job

if TYPE_CHECKING:
    from trainers.engine.session import Session

SHARE_OF_TRAINING, LEAST_SECONDS = 0.2, 20.0
"""The sheet takes about this share of the time that the steps took, and this many seconds at least; where that is
short, it shows less."""
MOST_PROMPTS = 4
WEIGHTS = {1: (1.0,), 2: (0.7, 1.0), 3: (0.5, 0.75, 1.0)}
_LAYOUTS = ((4, 5, 3), (4, 4, 3), (4, 3, 3), (4, 3, 2), (4, 3, 1), (4, 2, 1), (4, 1, 1), (2, 1, 1))
"""(prompts, files, strengths), from the fullest sheet to the smallest, which is always drawn."""


@dataclass(frozen=True)
class Layout:
    """What a sheet shows."""

    prompts: int
    files: int
    weights: tuple[float, ...]

    @property
    def pictures(self) -> int:
        return self.prompts * (1 + self.files * len(self.weights))


def layout_for(prompts: int, files: int, scalable: bool, seconds: float, per_picture: float) -> Layout:
    """The fullest layout whose pictures can be drawn in `seconds`.

    Args:
        prompts, files: how many there are.
        scalable: whether other strengths than 1 can be drawn.
    """
    layout = Layout(1, 1, (1.0,))
    for rows, columns, strengths in _LAYOUTS:
        layout = Layout(min(rows, prompts), min(columns, files), WEIGHTS[strengths if scalable else 1])
        if layout.pictures * per_picture <= seconds:
            break
    return layout


def spread(files: Sequence[Saved], count: int, best: Saved) -> list[Saved]:
    """`count` of the files, evenly from the first to the last, the best one always among them."""
    if count >= len(files):
        return list(files)
    if count == 1:
        return [best]
    places = {round(number * (len(files) - 1) / (count - 1)) for number in range(count)}
    place = list(files).index(best)
    if place not in places:
        places.remove(min(places, key=lambda each: abs(each - place)))
        places.add(place)
    return [files[each] for each in sorted(places)]


def verdict_prompts(job: Job) -> list[str]:
    """What the sheet of a job draws; nothing where it draws none."""
    if not job.get("verdict"):
        return []
    return list(job.sample_prompts[:MOST_PROMPTS]) or default_samples(job.trigger)


def draw_verdict(session: Session, choice: Choice, training_seconds: float, is_stopped: Callable[[], bool]) -> None:
    """Draws the sheet of a finished run and tells of it. What goes wrong is a note: the run is done.

    Args:
        is_stopped: asked between pictures; True gives the sheet up.
    """
    if not verdict_prompts(session.job):
        return
    try:
        _Artist(session, choice, is_stopped).draw(max(training_seconds * SHARE_OF_TRAINING, LEAST_SECONDS))
    except (RuntimeError, MemoryError, OSError, ValueError) as error:  # a full disk, a file that was taken away
        why = next(iter(str(error).splitlines()), type(error).__name__)
        session.events.emit("note", text=f"The verdict sheet could not be drawn: {why}")


class _GivenUp(ValueError):
    pass


class _Artist:
    def __init__(self, session: Session, choice: Choice, is_stopped: Callable[[], bool]) -> None:
        self.s, self.choice, self.is_stopped = session, choice, is_stopped
        self.prompts = verdict_prompts(session.job)
        self.trainable: Any = session.trainable

    def draw(self, seconds: float) -> None:
        """The whole sheet, in about `seconds`."""
        self.s.events.emit("progress", what="drawing the verdict sheet", done=0, total=0)
        self.s.models.need_vae()
        began = time.monotonic()
        with self.trainable.without():
            before = [self._picture(0)]
            layout = layout_for(
                len(self.prompts), len(self.choice.files), hasattr(self.trainable, "scaled"), seconds,
                time.monotonic() - began,
            )  # fmt: skip
            before += [self._picture(number) for number in range(1, layout.prompts)]
        self.total, self.done = layout.pictures, len(before)
        files = spread(self.choice.files, layout.files, self.choice.best)
        columns = []
        with self._kept():
            for file in files:
                wear = getattr(self.trainable, "wear", self.trainable.start_from)
                wear(self.s.folder.path / file.path)
                columns += [(file, weight, self._column(weight, layout.prompts)) for weight in layout.weights]
        self._write(layout, files, before, columns)
        self.s.models.park_vae()

    @contextmanager
    def _kept(self) -> Iterator[None]:
        """The trained weights come back as they were; meanwhile they wait where a whole model has room."""
        live = self.trainable.tensors()
        former = {name: tensor.detach().to("cpu", copy=True) for name, tensor in live.items()}
        try:
            with self.trainable.at_rest():
                yield
        finally:
            with torch.no_grad():
                for name, tensor in live.items():
                    tensor.copy_(former[name])

    def _column(self, weight: float, count: int) -> list[Image.Image]:
        scaled: AbstractContextManager[None] = self.trainable.scaled(weight) if weight != 1 else nullcontext()
        drawn = []
        with scaled:
            for number in range(count):
                drawn.append(self._picture(number))
                self.done += 1
                self.s.events.emit("progress", what="drawing the verdict sheet", done=self.done, total=self.total)
        return drawn

    def _picture(self, number: int) -> Image.Image:
        if self.is_stopped():
            raise _GivenUp("a stop was asked for; the result itself is complete.")
        job = self.s.job
        side = job.resolution // 8 * 8
        with self.s.autocast():
            return sampling.draw_one(
                self.s.models.base, self.s.conditioner, self.prompts[number], seed=job.sample_seed + number,
                size=(side, side), steps=job.sample_steps, cfg=job.sample_cfg, negative=job.negative_prompt,
                zero_terminal_snr=job.zero_terminal_snr,
            )  # fmt: skip

    def _write(self, layout: Layout, files: list[Saved], before: list[Image.Image], columns: list[Any]) -> None:
        job = self.s.job
        sheet = compose_sheet(
            title=f"{job.name}   {self.choice.sentence()}",
            prompts=self.prompts[: layout.prompts],
            before=before,
            columns=[(f"step {file.step}", weight, file == self.choice.best, drawn) for file, weight, drawn in columns],
        )
        chunk = PngInfo()
        chunk.add_text(KEYWORD, shareable(job, Path(job.base).name, self.s.base_hashes.result().full))
        folder = self.s.folder.verdict
        folder.mkdir(exist_ok=True)
        sampling.save_png(sheet, folder / "sheet.png", chunk)
        self.s.events.emit(
            "verdict", path="verdict/sheet.png", step=self.choice.best.step, prompts=self.prompts[: layout.prompts],
            steps=[file.step for file in files], weights=list(layout.weights),
        )  # fmt: skip
