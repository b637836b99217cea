"""What a person sees on the terminal: a progress bar, or a plain line now and then where there is no terminal."""

from __future__ import annotations

import sys
import time
from typing import TextIO

SECONDS_BETWEEN_LINES = 10.0


def duration(seconds: float) -> str:
    """12 s, 3:05, 1:02:09."""
    seconds = max(0, round(seconds))
    if seconds < 60:
        return f"{seconds} s"
    hours, rest = divmod(seconds, 3600)
    minutes, seconds = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


class Display:
    """Progress to `stream`. `quiet` shows nothing (helping processes)."""

    def __init__(self, stream: TextIO | None = None, quiet: bool = False) -> None:
        self.stream = stream or sys.stderr
        self.quiet = quiet
        self.is_terminal = bool(getattr(self.stream, "isatty", lambda: False)())
        self._bar = None
        self._what = ""
        self._last_line = 0.0

    def line(self, text: str) -> None:
        """A line that stays, above the bar where there is one."""
        if self.quiet or not text:
            return
        if self._bar is not None:
            self._bar.write(text, file=self.stream)
        else:
            self._print(text)

    def _print(self, text: str) -> None:
        try:
            print(text, file=self.stream, flush=True)
        except (OSError, ValueError):  # who watched is gone (a broken pipe); the run does not need it
            self.quiet = True

    def progress(self, done: int, total: int, what: str) -> None:
        """How far a preparation is."""
        self._show(done, total, what, "")

    def step(self, step: int, total: int, loss: float, eta: float) -> None:
        """How far the training is, with the loss (a running average) and the time left."""
        self._show(step, total, "training", f"loss {loss:.4f}, {duration(eta)} left")

    def _show(self, done: int, total: int, what: str, detail: str) -> None:
        if self.quiet or total <= 0:
            return
        if self.is_terminal:
            self._show_bar(done, total, what, detail)
        elif what != self._what or done >= total or time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line, self._what = time.monotonic(), what
            self._print(f"{what}: {done}/{total}" + (f", {detail}" if detail else ""))

    def _show_bar(self, done: int, total: int, what: str, detail: str) -> None:
        from tqdm import tqdm

        if self._bar is None or what != self._what:
            self.close()
            self._what = what
            shape = "{desc} {percentage:3.0f}%|{bar}| {n}/{total} [{elapsed}] {postfix}"
            self._bar = tqdm(total=total, desc=what, file=self.stream, bar_format=shape, dynamic_ncols=True)
        self._bar.set_postfix_str(detail, refresh=False)
        self._bar.n = done
        self._bar.refresh()
        if done >= total:
            self.close()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
