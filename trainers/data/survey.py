"""What a job will train on, found before anything is loaded or any run folder is made."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainers.data.cache import cache_places, cache_root
from trainers.data.index import FileIndex
from trainers.data.picture import counted, first_few
from trainers.data.scan import Scan, scan
from trainers.errors import InputError
from trainers.spec import Job

FOLDERS = (("data", "to train on"), ("regularisation_data", "for regularisation"),
           ("validation_data", "held out"), ("prior_data", "unrelated"))  # fmt: skip


@dataclass
class Survey:
    """What each folder of the job holds."""

    scans: dict[str, Scan]

    def lines(self) -> Iterator[str]:
        """For a person: counts, captions, what is skipped and why, notes."""
        for option, purpose in FOLDERS:
            if option not in self.scans:
                continue
            found = self.scans[option]
            captioned = sum(picture.caption_path is not None for picture in found.pictures)
            yield f"{counted(len(found.pictures), 'picture')} {purpose}, {captioned} with captions."
            if found.skipped:
                reasons = first_few(f"{skipped.path.name} ({skipped.reason})" for skipped in found.skipped)
                yield f"{counted(len(found.skipped), 'file')} skipped: {reasons}."
            yield from found.notes

    def facts(self) -> list[dict[str, Any]]:
        """The same for programs, one entry for each folder."""
        return [
            {
                "option": option,
                "purpose": purpose,
                "pictures": len(self.scans[option].pictures),
                "captioned": sum(picture.caption_path is not None for picture in self.scans[option].pictures),
                "skipped": [{"file": each.path.name, "reason": each.reason} for each in self.scans[option].skipped],
                "notes": self.scans[option].notes,
            }
            for option, purpose in FOLDERS
            if option in self.scans
        ]

    def exposures(self, option: str) -> int:
        """How many pictures one epoch of a folder shows, repeats included."""
        return sum(picture.repeats for picture in self.scans[option].pictures)


def survey(job: Job, *, remember: bool = False) -> Survey:
    """Read every folder that the job names; `remember` keeps what was found for the run that follows.

    Raises:
        InputError: a folder is missing, empty, or its captions are incomplete; the sentence names the option.
    """
    data = Path(job.data)
    index = FileIndex.find(cache_places(job.cache_dir, data, None))
    scans = {}
    for option, _ in FOLDERS:
        if not job[option]:
            continue
        measured = option in ("validation_data", "prior_data")
        aside = option in ("regularisation_data", "prior_data")
        # What is taught is judged by the checks, with every other fault of it, instead of by the first one alone.
        lenient = job.replace(allow_missing_captions=True) if option == "data" else job
        try:
            scans[option] = scan(job[option], lenient, index=index, is_regularisation=aside, measured=measured)
        except InputError as error:
            raise InputError(*(text.replace("data:", f"{option}:", 1) for text in error.problems)) from None
    if remember:
        index.save(cache_root(job.cache_dir, data, None, []))
    return Survey(scans)
