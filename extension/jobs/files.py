"""Small files that are whole or not there, and the one lock of a runs folder.

Standard library only: a starting trainer reads and writes these files too, before anything else is imported.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LOCK_SECONDS = 30.0


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Replaces a file at once, see `write_text`."""
    write_text(path, json.dumps(content, ensure_ascii=False, indent=1))


def write_text(path: Path, text: str) -> None:
    """Replaces a file at once: readers, and a kill, find the old content or the new."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        _replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_json(path: Path) -> dict[str, Any] | None:
    """The content of a file; None where it is missing or nothing of ours."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _replace(source: Path, target: Path) -> None:
    for pause in (0.05, 0.1, 0.2, 0.4) if os.name == "nt" else ():
        try:
            return os.replace(source, target)
        except PermissionError:  # Windows, while a reader or a virus scanner has it open
            time.sleep(pause)
    os.replace(source, target)


@contextmanager
def locked(runs: Path, seconds: float = LOCK_SECONDS) -> Iterator[None]:
    """Alone, among threads and processes, in changing the queue of a runs folder.

    The system lets go of the lock with the process that held it, however that ended.

    Raises:
        TimeoutError: another one held it for `seconds`.
    """
    runs.mkdir(parents=True, exist_ok=True)
    with open(runs / ".lock", "a+", encoding="utf-8") as file:
        until = time.monotonic() + seconds
        while not _try_lock(file):
            if time.monotonic() > until:
                raise TimeoutError(f"{runs}: the queue has been in use by another process for {seconds:g} seconds.")
            time.sleep(0.01)
        try:
            yield
        finally:
            _unlock(file)


if os.name == "nt":
    import msvcrt

    def _try_lock(file) -> bool:
        file.seek(0)
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def _unlock(file) -> None:
        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _try_lock(file) -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _unlock(file) -> None:
        fcntl.flock(file, fcntl.LOCK_UN)
