"""The trainers' environment of this WebUI, as the queue and the page see it: made by `install.py`, only read here."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from extension.jobs import places
from extension.jobs.build import start_build
from extension.jobs.files import read_json
from extension.jobs.processes import Identity
from trainers.errors import InputError

READY, BUILDING, FAILED, MISSING = "ready", "building", "failed", "missing"
SENTENCES = {
    "missing": "The trainers' environment has not been made yet; press Set up. Drawing works without it.",
    "interrupted": "Making the trainers' environment was interrupted; press Repair to do it again.",
    "gone": "The trainers' environment is gone; press Set up to make it again.",
    "building": "The trainers' environment is being made; jobs wait for it. Drawing works meanwhile.",
    "failed": "The trainers' environment could not be made; its log says why.",
}
"""What the page says (and can say in another language); a failure of the build has a sentence of its own."""
LOG_LINES = 200
_LOG_BYTES = 64_000
_SHOWN = ("doing", "line", "step", "steps", "began", "versions")
_SECONDS_TO_BEGIN = 5.0


@dataclass(frozen=True)
class SetupView:
    """What the page shows.

    Attributes:
        state: "ready", "building", "failed" or "missing".
        sentence: what is so, and what to do.
        doing: the step that is being done, with `line` the last line of its output, `step` of `steps`.
        seconds: how long the step has been going on.
        versions: what was installed.
        place: the environment's folder; `why` says why it is not in our own.
        can_repair: False where the WebUI runs in the trainers' environment itself.
    """

    state: str
    sentence: str = ""
    doing: str = ""
    line: str = ""
    step: int = 0
    steps: int = 0
    began: float = 0.0
    versions: dict[str, str] = field(default_factory=dict)
    place: str = ""
    why: str = ""
    can_repair: bool = True

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Setup:
    """The environment of the WebUI that this process is.

    Args:
        data: the WebUI's data folder of ours, where the environment is kept when our folder cannot be written.
    """

    def __init__(self, data: Path | None, root: Path = places.ROOT) -> None:
        self.data, self.root = data, root

    def _status(self) -> tuple[places.Place | None, dict[str, Any]]:
        place = places.known(self.root, self.data)
        return place, (read_json(place.status) or {}) if place else {}

    def view(self) -> SetupView:
        """How it stands now."""
        place, status = self._status()
        if place is None or not status:
            if self._of_commands():
                return SetupView(READY, place=str(self.root / ".venv"))
            return SetupView(MISSING, SENTENCES["missing"])
        shown = {name: status[name] for name in _SHOWN if name in status}
        view = {"place": str(place.folder), "why": status.get("why", ""), **shown}
        state = status.get("state")
        if state == BUILDING and not _lives(status):
            return SetupView(FAILED, SENTENCES["interrupted"], **view)
        if state == READY and not _words(status):
            return SetupView(MISSING, SENTENCES["gone"], **view)
        if state == BUILDING:
            return SetupView(BUILDING, SENTENCES["building"], **view)
        if state == READY:
            return SetupView(READY, **view)
        return SetupView(FAILED, str(status.get("sentence") or SENTENCES["failed"]), **view)

    @property
    def problem(self) -> str:
        """Why no job can be started yet, in one sentence; empty when it can."""
        if self.interpreter():
            return ""
        view = self.view()
        if view.state == BUILDING:
            where = f" (step {view.step} of {view.steps}: {view.doing})" if view.doing else ""
            return f"This waits for the trainers' environment, which is being made{where}."
        return view.sentence if view.state != READY else ""

    def interpreter(self) -> list[str] | None:
        """The words before `-m MODULE` that start a trainer; None while it is not ready."""
        _, status = self._status()
        return (_words(status) if status.get("state") == READY else None) or self._of_commands()

    def _of_commands(self) -> list[str] | None:
        """The environment that `install.py demo` and the other commands made in our folder, if they did."""
        folder = self.root / ".venv"
        stamp = read_json(folder / "athanor-setup.json") or {}
        python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
        return [str(python)] if stamp.get("ready") and python.exists() else None

    def log(self) -> list[str]:
        """The last lines that the build printed."""
        place = places.known(self.root, self.data)
        try:
            with open(place.log, "rb") as file:  # type: ignore[union-attr]
                file.seek(max(0, file.seek(0, 2) - _LOG_BYTES))
                text = file.read().decode("utf-8", "replace")
        except (OSError, AttributeError):
            return []
        return text.splitlines()[-LOG_LINES:]

    def repair(self) -> None:
        """Starts making it, or checks one that is there and mends it; goes on in a process of its own.

        Raises:
            InputError: it is being made already, or nothing could be started.
        """
        if self.view().state == BUILDING:
            raise InputError("The trainers' environment is being made already.")
        try:
            started = start_build(self.root, self.data, again=True)
        except OSError as error:
            raise InputError(f"The set-up could not be started ({error.strerror or error}).") from None
        ends = time.monotonic() + _SECONDS_TO_BEGIN
        while time.monotonic() < ends and started.poll() is None and self.view().state != BUILDING:
            time.sleep(0.05)


def setup_for(data: Path, root: Path = places.ROOT) -> Setup | None:
    """The environment of this WebUI; None for our own, which runs in the commands' environment itself."""
    ours = os.path.realpath(sys.prefix) == os.path.realpath(root / ".venv")
    return None if ours else Setup(data, root)


def _lives(status: dict[str, Any]) -> bool:
    process = status.get("process") or {}
    return Identity(process.get("pid", -1), process.get("started", "")).is_alive


def _words(status: dict[str, Any]) -> list[str] | None:
    """The interpreter that a status file names, if all of it is there."""
    words = status.get("interpreter")
    if not isinstance(words, Sequence) or isinstance(words, str) or not words:
        return None
    return [str(word) for word in words] if all(Path(word).exists() for word in words) else None
