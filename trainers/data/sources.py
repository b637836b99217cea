"""A source is one folder with its settings: a plain data folder, or one subset of a kohya dataset file."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from trainers.data.picture import PictureOptions
from trainers.spec import Job

_EXTENSIONS = {
    "auto": (".txt", ".caption"),
    "txt": (".txt",),
    "caption": (".caption",),
    "metadata": (),
    "none": (),
}


@dataclass(frozen=True)
class Source:
    """Attributes:
    prefix: put in front of every key, so that several sources do not share keys; empty for a single folder.
    repeats: replaces what folder names say; None keeps it.
    class_name: caption of pictures without one; None means what folder names say.
    extensions: caption files read, the first found wins.
    metadata: whether metadata files are read; a path names the one file to read.
    """

    root: Path
    options: PictureOptions = field(default_factory=PictureOptions)
    prefix: str = ""
    repeats: int | None = None
    class_name: str | None = None
    recursive: bool = True
    extensions: tuple[str, ...] = (".txt", ".caption")
    metadata: bool | Path = True
    is_regularisation: bool = False
    allow_missing_captions: bool = False

    @staticmethod
    def of(folder: Path, job: Job, is_regularisation: bool = False, prefix: str = "", measured: bool = False) -> Source:
        """The source that a job's option means: all options are the job's own.

        `measured` pictures (validation, prior) are compared whole, so their masks are not read.
        """
        options = PictureOptions.of(job)
        return Source(
            root=folder,
            options=replace(options, masks="none") if measured else options,
            prefix=prefix,
            repeats=job.repeats if not is_regularisation else None,
            extensions=_EXTENSIONS[job.captions],
            metadata=job.captions in ("auto", "metadata"),
            is_regularisation=is_regularisation,
            allow_missing_captions=job.allow_missing_captions or "captions" in job.override_checks,
        )
