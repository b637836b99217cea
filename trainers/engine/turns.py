"""Taking turns with a WebUI that draws on the same device: the trainer pauses between two steps.

The WebUI locks a file while it draws; the system lets go of the lock with the process that held it, however that
ended, so nobody waits for a WebUI that is gone.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from trainers.engine.lock import is_locked

LOOK_EVERY = 0.05
PATIENCE = 60.0
"""Seconds after which a step is done anyway: somebody may draw without end."""


class Turns:
    """Waits while the WebUI draws.

    Args:
        drawing: the file that is locked meanwhile; None never waits.
        told: called with "paused" and, with the seconds it took, "continued".
    """

    def __init__(self, drawing: Path | None, told: Callable[..., None]) -> None:
        self._drawing, self._told = drawing, told

    def wait(self, is_over: Callable[[], bool] = lambda: False) -> None:
        """Returns when nobody draws, when patience ends, or when `is_over`."""
        if self._drawing is None or not is_locked(self._drawing):
            return
        began = time.monotonic()
        self._told("paused")
        while is_locked(self._drawing) and time.monotonic() - began < PATIENCE and not is_over():
            time.sleep(LOOK_EVERY)
        self._told("continued", seconds=round(time.monotonic() - began, 3))
