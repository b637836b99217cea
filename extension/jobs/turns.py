"""Says to trainers that the host draws, so that they pause between two steps.

A file below the runs folder is locked meanwhile. The system lets go of the lock with the process, so a host that dies
while it draws stops nobody.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

DRAWING_FILE = ".drawing"
_TRIES = 10


class Turns:
    """Whether this host draws now; several threads may draw at once."""

    def __init__(self, runs: Path) -> None:
        self._path = Path(runs) / DRAWING_FILE
        self._lock = threading.Lock()
        self._count = 0
        self._file: IO[str] | None = None

    def begin(self) -> None:
        """Something is being drawn from now on."""
        with self._lock:
            self._count += 1
            if self._file is None:
                self._file = self._taken()

    def end(self) -> None:
        """It is drawn."""
        with self._lock:
            self._count = max(0, self._count - 1)
            if self._count == 0 and self._file is not None:
                self._file.close()
                self._file = None

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """As long as the context lasts."""
        self.begin()
        try:
            yield
        finally:
            self.end()

    def _taken(self) -> IO[str] | None:
        """The locked file; None where it cannot be had, which must not keep anybody from drawing."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            file = open(self._path, "a+", encoding="utf-8")  # noqa: SIM115  (kept open while the lock is held)
        except OSError:
            return None
        for _ in range(_TRIES):  # a trainer that looks holds it for an instant
            try:
                _share_lock(file)
                return file
            except OSError:
                time.sleep(0.002)
        file.close()  # on Windows another host has it, and so the trainers know already
        return None


if os.name == "nt":
    import msvcrt

    def _share_lock(file: IO[str]) -> None:
        file.seek(1 << 20)  # the place that the trainers look at
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _share_lock(file: IO[str]) -> None:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
