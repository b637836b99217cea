"""Snapshots of what is in training, for pictures that are drawn with it meanwhile (`<lora:NAME:0.8:live=1>`).

A snapshot is written when it is asked for. For some minutes after that, more follow by themselves, and one before
anything that keeps the trainer busy, so that whoever draws again never waits long. Nobody asks, nothing is written.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from trainers.engine.writing import result_metadata
from trainers.options import result_ending

if TYPE_CHECKING:
    from trainers.engine.session import Session

WATCHED_SECONDS = 300.0
SECONDS_BETWEEN = 30.0


class Live:
    """The snapshots of one run: `live/NAME-<step>.safetensors` (or .pt), only the newest stays."""

    def __init__(self, session: Session) -> None:
        self.s = session
        self._step: int | None = None
        self._written = self._asked = -WATCHED_SECONDS
        for former in self._files():  # of an earlier process, perhaps of steps that are done again
            former.unlink(missing_ok=True)

    @property
    def is_possible(self) -> bool:
        """Whether what is trained is a file beside the model; a whole model is none."""
        return self.s.world.is_main and hasattr(self.s.trainable, "save_snapshot")

    def _files(self) -> list[Path]:
        ending = result_ending(self.s.job) or ".safetensors"
        return sorted(self.s.folder.live.glob(f"*{ending}")) if self.is_possible else []

    def ask(self) -> None:
        """Somebody wants to draw with it."""
        self._asked = time.monotonic()

    def is_due(self, step: int, soon_busy: bool) -> bool:
        """Whether one should be written now.

        Args:
            soon_busy: pictures are drawn or measured next, which may take minutes.
        """
        now = time.monotonic()
        if not self.is_possible or step == self._step or now - self._asked > WATCHED_SECONDS:
            return False
        return soon_busy or self._asked > self._written or now - self._written >= SECONDS_BETWEEN

    def write(self, step: int) -> None:
        """Writes one; called with the weights in place that are saved. Weights that are not finite are left out."""
        if not all(bool(torch.isfinite(tensor).all()) for tensor in self.s.trainable.tensors().values()):
            return
        former = self._files()
        self.s.folder.live.mkdir(exist_ok=True)
        path = self.s.folder.live / f"{self.s.job.name}-{step:06d}{result_ending(self.s.job) or '.safetensors'}"
        self.s.trainable.save_snapshot(path, result_metadata(self.s, step))
        self._step, self._written = step, time.monotonic()
        self.s.events.emit("snapshot", step=step, path=f"live/{path.name}")
        for old in former:
            if old != path:
                try:
                    old.unlink(missing_ok=True)
                except PermissionError:  # Windows, while a host draws with it; the next one takes it away
                    continue
