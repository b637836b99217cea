"""Aesthetic gradients (Gallego 2022, arXiv:2209.12330): what a folder of pictures looks like, as one vector.

The vector is the mean of the pictures' CLIP embeddings. It teaches the model nothing: when a picture is drawn, a copy
of the text encoder takes a few gradient steps towards it first (`extension.injection.aesthetic`). So this is one pass
over the pictures, without a base model and without steps. A run that was killed begins again, and ends with the same
bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from trainers.bases.clip_vision import ClipVision, load_clip_vision, read_config
from trainers.data.images import EXTENSIONS, UnreadablePicture, load_picture
from trainers.data.picture import counted, first_few
from trainers.data.walk import walk
from trainers.engine import precision
from trainers.errors import InputError
from trainers.formats import aesthetic
from trainers.formats.aesthetic import Aesthetic
from trainers.spec import Job

NO_TEXT_HALF = (
    "clip_model has no text half, so the file has no text_projection: Stable Diffusion 1.x needs one to use it; make "
    "it with the folder of the whole CLIP model, or put that folder beside the files."
)

NARROW, FURTHER = 256, ":steps=10:lr=1e-3"
"""A text encoder narrower than this (the embedded base's is 64 wide) has to move further to show anything."""


@dataclass
class Found:
    """The pictures of a folder, and what was left out."""

    pictures: list[Path]
    notes: list[str] = field(default_factory=list)


def pictures_of(job: Job) -> Found:
    """Every picture below `data`, in the order that every system gives.

    Raises:
        InputError: no folder, or no picture in it.
    """
    notes: list[str] = []
    paths = [
        folder.path / name
        for folder in walk(Path(job.data), notes)
        for name in folder.files
        if Path(name).suffix.lower() in EXTENSIONS and not name.endswith("-masklabel.png")
    ]
    if not paths:
        raise InputError(f"data: there are no pictures in {job.data}.")
    return Found(paths, notes)


def facts(job: Job) -> dict[str, Any]:
    """What `check` says, for programs, in the terms of the other methods; the run is one step."""
    config, found = read_config(job.clip_model), pictures_of(job)
    size = sum(
        file.stat().st_size for file in Path(job.clip_model).glob("*") if file.suffix in (".safetensors", ".bin")
    )
    memory = {"peak_bytes": size, "free_bytes": None, "fits": True, "precision": "fp32", "base_dtype": "fp32",
              "gradient_checkpointing": False, "items": {"CLIP model": size}, "reasons": []}  # fmt: skip
    folder = {"option": "data", "purpose": "to look at", "pictures": len(found.pictures), "captioned": None,
              "skipped": [], "notes": found.notes}  # fmt: skip
    return {"family": "", "title": f"CLIP image encoder, {config.projection_dim} wide", "prediction": "",
            "resolution": config.image_size, "device": precision.device_for(job.device).type, "steps": 1,
            "steps_are_exact": True, "exposures": len(found.pictures), "folders": [folder], "checks": [],
            "memory": memory}  # fmt: skip


def _embeddings(clip: ClipVision, paths: list[Path], skipped: list[str]) -> Iterator[torch.Tensor]:
    """[width] per picture, None for one that cannot be read; one by one, so that no picture depends on another."""
    for path in paths:
        try:
            yield clip.embed([load_picture(path)[0]])[0]
        except UnreadablePicture as problem:
            skipped.append(f"{path.name} ({problem})")
            yield None


def look(job: Job, report: Callable[[int, int, str], None], say: Callable[[str], None]) -> tuple[Aesthetic, int]:
    """(the pictures' mean embedding, how many could be read).

    Raises:
        InputError: no picture could be read, or the CLIP folder cannot be used.
    """
    found = pictures_of(job)
    clip = load_clip_vision(job.clip_model, precision.device_for(job.device))
    skipped: list[str] = []
    total, count = torch.zeros(clip.width, dtype=torch.float64), 0
    for number, embedding in enumerate(_embeddings(clip, found.pictures, skipped), 1):
        if embedding is not None:
            total, count = total + embedding.double(), count + 1
        report(number, len(found.pictures), "looking at pictures")
    for note in found.notes:
        say(note)
    if skipped:
        say(f"{counted(len(skipped), 'file')} skipped: {first_few(skipped)}.")
    if not count:
        raise InputError(f"data: none of the pictures in {job.data} can be read: {first_few(skipped)}.")
    if clip.text_projection is None:
        say(NO_TEXT_HALF)
    return Aesthetic((total / count).float(), clip.text_projection), count


def metadata(job: Job, made_of: Aesthetic, pictures: int) -> dict[str, str]:
    """ModelSpec's fields, what it was made from, and the tag's options; nothing in them asks the clock."""
    narrow = made_of.projection is not None and made_of.projection.shape[1] < NARROW
    options = FURTHER if narrow else ""
    made = datetime.fromtimestamp(job.run["started_at"], timezone.utc).strftime("%Y-%m-%dT%H:%M:%S")
    fields = {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "clip/aesthetic-gradient",
        "modelspec.implementation": "https://github.com/vicgalle/stable-diffusion-aesthetic-gradients",
        "modelspec.title": job.name,
        "modelspec.date": made,
        "modelspec.description": job.comment,
        "modelspec.author": job.author,
        "modelspec.license": job.license,
        "modelspec.usage_hint": f"Write <aesthetic:{job.name}:1{options}> in the prompt.",
        "ss_output_name": job.name,
        "ss_session_id": str(job.run["session_id"]),
        "ss_training_started_at": str(job.run["started_at"]),
        "ss_num_train_images": str(pictures),
        "ss_network_module": f"athanor.{job.method}",
        "athanor.clip_model": Path(job.clip_model).name,
        aesthetic.TAG_OPTIONS: options,
    }
    return {name: value for name, value in fields.items() if value}


def run(job: Job, result: Path, report: Callable[[int, int, str], None], say: Callable[[str], None]) -> None:
    """Look at the pictures and write the file, and the .pt file beside it where that is asked for."""
    made, count = look(job, report, say)
    if job.also_pt:
        aesthetic.save_pt(result.with_name(f"{job.name}.pt"), made)
    aesthetic.save(result, made, metadata(job, made, count))
