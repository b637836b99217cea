"""One set-up at a time: a lock that the system drops by itself when its holder dies."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from installer.problems import SetupError

WAIT_SECONDS = 1800.0


def _try_lock(handle) -> bool:
    try:
        if os.name == "nt":
            import msvcrt

            handle.seek(0)
            msvcrt.locking(handle.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


def is_held(path: Path) -> bool:
    """Whether somebody holds the lock file `path` now."""
    try:
        with open(path, "a+b") as handle:
            return not _try_lock(handle)
    except OSError:
        return False


@contextlib.contextmanager
def only_one(path: Path, wait: float = WAIT_SECONDS) -> Iterator[None]:
    """Holds the lock file `path`; waits up to `wait` seconds for another holder, then raises `SetupError`.

    The file stays (removing it would let two processes lock two different files of the same name).
    """
    try:
        handle = open(path, "a+b")  # noqa: SIM115 - closed below, together with the lock
    except OSError as error:
        raise SetupError(
            f"{path.parent} cannot be written ({error.strerror}), so nothing can be set up there."
        ) from None
    try:
        ends = time.monotonic() + wait
        said = False
        while not _try_lock(handle):
            if not said:
                print("Another set-up of Athanor is running here; waiting for it to end.", flush=True)
                said = True
            if time.monotonic() >= ends:
                raise SetupError("Another set-up of Athanor is still running here; try again when it has ended.")
            time.sleep(0.2)
        yield
    finally:
        handle.close()
