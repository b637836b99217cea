"""The queue on disk: a job waits where its run folder holds a ticket.

Nothing is kept in memory that is not on the disk, so any number of hosts and browsers may use one runs folder. What
changes the queue is done under the lock of the folder, and each change is one atomic replacement, removal or rename.
"""

from __future__ import annotations

import os
import re
import shutil
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from extension.jobs.files import locked, read_json, write_json
from extension.jobs.run_files import TRASH, Ticket, living_process, run_folders, waiting
from trainers import snapshot, spec
from trainers.errors import InputError, did_you_mean
from trainers.spec import Job

_LONGEST_ID = 60
_LONGEST_NAME = 80
_LEFTOVER_SECONDS = 3600
_RESERVED = re.compile(r"(?i)^(con|prn|aux|nul|com\d|lpt\d)$")


class NoSuchRun(InputError):
    """A run was named that there is not."""


def run_id_for(name: str) -> str:
    """A folder's name for a run: letters and digits of any script, the rest as hyphens."""
    word = re.sub(r"[^\w-]+", "-", name.strip())[:_LONGEST_ID].strip("-_") or "run"
    return f"{word}-run" if _RESERVED.match(word) else word


def parsed(values: Mapping[str, Any]) -> Job:
    """A checked job from raw options. Of what belongs to a run, only what the host draws with is kept, for the checks.

    Raises:
        InputError: every problem of the job.
    """
    asked = values.get("run")
    skip = asked.get("host_clip_skip") if isinstance(asked, Mapping) else None
    run = {"host_clip_skip": skip} if isinstance(skip, int) else {}
    return spec.parse({**values, "run": run})


class Store:
    """The runs below one folder.

    Args:
        runs: the folder; made when the first job is put into it.
        auto_device: what `device: auto` means on this machine, such as "cuda:0" or "cpu".
    """

    def __init__(self, runs: Path, auto_device: str = "cpu") -> None:
        self.runs = Path(runs)
        self.auto_device = auto_device

    # --- finding

    def find(self, run_id: str) -> Path:
        """The folder of a run.

        Raises:
            NoSuchRun: there is none of this name directly below the runs folder.
        """
        text = str(run_id)
        plain = 0 < len(text) <= _LONGEST_NAME and not text.startswith(".") and not re.search(r'[\\/:\0<>"|?*]', text)
        path = self.runs / text if plain else None
        if path is None or not path.is_dir() or path.resolve().parent != self.runs.resolve():
            names = [run.name for run in run_folders(self.runs)]
            shown = text if len(text) <= 60 else text[:57] + "..."
            raise NoSuchRun(f"There is no run {shown!r}." + did_you_mean(text[:60], names))
        return path

    def device_of(self, wanted: str) -> str:
        """The device that an option means; "cuda" and "cuda:0" are one."""
        word = str(wanted or "auto").strip().lower()
        word = self.auto_device if word == "auto" else word
        return f"{word}:0" if word in ("cuda", "xpu") else word

    # --- into the queue

    def submit(self, values: Mapping[str, Any], key: str = "") -> Path:
        """Puts a job at the end of the queue and returns its run folder.

        Args:
            values: raw options, as in a job file.
            key: an identifier made by the client; a request that arrives again with the same key is the same run.

        Raises:
            InputError: every problem of the job.
        """
        job = parsed(values)
        self.runs.mkdir(parents=True, exist_ok=True)
        made = self.runs / f".new-{uuid.uuid4().hex}"
        with locked(self.runs):
            if key and (known := self._submitted(key)):
                return known
        held = snapshot.as_text(snapshot.take_all(job))  # takes seconds for thousands of pictures
        with locked(self.runs):
            self._sweep()
            if key and (known := self._submitted(key)):
                return known
            made.mkdir()
            (made / snapshot.FILE).write_text(held, encoding="utf-8", newline="\n")
            (made / "request.yaml").write_text(spec.to_yaml(job), encoding="utf-8", newline="\n")
            write_json(made / "submitted.json", {"key": key, "time": round(time.time(), 3)})
            write_json(made / "ticket.json", self._last_ticket(job.device).content())
            return self._rename_to_free(made, self.runs, run_id_for(job.name))

    def again(self, run: Path, device: str) -> None:
        """Puts an existing run at the end of the queue, to be gone on with."""
        with locked(self.runs):
            if living_process(run):
                raise InputError(f"{run.name}: this run is at work already.")
            if Ticket.read(run) is None:
                write_json(run / "ticket.json", self._last_ticket(device).content())

    def _last_ticket(self, device: str) -> Ticket:
        queue = waiting(self.runs)
        position = queue[-1][0].position + 1 if queue else 1.0
        return Ticket(position, self.device_of(device), round(time.time(), 3))

    def _submitted(self, key: str) -> Path | None:
        for run in run_folders(self.runs):
            if (read_json(run / "submitted.json") or {}).get("key") == key:
                return run
        return None

    def _rename_to_free(self, source: Path, parent: Path, name: str) -> Path:
        """Moves a folder to `parent/name`, or to a numbered name where that is taken; called with the lock held."""
        target, number = parent / name, 2
        while target.exists():
            target, number = parent / f"{name}-{number}", number + 1
        os.rename(source, target)
        return target

    def _sweep(self) -> None:
        """Takes away what a host that was killed in the middle of a submission left."""
        for leftover in self.runs.glob(".new-*"):
            if time.time() - leftover.stat().st_mtime > _LEFTOVER_SECONDS:
                shutil.rmtree(leftover, ignore_errors=True)

    # --- within and out of the queue

    def withdraw(self, run: Path) -> bool:
        """Takes a waiting job out of the queue; False where it does not wait (any more)."""
        with locked(self.runs):
            try:
                (run / "ticket.json").unlink()
            except FileNotFoundError:
                return False
            return True

    def move(self, run: Path, where: str) -> None:
        """Changes a waiting job's place: "up", "down", "first" or "last".

        Raises:
            InputError: it does not wait, or `where` is none of these.
        """
        with locked(self.runs):
            queue = waiting(self.runs)
            places = {"up": -1, "down": 1, "first": -len(queue), "last": len(queue)}
            if where not in places:
                raise InputError(f"where: {str(where)[:60]!r} is not one of {', '.join(places)}.")
            now = next((index for index, (_, each) in enumerate(queue) if each == run), None)
            if now is None:
                raise InputError(f"{run.name}: this run does not wait in the queue.")
            ticket, _ = queue.pop(now)
            target = min(max(now + places[where], 0), len(queue))
            moved = Ticket(_between(queue, target), ticket.device, ticket.queued)
            write_json(run / "ticket.json", moved.content())

    def delete(self, run: Path) -> Path:
        """Moves a run into the trash folder of the runs, where it stays; returns its place there.

        Raises:
            InputError: it is at work.
        """
        with locked(self.runs):
            if living_process(run):
                raise InputError(f"{run.name}: this run is at work; stop it first.")
            (run / "ticket.json").unlink(missing_ok=True)
            trash = self.runs / TRASH
            trash.mkdir(exist_ok=True)
            try:
                return self._rename_to_free(run, trash, run.name)
            except OSError as error:
                raise InputError(f"{run.name}: cannot be moved to the trash ({error.strerror or error}).") from None

    def restore(self, name: str) -> Path:
        """Brings a run back from the trash folder.

        Raises:
            InputError: there is none of this name.
        """
        trash = Store(self.runs / TRASH, self.auto_device)
        with locked(self.runs):
            return self._rename_to_free(trash.find(name), self.runs, name)


def _between(queue: list[tuple[Ticket, Path]], index: int) -> float:
    """A position that puts a job before the one at `index`."""
    if not queue:
        return 1.0
    if index == 0:
        return queue[0][0].position - 1
    if index == len(queue):
        return queue[-1][0].position + 1
    return (queue[index - 1][0].position + queue[index][0].position) / 2
