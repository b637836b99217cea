"""Walking a data folder: the same order on every system, links followed, loops and hidden folders left out."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from trainers.errors import InputError

CACHE_FOLDER = ".athanor-cache"
_SKIPPED_FOLDERS = {"__macosx", "__pycache__", "@eadir", "$recycle.bin", "system volume information", "thumbs"}


def normal(name: str) -> str:
    """One spelling per name: macOS stores accents decomposed, others composed; bytes that are no text are spelt out."""
    return unicodedata.normalize("NFC", name.encode("utf-8", "backslashreplace").decode("utf-8"))


def natural(name: str) -> tuple[tuple[tuple[int, int, str], ...], str]:
    """Sort key under which `2.png` comes before `10.png`, upper and lower case side by side, on every system."""
    name = normal(name)
    parts = re.split(r"([0-9]+)", name.casefold())
    return tuple((0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts if part), name


@dataclass
class Folder:
    """One folder of the walk: its path below the root as names, and its files by name, sorted."""

    path: Path
    parts: tuple[str, ...]
    files: list[str] = field(default_factory=list)


def is_hidden(name: str) -> bool:
    return name.startswith(".") or name.casefold() in _SKIPPED_FOLDERS


def walk(root: Path, notes: list[str], recursive: bool = True) -> Iterator[Folder]:
    """Every folder below `root` (itself first); `InputError` when `root` is not a readable folder."""
    if not root.exists():
        raise InputError(f"data: the folder {root} does not exist.")
    if not root.is_dir():
        raise InputError(f"data: {root} is not a folder; name the folder with the pictures or a dataset .toml file.")
    yield from _walk(root, (), notes, recursive, {os.path.realpath(root)})


def _walk(path: Path, parts: tuple[str, ...], notes: list[str], recursive: bool, seen: set[str]) -> Iterator[Folder]:
    folder, below = Folder(path, parts), []
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                if is_hidden(entry.name):
                    continue
                if entry.is_dir():
                    below.append(entry.name)
                elif entry.is_file():
                    folder.files.append(entry.name)
                elif entry.is_symlink():
                    notes.append(f"{entry.path} is a link that leads nowhere; it was left out.")
    except OSError as error:
        if not parts:
            raise InputError(f"data: the folder {path} cannot be read ({error.strerror or error}).") from None
        notes.append(f"The folder {path} cannot be read ({error.strerror or error}); it was left out.")
        return
    if {"job.yaml", "events.jsonl"} <= set(folder.files):
        notes.append(f"The folder {path} is a training run, so its pictures were left out.")
        return
    folder.files.sort(key=natural)
    yield folder
    for name in sorted(below, key=natural) if recursive else ():
        real = os.path.realpath(path / name)
        if real in seen:
            notes.append(f"The folder {path / name} leads to a folder that was already read; it was left out.")
            continue
        seen.add(real)
        yield from _walk(path / name, (*parts, name), notes, recursive, seen)
