"""`<lora:NAME:0.8:live=1>` (and ti, hypernet): the newest snapshot of a run in progress, asked for when a picture is
drawn."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

from extension.jobs import view
from extension.jobs.manager import Jobs
from extension.jobs.view import RunView
from extension.prompt.names import resolve
from trainers.errors import InputError
from trainers.events import send_command

WEIGHT = 0.8
"""What the page's button proposes: an adapter in the middle of its learning is often too strong at 1."""
KINDS = {"lora": "lora", "pivotal": "lora", "textual_inversion": "ti", "hypernetwork": "hypernet"}
"""The kind of tag that draws with what a method makes."""

_LOOK_SECONDS = 0.05


def live_tag(name: str, method: str = "lora") -> str:
    """What is written in a prompt to draw with a run in progress."""
    kind = KINDS[method]
    return f"<{kind}:{name}:{1 if kind == 'ti' else WEIGHT:g}:live=1>"


class LiveFiles:
    """Finds runs in progress by their name, for `extension.wanted.Library.live`.

    Args:
        jobs: the runs; asked for only when a tag says `live=1`.
        patience: how many seconds a picture waits for a snapshot that was asked for. A trainer that is measuring or
            drawing answers later; then the newest one there is serves, from at most a minute before.
    """

    def __init__(self, jobs: Callable[[], Jobs], patience: float = 10.0) -> None:
        self._jobs, self._patience = jobs, patience

    def __call__(self, name: str, kind: str = "lora") -> Path | None:
        """The newest snapshot; None where no run of this name is in progress that makes files for this kind of tag.

        Raises:
            InputError: the run has not written any yet.
        """
        jobs = self._jobs()
        at_work = (made for made in jobs.all() if made.state in view.AT_WORK and made.has_live)
        training = {made.name: made for made in at_work if KINDS[made.method] == kind}
        found = resolve(name, training)
        if found is None:
            return None
        made = training[found]
        run = jobs.store.find(made.id)
        newest = _newest(run)
        if newest is None or _step_of(newest) < made.step:
            newest = self._asked(run, made) or newest
        if newest is None:
            raise InputError(f"the run {made.id} has no snapshot yet; it was asked for one, so draw again in a moment.")
        return newest

    def _asked(self, run: Path, made: RunView) -> Path | None:
        """A snapshot of the present step or a later one, None where it does not come in time."""
        if made.state != view.TRAINING:
            return None
        send_command(run, "snapshot")
        until = time.monotonic() + self._patience
        while time.monotonic() < until:
            newest = _newest(run)
            if newest is not None and _step_of(newest) >= made.step:
                return newest
            time.sleep(_LOOK_SECONDS)
        return None


def _step_of(path: Path) -> int:
    said = re.search(r"-(\d+)$", path.stem)
    return int(said.group(1)) if said else 0


def _newest(run: Path) -> Path | None:
    files = (path for path in (run / "live").glob("*") if path.suffix in (".safetensors", ".pt"))
    return max(files, key=_step_of, default=None)
