"""One trainer per run folder: a lock that the system releases with the process, however it ends."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from trainers.errors import InputError


def process_start(pid: int) -> str | None:
    """What tells a living process from every other that had or will have its number, whatever the clock says: the boot
    and the moment since. None where it does not live, "" where only its number is known (not Linux)."""
    if not sys.platform.startswith("linux"):
        return ""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return None
    return None if fields[0] in "ZX" else f"{boot}/{fields[19]}"


class RunLock:
    """Holds `run.lock` in the run folder, with this process's number and start in it; a second trainer on the same run
    is refused in one sentence."""

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
        self._file.write(f"{os.getpid()}\n{process_start(os.getpid()) or ''}\n")
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
