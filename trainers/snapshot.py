"""What the folders of a job held when it was queued, and what has changed since.

Standard library only: the host's process takes the record when a job is queued, the trainer compares.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

FILE = "data.json"
OPTIONS = ("data", "regularisation_data", "validation_data", "prior_data")
_PICTURES = frozenset(
    (".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif")
)
_CAPTIONS = frozenset((".txt", ".caption", ".json", ".jsonl", ".csv"))
_LISTS = frozenset((".json", ".jsonl", ".csv"))
_NAMED = 3

Record = dict[str, list[Any]]
"""{path below the folder: [size, time of change in ns, sha256]}."""


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if {"job.yaml", "events.jsonl"} <= set(names) or len(Path(place).parts) > len(folder.parts) + 20:
            folders[:] = []
            continue
        for name in names:
            if os.path.splitext(name)[1].lower() in _PICTURES | _CAPTIONS and not name.startswith("."):
                path = Path(place, name)
                yield path.relative_to(folder).as_posix().encode("utf-8", "backslashreplace").decode("utf-8"), path


def take(folder: Path, known: Mapping[str, list[Any]] | None = None) -> Record:
    """The pictures and caption files of a folder (or one dataset file) with the hashes of their contents.

    Args:
        known: an earlier record: files of the same size and time of change are not read again.
    """
    known = known or {}

    def one(found: tuple[str, Path]) -> tuple[str, list[Any]] | None:
        name, path = found
        try:
            stat = path.stat()
            before = known.get(name)
            if before and before[:2] == [stat.st_size, stat.st_mtime_ns]:
                return name, before
            with open(path, "rb") as file:
                digest = hashlib.sha256()
                while part := file.read(1 << 20):
                    digest.update(part)
            return name, [stat.st_size, stat.st_mtime_ns, digest.hexdigest()]
        except OSError:  # the scan says what cannot be read
            return None

    files = [(folder.name, folder)] if folder.is_file() else list(_files(folder))
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        return dict(sorted(filter(None, pool.map(one, files))))


def take_all(job: Mapping[str, Any], known: Mapping[str, Record] | None = None) -> dict[str, Record]:
    """The records of every folder that a job names, by option."""
    known = known or {}
    return {name: take(Path(job[name]), known.get(name)) for name in OPTIONS if job.get(name)}


def changes(before: Mapping[str, list[Any]], now: Mapping[str, list[Any]]) -> list[str]:
    """What differs, in sentences: pictures and captions that were added, removed or changed."""
    found = (
        ("added", sorted(set(now) - set(before))),
        ("removed", sorted(set(before) - set(now))),
        ("changed", sorted(name for name in set(before) & set(now) if before[name][2] != now[name][2])),
    )
    sentences = []
    for what, names in found:
        for noun, kinds in (("picture", _PICTURES), ("caption file", _CAPTIONS)):
            chosen = [name for name in names if os.path.splitext(name)[1].lower() in kinds]
            if chosen:
                count = f"1 {noun}" if len(chosen) == 1 else f"{len(chosen)} {noun}s"
                more = f" and {len(chosen) - _NAMED} more" if len(chosen) > _NAMED else ""
                sentences.append(f"{count} {what} ({', '.join(chosen[:_NAMED])}{more})")
    return sentences


def read(run: Path) -> dict[str, Record]:
    """The records in a run's folder; empty where there are none, or nothing of ours."""
    try:
        folders = json.loads((run / FILE).read_text(encoding="utf-8"))["folders"]
        return {name: {key: list(row) for key, row in record.items()} for name, record in folders.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def as_text(records: Mapping[str, Record]) -> str:
    """What `read` reads."""
    return json.dumps({"folders": records}, ensure_ascii=False, separators=(",", ":"))
