"""Figures of a run for TensorBoard, where that is wanted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainers.engine.session import Session


class Scalars:
    """The TensorBoard log of one run; nothing is opened before the first figure."""

    def __init__(self, session: Session) -> None:
        self.s = session
        self._writer: Any = None

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Adds figures of a step."""
        if not self.s.job.tensorboard or not self.s.world.is_main:
            return
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self.s.folder.path / "tensorboard"))
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Writes what is left; the last minutes are held back until then."""
        if self._writer is not None:
            self._writer.close()
