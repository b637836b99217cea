"""Puts a trained file where the host looks for such files, with what its cards show beside it."""

from __future__ import annotations

import contextlib
import errno
import filecmp
import logging
import os
import shutil
import time
import uuid
from pathlib import Path
from typing import Any

from extension.jobs import view
from extension.jobs.files import read_json, write_json
from extension.jobs.lease import read_record
from extension.jobs.processes import Identity
from extension.jobs.run_files import run_folders
from extension.jobs.view import RunView
from extension.library import method_of, sample_near, tag_for
from extension.trash import to_trash, with_sidecars
from extension.workshop import Workshop
from trainers.errors import InputError
from trainers.options import name_problem

FAMILIES = {"sd1": "SD1", "sd2": "SD2", "sdxl": "SDXL"}
RECORD = "published.json"
OUR_NOTES = "athanor notes"
"""In a card: what we wrote into its notes, to tell it from what a person wrote there."""
_LARGE = 1 << 29
_SECONDS_BETWEEN_TRIES = 60.0
_log = logging.getLogger(__name__)


def publish(workshop: Workshop, run_id: str, file: str = "", name: str = "", replace: bool = False) -> dict[str, Any]:
    """Copies one output of a run into the host's folder and says how it is named in a prompt.

    The same file twice is one file. A name that another file has is asked about: nothing is copied, and the answer is
    `{"taken": name, "free": a name that is not}`.

    Args:
        file: one of its outputs; empty means the best one.
        name: how it shall be called there; empty means as the run says.
        replace: the file that has the name goes to the trash.

    Raises:
        InputError: the run has no such output, the name will not do, or the folder cannot be written.
    """
    made = workshop.jobs.one(run_id)
    source = _source(workshop, made, file)
    folder = workshop.results(method_of(source, made.method))
    if folder is None:  # the host looks into the runs itself
        return _told(workshop, made, source, source, copied=False)
    problem = name_problem(name or made.name)
    if problem:
        raise InputError(problem)
    target = folder / f"{name or made.name}{source.suffix}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if target.exists():
            if filecmp.cmp(source, target, shallow=False):
                return _told(workshop, made, source, target, copied=False)
            if not replace:
                return {"taken": target.stem, "free": _free(target)}
            moved(workshop, method_of(source, made.method), target.stem, None)  # whichever run had it there
        _put(workshop, made, source, target)
    except OSError as error:
        raise InputError(_why_not(folder, error)) from None
    workshop.changed(method_of(source, made.method))
    return _told(workshop, made, source, target, copied=True)


def _why_not(folder: Path, error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{folder}: the disk is full, so the file stays with its run; free some room and press “Use this”."
    return f"{folder}: cannot be written ({error.strerror or error})."


def _source(workshop: Workshop, made: RunView, file: str) -> Path:
    wanted = file or made.best_file
    if wanted not in [output["file"] for output in made.outputs]:
        raise InputError(f"{made.id}: this run has no file {wanted[:100]!r}.")
    if (workshop.jobs.runs / made.id / wanted).is_dir():
        raise InputError(f"{made.id}: {wanted} is a folder, which this WebUI does not read; it stays with the run.")
    return workshop.jobs.file(made.id, wanted)


def _free(target: Path) -> str:
    number = 2
    while target.with_name(f"{target.stem}-{number}{target.suffix}").exists():
        number += 1
    return f"{target.stem}-{number}"


def _put(workshop: Workshop, made: RunView, source: Path, target: Path) -> None:
    """The file, its card and its preview; what was there before goes to the trash, the person's words on it stay."""
    former = read_json(target.with_suffix(".json")) or {}
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        _take_over(source, temporary)
        if target.exists():
            # On the same drive this is a rename, so a host that has the file mapped keeps its old content.
            to_trash(workshop.jobs.runs, with_sidecars(target))
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    _write_card(workshop, made, source, target, former)


def _take_over(source: Path, target: Path) -> None:
    """A copy; of a whole model, whose file nothing changes any more, a second name where the drive allows it."""
    if source.stat().st_size >= _LARGE:
        with contextlib.suppress(OSError):
            os.link(source, target)
            return
    shutil.copyfile(source, target)


def copy_whole(source: Path, target: Path) -> None:
    """A copy that is there as a whole or not at all, and never written into a file that somebody has mapped."""
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        shutil.copyfile(source, temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _write_card(workshop: Workshop, made: RunView, source: Path, target: Path, former: dict[str, Any]) -> None:
    """The sidecar that the hosts' cards read, and a preview picture."""
    step = next((output["step"] for output in made.outputs if output["file"] == source.name), made.step)
    why = made.best["why"] if made.best and made.best["step"] == step else ""
    own = {
        "preferred weight": 1.0 if method_of(source, made.method) == "lora" else 0.0,
        "negative text": "",
        "notes": why,
    }
    if former.get("notes") == former.get(OUR_NOTES):
        former = {**former, "notes": ""}  # nobody has written anything of their own there
    card = {
        "description": f"Trained with Athanor on {made.base}, {step} steps.",
        "sd version": FAMILIES.get(str(made.plan.get("family")), "Unknown"),
        "activation text": made.trigger,
        **{name: former.get(name) or value for name, value in own.items()},
        OUR_NOTES: why,
    }
    write_json(target.with_suffix(".json"), {**former, **card})
    drawn = sample_near(made, step)
    if drawn:
        copy_whole(workshop.jobs.file(made.id, drawn), target.with_suffix(".png"))


def _told(workshop: Workshop, made: RunView, source: Path, target: Path, copied: bool) -> dict[str, Any]:
    """What the page says and keeps of it."""
    run, method = workshop.jobs.runs / made.id, method_of(source, made.method)
    if run not in target.parents:
        former = (read_json(run / RECORD) or {}).get("names", [])
        names = list(dict.fromkeys([*former, target.stem]))
        record = {"file": source.name, "name": target.stem, "names": names, "method": method, "time": time.time()}
        write_json(run / RECORD, record)
    tag = tag_for(method, target.stem, source)
    return {"name": target.stem, "tag": tag, "trigger": made.trigger if method == "lora" else "", "copied": copied}


def moved(workshop: Workshop, method: str, name: str, new_name: str | None) -> None:
    """Notes in the run that made it that a file of the host has another name now, or (None) is there no more."""
    for run in run_folders(workshop.jobs.runs):
        said = read_json(run / RECORD)
        if not said or said.get("method") != method or name not in said.get("names", []):
            continue
        names = [new_name if each == name else each for each in said["names"]]
        names = [each for each in names if each]
        now = new_name if said.get("name") == name else said.get("name")
        write_json(run / RECORD, {**said, "names": names, "name": now or (names[-1] if names else "")})


def _is_anothers(run: Path) -> bool:
    """Whether another host started the training, and lives."""
    host = read_record(run).get("host") or {}
    other = Identity(int(host.get("pid", 0)), str(host.get("started", "")))
    return other.pid not in (0, os.getpid()) and other.is_alive


class Publisher:
    """Publishes by itself what was asked for with the option `publish`, as soon as its run is done.

    Of several hosts over one runs folder the one that started the training does it; where that has ended, any other.
    What it could not do (a name that is taken, a folder that cannot be written) is kept in the run for the page to ask.
    """

    def __init__(self, workshop: Workshop) -> None:
        self._workshop = workshop
        self._seen: set[str] = set()
        self._later: dict[str, float] = {}

    def look(self) -> None:
        """One look over the runs; each run that has ended is looked at once."""
        for run in run_folders(self._workshop.jobs.runs):
            if run.name in self._seen or not (run / "ended.json").exists():
                continue
            if self._later.get(run.name, 0.0) > time.monotonic() or _is_anothers(run):
                continue
            made = self._workshop.jobs.one(run.name)
            if made.state in view.AT_WORK or made.state in view.RESUMABLE or made.state == view.QUEUED:
                continue
            try:
                if made.wants_publishing and not (run / RECORD).exists():
                    self._publish(run, made)
            except OSError:  # the disk has no room even for the note that it has none
                self._later[run.name] = time.monotonic() + _SECONDS_BETWEEN_TRIES
                _log.warning("Athanor could not note what became of the file of %s", run.name, exc_info=True)
            else:
                self._seen.add(run.name)

    def _publish(self, run: Path, made: RunView) -> None:
        try:
            said = publish(self._workshop, made.id)
            if "taken" in said:
                write_json(run / RECORD, said)
        except InputError as error:
            write_json(run / RECORD, {"problems": list(error.problems)})
