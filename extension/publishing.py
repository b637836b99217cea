"""Puts a trained file where the host looks for such files, with what its cards show beside it."""

from __future__ import annotations

import filecmp
import json
import os
import shutil
import uuid
from pathlib import Path
from typing import Any

from extension.jobs.view import RunView
from extension.library import tag_for
from extension.workshop import Workshop
from trainers.errors import InputError

FAMILIES = {"sd1": "SD1", "sd2": "SD2", "sdxl": "SDXL"}


def publish(workshop: Workshop, run_id: str, file: str) -> dict[str, Any]:
    """Copies one output of a run into the host's folder and says how it is named in a prompt.

    The same file twice is one file; a name that another file has gets a number, nothing is written over.

    Raises:
        InputError: the run has no such output, or the folder cannot be written.
    """
    made = workshop.jobs.one(run_id)
    if file not in [output["file"] for output in made.outputs]:
        raise InputError(f"{run_id}: this run has no file {file[:100]!r}.")
    source = workshop.jobs.file(run_id, file)
    folder = workshop.results(made.method)
    if folder is None:  # the host looks into the runs itself
        return {"name": source.stem, "tag": tag_for(made.method, source.stem), "copied": False}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        target = _place(source, folder)
        copied = not target.exists()
        if copied:
            copy_whole(source, target)
            _write_card(workshop, made, target)
            workshop.changed()
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror or error}).") from None
    return {"name": target.stem, "tag": tag_for(made.method, target.stem), "copied": copied}


def _place(source: Path, folder: Path) -> Path:
    """Where the file is already, else the first free name."""
    number = 1
    while True:
        target = folder / (source.name if number == 1 else f"{source.stem}-{number}{source.suffix}")
        if not target.exists() or filecmp.cmp(source, target, shallow=False):
            return target
        number += 1


def copy_whole(source: Path, target: Path) -> None:
    """A copy that is there as a whole or not at all, and never written into a file that somebody has mapped."""
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        shutil.copyfile(source, temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _write_card(workshop: Workshop, made: RunView, target: Path) -> None:
    """The sidecar that the hosts' cards read, and a preview picture."""
    card = {
        "description": f"Trained with Athanor on {made.base}, {made.step} steps.",
        "sd version": FAMILIES.get(str(made.plan.get("family")), "Unknown"),
        "activation text": made.trigger,
        "preferred weight": 1.0 if made.method == "lora" else 0.0,
        "negative text": "",
        "notes": "",
    }
    sidecar = target.with_suffix(".json")
    if not sidecar.exists():
        sidecar.write_text(json.dumps(card, ensure_ascii=False, indent=1), encoding="utf-8")
    preview = target.with_suffix(".png")
    if made.samples and not preview.exists():
        newest = max(sample["step"] for sample in made.samples)
        first = next(sample for sample in made.samples if sample["step"] == newest)
        copy_whole(workshop.jobs.file(made.id, first["path"]), preview)
