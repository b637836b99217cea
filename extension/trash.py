"""Files that give way to others: kept in a folder of the runs, never deleted."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable
from pathlib import Path

from extension.jobs.run_files import TRASH

FILES = "files"


def to_trash(runs: Path, files: Iterable[Path]) -> Path:
    """Moves files that belong together into a folder of their own in the trash, and returns that folder.

    Raises:
        OSError: one cannot be moved; it stays where it is.
    """
    stamp, number = time.strftime("%Y-%m-%d_%H-%M-%S"), 1
    while True:
        folder = runs / TRASH / FILES / (stamp if number == 1 else f"{stamp}-{number}")
        try:
            folder.mkdir(parents=True)
            break
        except FileExistsError:
            number += 1
    for file in files:
        shutil.move(str(file), str(folder / file.name))
    return folder


def with_sidecars(file: Path) -> list[Path]:
    """A model file and what the hosts' cards show beside it: those that are there."""
    beside = [file.with_suffix(ending) for ending in (".json", ".png", ".preview.png", ".jpg", ".webp", ".txt")]
    return [path for path in (file, *beside) if path.is_file()]
