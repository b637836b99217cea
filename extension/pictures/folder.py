"""A folder with pictures, as the page shows it at once: sizes, captions, buckets.

What needs every pixel (copies, softness, damage) follows in `extension.pictures.closer`.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from extension.pictures.captions import read_caption
from extension.pictures.files import CAPTIONS, is_picture, is_text, natural, open_picture, upright_size
from trainers.buckets import OPTIONS, Geometry, geometry, place
from trainers.errors import InputError
from trainers.options import FIELDS
from trainers.spec import convert

MOST = 5000
ENLARGED = 1.5
_METADATA = ("metadata.jsonl", "metadata.json", "metadata.csv")
_DEEPEST, _MOST_FOLDERS, _SECONDS = 4, 2000, 1.5

Confined = Callable[[Path], bool]


@dataclass
class PictureCard:
    """One picture.

    Attributes:
        file: its path below the folder, with forward slashes.
        version: changes with the file; for addresses that a browser may keep.
        caption: None where there is no caption file.
        bucket: the size it is cut to; None where it is broken.
        problems: "broken", "small" (it would be enlarged a lot), "caption" (others have one).
    """

    file: str
    version: str = ""
    width: int = 0
    height: int = 0
    caption: str | None = None
    bucket: tuple[int, int] | None = None
    problems: list[str] = field(default_factory=list)
    why: str = ""


@dataclass
class FolderView:
    """A folder's pictures, for a resolution."""

    folder: str
    resolution: int
    pictures: list[PictureCard]
    notes: list[str]
    left_out: int = 0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def pictures_in(folder: Path, confined: Confined = lambda path: True) -> list[Path]:
    """Every picture of a folder and the folders below, in natural order.

    Left out are links that lead out of the allowed folders, hidden files, and names that are no text (JSON cannot carry
    them).

    Raises:
        InputError: it is no folder.
    """
    return _found(folder, confined)[0]


def _found(folder: Path, confined: Confined) -> tuple[list[Path], list[str]]:
    """The pictures, and the names of links that are not followed here while a trainer does."""
    if not folder.is_dir():
        raise InputError(f"{folder}: is not a folder.")
    found: list[Path] = []
    links: list[str] = []
    for place_, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if {"job.yaml", "events.jsonl"} <= set(names):  # a training run inside
            folders[:] = []
            continue
        files = [Path(place_) / name for name in names if is_picture(name) and is_text(place_ + name)]
        hidden = {path for path in files if path.is_symlink() and not confined(path)}
        found += [path for path in files if path not in hidden]
        links += [path.name for path in hidden]
        links += [each for each in folders if is_text(each) and Path(place_, each).is_symlink()]
    return sorted(found, key=lambda path: natural(path.relative_to(folder).as_posix())), sorted(links)


def shape_for(resolution: int, cutting: Mapping[str, Any]) -> Geometry:
    """How pictures are cut at this resolution, with every option that is not given at its default.

    Raises:
        InputError: an option's value is none; named.
    """
    options = {option.name: option for option in FIELDS if option.name in OPTIONS}
    given = {name: convert(options[name], cutting[name]) for name in options if name in cutting}
    defaults = {name: option.default for name, option in options.items()}
    return geometry(defaults | given | {"resolution": resolution}, resolution)  # type: ignore[arg-type]


def look(
    folder: Path,
    resolution: int = 512,
    confined: Confined = lambda path: True,
    cutting: Mapping[str, Any] = MappingProxyType({}),
) -> FolderView:
    """The pictures of a folder and of the folders below; only headers are read.

    Args:
        cutting: options of a job that say how pictures are cut, see `trainers.buckets.OPTIONS`; others are passed over.

    Raises:
        InputError: it is no folder, or an option's value is none.
    """
    files, links = _found(folder, confined)
    shape = shape_for(resolution, cutting)
    cards = [_card(folder, file, shape, confined) for file in files[:MOST]]
    some_have = any(card.caption for card in cards)
    for card in cards:
        if not card.caption and some_have:
            card.problems.append("caption")
    notes = [
        f"{name}: captions in this file are used for training; here only those beside the pictures are shown."
        for name in _METADATA
        if (folder / name).is_file()
    ]
    if links:
        shown = ", ".join(links[:3]) + (f" and {len(links) - 3} more" if len(links) > 3 else "")
        notes.append(f"What these links lead to is not shown here, but trained on: {shown}.")
    return FolderView(str(folder), resolution, cards, notes, max(0, len(files) - MOST))


def _card(folder: Path, file: Path, shape: Geometry, confined: Confined) -> PictureCard:
    card = PictureCard(file.relative_to(folder).as_posix(), caption=read_caption(file, confined))
    try:
        stat = file.stat()
        card.version = f"{stat.st_mtime_ns:x}-{stat.st_size:x}"
        with open_picture(file) as picture:
            card.width, card.height = upright_size(picture)
    except InputError as error:
        card.why = error.problems[0].partition(": ")[2]
    except OSError as error:
        card.why = f"cannot be opened ({error.strerror or error})."
    if card.why or min(card.width, card.height) < 8:
        card.problems.append("broken")
        card.why = card.why or "is too small."
        return card
    placement = place((card.width, card.height), shape)
    card.bucket = placement.bucket if placement else None
    if placement and placement.resized[0] / card.width > ENLARGED:
        card.problems.append("small")
    return card


@dataclass
class FolderEntry:
    """A folder that directly holds pictures."""

    path: str
    name: str
    pictures: int
    captions: int


def folders_below(roots: Sequence[Path]) -> list[FolderEntry]:
    """Folders with pictures in the given ones, for choosing; what is deep or slow to reach is left out."""
    end = time.monotonic() + _SECONDS
    found: dict[str, FolderEntry] = {}
    for root in roots:
        for place_, names in _walk(root, end):
            endings = Counter(os.path.splitext(name)[1].lower() for name in names)
            pictures = sum(map(is_picture, names))
            if pictures and is_text(str(place_)):
                relative = place_.relative_to(root).as_posix()
                name = root.name if relative == "." else relative
                captions = sum(endings[ending] for ending in CAPTIONS)
                found.setdefault(str(place_), FolderEntry(str(place_), name, pictures, min(pictures, captions)))
    return sorted(found.values(), key=lambda entry: natural(entry.path))


def _walk(root: Path, end: float) -> Iterator[tuple[Path, list[str]]]:
    for seen, (place_, folders, names) in enumerate(os.walk(root)):
        if seen > _MOST_FOLDERS or time.monotonic() > end:
            return
        path, is_run = Path(place_), "events.jsonl" in names
        goes_on = not is_run and len(path.relative_to(root).parts) < _DEEPEST
        folders[:] = sorted(name for name in folders if not name.startswith(".")) if goes_on else []
        if not is_run:
            yield path, names
