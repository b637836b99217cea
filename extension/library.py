"""What was trained here, and what else the host can use: the cards of the library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from extension.jobs import view
from extension.workshop import Workshop
from trainers.errors import InputError
from trainers.formats.safetensors_io import read_header

_MOST_OTHERS = 500


def library(workshop: Workshop) -> list[dict[str, Any]]:
    """One entry for each trained file: those of the runs first, newest first, then the host's other files."""
    entries = []
    for made in workshop.jobs.all():
        finished = [output for output in made.outputs if output["kind"] == "result"] or made.outputs[-1:]
        for output in finished:
            path = workshop.jobs.runs / made.id / output["file"]
            picture = made.samples[-1]["path"] if made.samples else ""
            entries.append(
                {**_of_file(path), "run": made.id, "method": made.method, "trigger": made.trigger, "base": made.base,
                 "step": output["step"], "finished": made.state == view.DONE, "sample": picture.rpartition("/")[2],
                 "tag": tag_for(made.method, path.stem)}
            )  # fmt: skip
    return entries + _others(workshop, {entry["file"] for entry in entries})


def tag_for(method: str, name: str) -> str:
    """What is written in a prompt to use a file."""
    kinds = {
        "textual_inversion": f"<ti:{name}:1>",
        "hypernetwork": f"<hypernet:{name}:1>",
        "aesthetic_gradient": f"<aesthetic:{name}:1>",
    }
    return kinds.get(method, "" if method == "dreambooth" else f"<lora:{name}:1>")


def _of_file(path: Path) -> dict[str, Any]:
    try:
        size, changed = path.stat().st_size, path.stat().st_mtime
    except OSError:
        size, changed = 0, 0.0
    return {"name": path.stem, "file": path.name, "bytes": size, "changed": changed}


def _others(workshop: Workshop, known: set[str]) -> list[dict[str, Any]]:
    runs = workshop.jobs.runs.resolve()
    found = []
    for folder in workshop.adapters():
        if not folder.is_dir() or folder.resolve() == runs:
            continue
        for path in sorted(folder.rglob("*.safetensors"))[:_MOST_OTHERS]:
            if path.name in known or runs in path.resolve().parents:
                continue
            try:
                said = read_header(path).metadata
            except InputError:
                continue
            found.append(
                {**_of_file(path), "run": "", "method": "lora", "trigger": said.get("modelspec.trigger_phrase", ""),
                 "base": said.get("ss_sd_model_name", ""), "step": None, "finished": True, "sample": "",
                 "tag": tag_for("lora", path.stem)}
            )  # fmt: skip
    return found
