"""What is known about one picture of a data set."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from trainers.looks import Looks
from trainers.spec import Job


@dataclass(frozen=True)
class PictureOptions:
    """The options that a kohya dataset file may set for some pictures only; elsewhere they are the job's.

    Attributes:
        geometry: names of `resolution`, `buckets`, `bucket_step`, … with values that replace the job's.
    """

    shuffle_captions: bool = False
    keep_tokens: int = 0
    tag_drop: float = 0.0
    caption_drop: float = 0.0
    flip: bool = False
    crop: str = "center"
    masks: str = "none"
    prefix: str = ""
    suffix: str = ""
    geometry: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    @staticmethod
    def of(job: Job) -> PictureOptions:
        return PictureOptions(
            shuffle_captions=job.shuffle_captions,
            keep_tokens=job.keep_tokens,
            tag_drop=job.tag_drop,
            caption_drop=job.caption_drop,
            flip=job.flip,
            crop=job.crop,
            masks=job.masks,
        )


@dataclass
class Picture:
    """One readable picture.

    Attributes:
        key: stable name: the path below the data folder with forward slashes, the same on every system.
        caption: the text as written, without trigger word; empty when there is none.
        caption_path: the file the caption is from; None when it is the class name or missing.
        size: (width, height) in pixels after EXIF orientation.
        folder: name of the folder as kohya's metadata counts it (`10_sks dog`, else the data folder's name).
        sha256, mask_sha256: of the files' contents.
        looks: what it looks like in numbers.
    """

    path: Path
    key: str
    caption: str = ""
    caption_path: Path | None = None
    size: tuple[int, int] = (0, 0)
    repeats: int = 1
    is_regularisation: bool = False
    mask_path: Path | None = None
    class_name: str = ""
    folder: str = ""
    sha256: str = ""
    mask_sha256: str = ""
    has_alpha: bool = False
    looks: Looks | None = None
    options: PictureOptions = field(default_factory=PictureOptions)


@dataclass(frozen=True)
class Skipped:
    """A file that looks like a picture and is not used, and why."""

    path: Path
    reason: str


def counted(number: int, noun: str) -> str:
    """`1 picture`, `2 pictures`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def first_few(names: Iterable[object], limit: int = 3) -> str:
    """`a.png, b.png, c.png and 7 more`."""
    names = [str(name) for name in names]
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
