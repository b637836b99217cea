"""Starting other programs so that neither the host's nor the person's Python settings leak into them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

# Where packages go and which Python is meant is decided here, not by what happens to be set outside. Index, proxy,
# certificate, cache and find-links settings of pip stay as the person has them.
_NOT_PASSED_ON = ("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_PYTHON")
_NOT_PASSED_ON += ("__PYVENV_LAUNCHER__", "VIRTUAL_ENV")


def clean_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment variables for a program inside our environment."""
    kept = {name: value for name, value in os.environ.items() if name not in _NOT_PASSED_ON}
    kept.update(PYTHONNOUSERSITE="1", PYTHONUTF8="1", PIP_USER="0", PIP_NO_INPUT="1")
    kept.setdefault("PIP_DISABLE_PIP_VERSION_CHECK", "1")
    kept.update(extra or {})
    return kept


def capture(command: Sequence[str | Path], timeout: float | None = None) -> tuple[int, str]:
    """Exit status and output (both streams) of a short command; (-1, reason) when it cannot be started or hangs."""
    try:
        done = subprocess.run(
            [os.fspath(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=clean_environment(),
            timeout=timeout,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return -1, str(error)
    return done.returncode, done.stdout.decode("utf-8", "replace")


def follow(command: Sequence[str | Path], on_line: Callable[[str], None]) -> tuple[int, str]:
    """Runs a long command, hands each line of its output to `on_line`, and gives exit status and whole output."""
    process = subprocess.Popen(
        [os.fspath(part) for part in command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=clean_environment(),
    )
    lines: list[str] = []
    try:
        assert process.stdout is not None
        for raw in process.stdout:
            line = raw.decode("utf-8", "replace").rstrip()
            lines.append(line)
            on_line(line)
        return process.wait(), "\n".join(lines)
    except BaseException:
        process.kill()
        process.wait()
        raise


class Watch(Protocol):
    """Somebody who looks on, beside the terminal."""

    def begin(self, what: str) -> None:
        """A step begins."""

    def line(self, text: str) -> None:
        """The step's program printed a line."""


class Status:
    """Says what is being done and how long it took; on a terminal the current line of output runs along."""

    def __init__(self, what: str, watch: Watch | None = None) -> None:
        self._what, self._watch = what, watch
        if watch is not None:
            watch.begin(what)
        self._began = time.monotonic()
        self._terminal = bool(sys.stdout and sys.stdout.isatty())
        print(f"{what} ...", end="\n" if not self._terminal else "", flush=True)

    def line(self, text: str) -> None:
        """Shows a line of the running program's output (on a terminal, and to who looks on)."""
        if self._watch is not None:
            self._watch.line(text)
        if self._terminal:
            shown = f"{self._what} ... {time.monotonic() - self._began:.0f} s  {text.strip()}"[:110]
            print(f"\r{shown:<110}", end="", flush=True)

    def done(self, text: str = "done") -> None:
        start = "\r" if self._terminal else ""
        shown = f"{self._what} ... {text} ({time.monotonic() - self._began:.0f} s)"
        print(f"{start}{shown:<110}".rstrip() if not self._terminal else f"{start}{shown:<110}", flush=True)
