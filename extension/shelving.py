"""Renaming and throwing away files of the host's folders, with what lies beside them; nothing is ever deleted."""

from __future__ import annotations

import os
from pathlib import Path

from extension.library import find
from extension.publishing import moved
from extension.trash import to_trash, with_sidecars
from extension.workshop import Workshop
from trainers.errors import InputError
from trainers.options import name_problem


def rename(workshop: Workshop, wanted: str, name: str) -> str:
    """Gives a file, its card and its preview another name; returns the new id.

    Raises:
        InputError: there is no such file, the name will not do, another file has it, or the folder cannot be written.
    """
    shelved = find(workshop, wanted)
    problem = name_problem(name)
    if problem:
        raise InputError(problem)
    stem, target = shelved.path.stem, shelved.path.with_name(f"{name}{shelved.path.suffix}")
    if name == stem:
        return shelved.id
    # On drives that do not tell "Ball" from "ball" the same file is there under its new name too.
    if target.exists() and not target.samefile(shelved.path):
        raise InputError(f"name: another file is called {name!r} already; choose another name.")
    done: list[tuple[Path, Path]] = []
    try:
        for path in with_sidecars(shelved.path):
            renamed = path.with_name(name + path.name[len(stem) :])
            os.rename(path, renamed)
            done.append((renamed, path))
    except OSError as error:
        for renamed, path in reversed(done):
            os.rename(renamed, path)
        raise InputError(f"{shelved.path.name}: cannot be renamed ({error.strerror or error}).") from None
    moved(workshop, shelved.method, stem, name)
    workshop.changed(shelved.method)
    folder = shelved.id.rpartition("/")[0]
    return f"{folder}/{target.name}"


def throw_away(workshop: Workshop, wanted: str) -> None:
    """Moves a file with its card and its preview to the trash folder of the runs.

    Raises:
        InputError: there is no such file, or it cannot be moved.
    """
    shelved = find(workshop, wanted)
    try:
        to_trash(workshop.jobs.runs, with_sidecars(shelved.path))
    except OSError as error:
        raise InputError(f"{shelved.path.name}: cannot be moved to the trash ({error.strerror or error}).") from None
    moved(workshop, shelved.method, shelved.path.stem, None)
    workshop.changed(shelved.method)
