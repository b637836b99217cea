"""Grids of epoch by strength that the host draws: a picture for each prompt, file and strength, with fixed seeds.

A grid is a folder `grids/<id>/` beside the runs: `grid.json` and one PNG for each cell, as they are drawn.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from extension.jobs.files import read_json, write_json
from trainers.errors import InputError

MOST_PICTURES = 400
SEED = 42
STEPS = 20
_MOST_STEPS = 150


@dataclass(frozen=True)
class Drawing:
    """One picture that a host is asked for.

    Attributes:
        prompt: with tags; `files` is what names in it mean that lie in none of the host's folders.
    """

    prompt: str
    seed: int = SEED
    steps: int = STEPS
    files: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class Drawn:
    """A host's answer: the picture, and sentences about its tags."""

    image: Image.Image
    reports: Sequence[str] = ()


Draw = Callable[[Drawing], Drawn]


@dataclass(frozen=True)
class Wish:
    """What a grid shows: lines are prompts; columns are without the file, then each file at each strength.

    Attributes:
        files: heading and path.
        steps: sampling steps of each picture.
    """

    title: str
    files: Sequence[tuple[str, Path]]
    prompts: Sequence[str]
    weights: Sequence[float]
    steps: int = STEPS

    @property
    def cells(self) -> list[tuple[int, int | None, float]]:
        """(prompt, file or None, strength) in the order they are drawn: what tells most comes first."""
        before = [(row, None, 0.0) for row in range(len(self.prompts))]
        strongest = sorted(self.weights, key=lambda weight: abs(weight - 1))
        return before + [(row, file, weight) for weight in strongest for file in range(len(self.files))
                         for row in range(len(self.prompts))]  # fmt: skip


def checked(title: str, files: Sequence[tuple[str, Path]], prompts: Any, weights: Any, steps: Any = None) -> Wish:
    """A wish out of a client's lists and, where it names any, its sampling steps.

    Raises:
        InputError: one of them will not do.
    """
    if not isinstance(prompts, list) or not all(isinstance(each, str) and len(each) <= 4000 for each in prompts):
        raise InputError("prompts: must be a list of texts.")
    kept = [each.strip() for each in prompts if each.strip()]
    numbers = weights if isinstance(weights, list) and all(type(each) in (int, float) for each in weights) else []
    if not kept or not numbers or not all(-4 <= each <= 4 for each in numbers):
        raise InputError("A grid needs at least one prompt, and strengths between -4 and 4.")
    if steps is not None and (type(steps) is not int or not 1 <= steps <= _MOST_STEPS):
        raise InputError(f"A grid's steps must be a whole number between 1 and {_MOST_STEPS}.")
    weights = list(dict.fromkeys(float(each) for each in numbers))
    wish = Wish(title, list(files), kept, weights, steps or STEPS)
    if not files or len(wish.cells) > MOST_PICTURES:
        raise InputError(f"A grid of {len(wish.cells)} pictures is too large; {MOST_PICTURES} are the most.")
    return wish


class Grids:
    """The grids of one data folder; one is drawn at a time."""

    def __init__(self, folder: Path, draw: Draw | None) -> None:
        self.folder, self._draw = folder, draw
        self._lock = threading.Lock()
        self._now: _Work | None = None

    @property
    def can_draw(self) -> bool:
        return self._draw is not None

    def begin(self, wish: Wish) -> dict[str, Any]:
        """Draws a grid from now on, in a thread of its own.

        Raises:
            InputError: this host draws none, or another grid is being drawn.
        """
        if self._draw is None:
            raise InputError("No grid can be drawn here: this page has no model to draw with.")
        with self._lock:
            if self._now is not None and self._now.is_alive():
                raise InputError("Another grid is being drawn; wait for it, or cancel it.")
            self._now = _Work(self._new_folder(), wish, self._draw)
            self._now.start()
        return self.one(self._now.place.name)

    def _new_folder(self) -> Path:
        stamp, number = time.strftime("%Y%m%d-%H%M%S"), 1
        while True:
            place = self.folder / (stamp if number == 1 else f"{stamp}-{number}")
            try:
                place.mkdir(parents=True)
                return place
            except FileExistsError:
                number += 1

    def one(self, name: str) -> dict[str, Any]:
        """What is known of a grid: what it shows, which cells are drawn, and whether it is being drawn."""
        place = self._find(name)
        said = read_json(place / "grid.json") or {}
        is_drawn = self._now is not None and self._now.place == place and self._now.is_alive()
        return {**said, "id": name, "drawing": is_drawn}

    def _find(self, name: str) -> Path:
        place = self.folder / name
        if not name or name.startswith(".") or Path(name).name != name or not (place / "grid.json").is_file():
            raise InputError("There is no such grid.")
        return place

    def picture(self, name: str, cell: int) -> Path:
        """The file of a cell."""
        path = self._find(name) / f"{cell:04d}.png"
        if not path.is_file():
            raise InputError("This picture is not drawn yet.")
        return path

    def cancel(self, name: str) -> dict[str, Any]:
        """Ends it after the present picture."""
        if self._now is not None and self._now.place == self._find(name):
            self._now.cancelled.set()
        return self.one(name)


class _Work(threading.Thread):
    def __init__(self, place: Path, wish: Wish, draw: Draw) -> None:
        super().__init__(name="athanor-grid", daemon=True)
        self.place, self.cancelled = place, threading.Event()
        self._wish, self._draw = wish, draw
        self._said: dict[str, Any] = {
            "title": wish.title, "prompts": list(wish.prompts), "weights": sorted(wish.weights),
            "files": [heading for heading, _ in wish.files], "seed": SEED, "steps": wish.steps, "done": 0,
            "total": len(wish.cells), "cells": [], "reports": [], "problem": "", "seconds": 0.0,
        }  # fmt: skip
        self._write()

    def _write(self) -> None:
        write_json(self.place / "grid.json", self._said)

    def run(self) -> None:
        """Draws cell after cell; what goes wrong is kept for the page."""
        began = time.monotonic()
        names = {f"athanor grid {self.place.name} {number}": path for number, (_, path) in enumerate(self._wish.files)}
        tags = list(names)
        try:
            for number, (row, file, weight) in enumerate(self._wish.cells):
                if self.cancelled.is_set():
                    break
                tag = "" if file is None else f" <lora:{tags[file]}:{weight:g}>"
                prompt = self._wish.prompts[row] + tag
                drawn = self._draw(Drawing(prompt, seed=SEED + row, steps=self._wish.steps, files=names))
                drawn.image.save(self.place / f"{number:04d}.png")
                self._hear(drawn.reports, tags)
                self._said["cells"].append({"cell": number, "prompt": row, "file": file, "weight": weight})
                self._said |= {"done": number + 1, "seconds": round(time.monotonic() - began, 1)}
                self._write()
        except InputError as error:
            self._said["problem"] = error.problems[0]
        except Exception as error:  # a host's own failure, such as memory that ran out
            self._said["problem"] = (
                f"The WebUI could not draw it: {str(error).splitlines()[0] if str(error) else error!r}"
            )
        self._write()

    def _hear(self, reports: Sequence[str], tags: Sequence[str]) -> None:
        """Keeps what was said of the files, each by its heading instead of the name that its tag had."""
        names = list(zip(tags, self._wish.files, strict=True))[::-1]  # number 10 before the 1 that begins it
        for report in reports:
            for tag, (heading, _) in names:
                report = report.replace(tag, heading)
            if report not in self._said["reports"]:
                self._said["reports"].append(report)
