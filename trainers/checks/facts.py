"""What the checks before a start look at: plain numbers and texts, gathered once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainers.buckets import Placement, geometry, place
from trainers.data.dataset import split_validation
from trainers.data.kept import kept_pictures
from trainers.data.picture import Picture
from trainers.data.scan import Scan
from trainers.looks import Looks
from trainers.spec import Job


@dataclass(frozen=True)
class PictureFacts:
    """One picture that is taught.

    Attributes:
        key: its path below the data folder.
        size: width and height in pixels.
        caption: as written; None where there is none.
        placement: its bucket and the size it is brought to; None where it is too small for one.
    """

    key: str
    size: tuple[int, int] = (512, 512)
    caption: str | None = ""
    repeats: int = 1
    placement: Placement | None = None
    looks: Looks | None = None

    @property
    def enlarged(self) -> float:
        """How many times larger it is made; below 1 where it is reduced."""
        if self.placement is None:
            return 1.0
        return max(self.placement.resized[0] / self.size[0], self.placement.resized[1] / self.size[1])

    @property
    def cut_off(self) -> float:
        """Share of its area that lies outside its bucket."""
        if self.placement is None:
            return 0.0
        bucket, resized = self.placement.bucket, self.placement.resized
        return 1 - bucket[0] * bucket[1] / (resized[0] * resized[1])


@dataclass(frozen=True)
class JobFacts:
    """A job whose choices are made, in the terms of the checks.

    Attributes:
        options: the job's options.
        pictures: what is taught, without regularisation and held-out pictures.
        held_out: how many of the folder's pictures are held out for measuring.
        unused_captions, unread_captions, unseen: see `trainers.data.scan.Scan`.
        trigger_tokens: ids of the trigger word's tokens in CLIP's vocabulary.
        batch_size: pictures of one batch.
        exposures: how many pictures of what is taught are shown in the whole run.
        base_name: the base's file name.
        base_parameters: number of values of its UNet.
        host_clip_skip: what the host draws with, where a host asks.
        memory: peak and free bytes of the plan, and whether it fits.
    """

    options: Mapping[str, Any]
    pictures: Sequence[PictureFacts] = ()
    held_out: int = 0
    unused_captions: Sequence[str] = ()
    unread_captions: Sequence[str] = ()
    unseen: Sequence[str] = ()
    trigger_tokens: Sequence[int] = ()
    batch_size: int = 1
    steps: int = 1
    exposures: int = 1
    base_name: str = ""
    base_parameters: int = 860_000_000
    host_clip_skip: int | None = None
    memory: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_toy(self) -> bool:
        return is_toy({"unet": self.base_parameters})


def is_toy(parameters: Mapping[str, int]) -> bool:
    """Whether a base is far smaller than those that the usual doses and rates are known for."""
    return parameters.get("unet", 0) < 100_000_000


def tokens_of(text: str) -> list[int]:
    """Ids of a text in CLIP's vocabulary; empty for an empty text."""
    if not text.strip():
        return []
    from trainers.bases.tokenizer import clip_tokenizer

    return clip_tokenizer()(text, add_special_tokens=False)["input_ids"]


def job_facts(job: Job, scans: Mapping[str, Scan], info: Any, plan: Any) -> JobFacts:
    """Everything the checks before a start need.

    Args:
        job: with every choice made.
        scans: what each folder of the job holds, by option.
        info: what is known of the base (`trainers.bases.detect.BaseInfo`).
        plan: the memory plan.
    """
    training = scans["data"]
    taught = [picture for picture in training.pictures if not picture.is_regularisation]
    aside: list[Picture] = []
    if not job.validation_data:
        taught, aside = split_validation(taught, job)
    batch_size = int(training.options.get("batch_size", job.batch_size))
    shown = sum(picture.repeats for picture in taught)
    # An epoch shows as many regularisation pictures as others.
    known = [*training.pictures, *kept_pictures(taught, job)]
    has_regularisation = "regularisation_data" in scans or any(each.is_regularisation for each in known)
    per_epoch = shown * 2 if has_regularisation else shown
    per_step = batch_size * job.gradient_accumulation
    steps = job.steps or job.epochs * math.ceil(per_epoch / per_step)
    return JobFacts(
        options=dict(job),
        pictures=[_picture_facts(picture, job) for picture in taught],
        held_out=len(aside),
        unused_captions=training.unused_captions,
        unread_captions=training.unread_captions,
        unseen=training.unseen,
        trigger_tokens=tokens_of(job.trigger) if "vectors" not in job else (),
        batch_size=batch_size,
        steps=steps,
        exposures=round(steps * per_step * shown / max(1, per_epoch)),
        base_name=Path(job.base).name,
        base_parameters=info.parameters.get("unet", 0),
        host_clip_skip=job.run.get("host_clip_skip"),
        memory={"peak": plan.peak_bytes, "free": plan.free_bytes, "fits": plan.fits},
    )


def _picture_facts(picture: Picture, job: Job) -> PictureFacts:
    shape = geometry(job, job.resolution, 8, picture.options.geometry)
    return PictureFacts(
        key=picture.key,
        size=picture.size,
        caption=picture.caption if picture.caption_path or picture.caption else None,
        repeats=picture.repeats,
        placement=place(picture.size, shape),
        looks=picture.looks,
    )
