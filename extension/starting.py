"""Existing files that a run may start from (`init_from`): of the same kind, made here or found by the host."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from extension.listing import walk_files

if TYPE_CHECKING:
    from extension.workshop import Workshop

METHODS = ("lora", "textual_inversion")
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
    if method not in METHODS:
        return []
    found: dict[Path, StartingPoint] = {}
    for made in workshop.jobs.all():
        if made.method == method:
            for output in made.outputs:
                path = (workshop.jobs.runs / made.id / output["file"]).resolve()
                if path.suffix.lower() == ".safetensors" and path.is_file():
                    found.setdefault(path, StartingPoint(path, f"{path.stem} · {made.id}", made.id))
    runs = workshop.jobs.runs.resolve()
    results = workshop.results(method)
    folders = [*(workshop.adapters() if method == "lora" else []), *([results] if results else [])]
    for _, path in walk_files(folders, (".safetensors", ".pt")):
        real = path.resolve()
        if runs not in real.parents and len(found) < _MOST:
            found.setdefault(real, StartingPoint(real, path.stem))
    return list(found.values())
