"""One trainer per run folder: a lock that the system releases with the process, however it ends."""

from __future__ import annotations

import os
from pathlib import Path

from trainers.errors import InputError


class RunLock:
    """Holds `run.lock` in the run folder; a second trainer on the same run is refused in one sentence."""

    def __init__(self, folder: Path) -> None:
        self.path = Path(folder) / "run.lock"
        self._file = None

    def __enter__(self) -> RunLock:
        self._file = open(self.path, "a+", encoding="utf-8")
        try:
            _lock(self._file)
        except OSError:
            self._file.close()
            raise InputError(f"{self.path.parent}: another trainer is at work on this run.") from None
        self._file.seek(0)
        self._file.truncate()
        self._file.write(f"{os.getpid()}\n")
        self._file.flush()
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def is_locked(path: Path) -> bool:
    """Whether a living process holds the lock of this file; a file that is not there is held by nobody."""
    try:
        with open(path, "r+", encoding="utf-8") as file:
            _lock(file)  # let go again as the file is closed
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


if os.name == "nt":
    import msvcrt

    def _lock(file) -> None:
        file.seek(1 << 20)  # Windows locks keep others from reading the locked bytes: lock beyond the text
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _lock(file) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
