"""What is going on now: for the page, for `/sdapi/v1/progress`, and to stop it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from PIL import Image


@dataclass
class Progress:
    """The state of the job that is running. Written by the thread that draws, read by others.

    Attributes:
        job: "txt2img", "img2img" or "" when idle.
        job_count, job_no: passes of the job, and how many are done.
        steps, step: of the pass.
        interrupted, skipped: asked to stop the job, or this batch.
        picture: the newest preview.
    """

    job: str = ""
    job_count: int = 0
    job_no: int = 0
    steps: int = 0
    step: int = 0
    interrupted: bool = False
    skipped: bool = False
    picture: Image.Image | None = None
    began: float = 0.0
    stamp: str = ""
    text: str = ""

    def begin(self, job: str, count: int) -> None:
        """A job starts."""
        self.job, self.job_count, self.job_no = job, count, 0
        self.steps = self.step = 0
        self.interrupted = self.skipped = False
        self.picture, self.text = None, ""
        self.began, self.stamp = time.monotonic(), time.strftime("%Y%m%d%H%M%S")

    def end(self) -> None:
        """The job is over."""
        self.job, self.job_count, self.job_no = "", 0, 0
        self.steps = self.step = 0
        self.picture, self.text = None, ""

    def stop(self) -> None:
        """Ask the job to stop; what is there by then becomes the result."""
        self.interrupted = bool(self.job)

    def skip(self) -> None:
        """Ask to go on with the next batch."""
        self.skipped = bool(self.job)

    @property
    def stopping(self) -> bool:
        return self.interrupted or self.skipped

    @property
    def fraction(self) -> float:
        """How much of the job is done, 0 to 1."""
        if not self.job_count:
            return 0.0
        return min(1.0, (self.job_no + (self.step / self.steps if self.steps else 0.0)) / self.job_count)

    @property
    def seconds_left(self) -> float:
        """An estimate from the pace so far; 0 while nothing is known."""
        done = self.fraction
        return (time.monotonic() - self.began) * (1 - done) / done if done > 0 else 0.0

    def state(self) -> dict[str, Any]:
        """In A1111's words."""
        return {
            "skipped": self.skipped,
            "interrupted": self.interrupted,
            "stopping_generation": False,
            "job": self.job,
            "job_count": self.job_count,
            "job_timestamp": self.stamp or "0",
            "job_no": self.job_no,
            "sampling_step": self.step,
            "sampling_steps": self.steps,
        }
