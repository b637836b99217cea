"""Existing files that a run may start from (`init_from`): of the same kind, made here or found by the host."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from extension.listing import walk_files

if TYPE_CHECKING:
    from extension.workshop import Workshop

ENDINGS = {
    "lora": (".safetensors", ".pt"), "pivotal": (".safetensors",), "textual_inversion": (".safetensors", ".pt"),
    "hypernetwork": (".pt",),
}  # fmt: skip
"""Methods that can go on from a file, and what such files end with."""
SHELVES = {"pivotal": "lora"}
"""Where files of a method lie, if not under its own name."""
_MOST = 500


@dataclass(frozen=True)
class StartingPoint:
    """A file that may be gone on from.

    Attributes:
        title: what it is called in the list.
        run: the run that made it, or empty.
    """

    path: Path
    title: str
    run: str = ""


def starting_points(workshop: Workshop, method: str) -> list[StartingPoint]:
    """Results of runs of this method, newest first, then the host's other files of its kind."""
    if method not in ENDINGS:
        return []
    endings, shelf = ENDINGS[method], SHELVES.get(method, method)
    found: dict[Path, StartingPoint] = {}
    for made in workshop.jobs.all():
        if made.method in (method, shelf):
            for output in made.outputs:
                path = (workshop.jobs.runs / made.id / output["file"]).resolve()
                # Beside a LoRA may lie the word that was trained with it.
                is_own = made.method != "pivotal" or path.name.startswith(made.name)
                if is_own and path.suffix.lower() == endings[0] and path.is_file():
                    found.setdefault(path, StartingPoint(path, f"{path.stem} · {made.id}", made.id))
    runs = workshop.jobs.runs.resolve()
    results = workshop.results(shelf)
    folders = [*(workshop.adapters() if shelf == "lora" else []), *([results] if results else [])]
    for _, path in walk_files(folders, endings):
        real = path.resolve()
        if runs not in real.parents and len(found) < _MOST:
            found.setdefault(real, StartingPoint(real, path.stem))
    return list(found.values())
