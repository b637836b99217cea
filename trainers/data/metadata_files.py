"""Captions kept in one file per folder: `metadata.jsonl`, `metadata.json`, `metadata.csv` (Hugging Face's image
folder: `file_name`, `text`) and the `metadata.json` of kohya's fine-tuning scripts (`{name: {caption, tags}}`)."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trainers.data.walk import normal
from trainers.encodings import UnreadableText, read_text
from trainers.errors import InputError

NAMES = ("metadata.jsonl", "metadata.json", "metadata.csv")
_FILE_KEYS = ("file_name", "file", "image", "path")
_TEXT_KEYS = ("text", "caption", "prompt", "description")


def read_metadata(path: Path) -> dict[str, str]:
    """{file name below the metadata file's folder, forward slashes: caption}; `InputError` names the damaged line."""
    try:
        text, _ = read_text(path, limit=256 << 20)
    except UnreadableText as error:
        raise InputError(f"{path}: this caption file cannot be read ({error}).") from None
    captions = {}
    try:
        entries = list(_entries(path, text))
    except (csv.Error, RecursionError) as error:
        raise InputError(f"{path}: this caption file is damaged ({error}).") from None
    for name, caption in entries:
        captions[normal(name.replace("\\", "/")).removeprefix("./")] = " ".join(caption.split("\n")).strip()
    return captions


def _entries(path: Path, text: str) -> Iterator[tuple[str, str]]:
    if path.suffix.lower() == ".csv":
        rows: Any = list(csv.DictReader(io.StringIO(text)))
    elif path.suffix.lower() == ".jsonl":
        rows = _json_lines(path, text)
    else:
        try:
            rows = json.loads(text)
        except json.JSONDecodeError:
            rows = _json_lines(path, text)
    if isinstance(rows, Mapping):
        for name, value in rows.items():
            yield str(name), value if isinstance(value, str) else _caption(path, str(name), value)
        return
    if not isinstance(rows, list):
        raise InputError(
            f'{path}: this caption file has to hold lines such as {{"file_name": "a.png", "text": "a cat"}}.'
        )
    for number, row in enumerate(rows, 1):
        name = next((row[key] for key in _FILE_KEYS if row.get(key)), None) if isinstance(row, Mapping) else None
        if not isinstance(name, str):
            raise InputError(f'{path}: entry {number} does not say which picture it is for ("file_name").')
        yield name, _caption(path, name, row)


def _json_lines(path: Path, text: str) -> list[Any]:
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise InputError(f"{path}: line {number} is not readable JSON ({error.msg}).") from None
    return rows


def _caption(path: Path, name: str, row: Any) -> str:
    """Text and tags of one entry; kohya's `caption` and `tags` are joined by a comma, as kohya does."""
    if not isinstance(row, Mapping):
        raise InputError(f"{path}: the entry for {name} has to be a text or hold a caption.")
    caption = next((row[key] for key in _TEXT_KEYS if isinstance(row.get(key), str)), None)
    tags = row.get("tags")
    if isinstance(tags, list):
        tags = ", ".join(map(str, tags))
    parts = [part for part in (caption, tags) if isinstance(part, str) and part]
    if caption is None and not parts:
        raise InputError(f'{path}: the entry for {name} has no caption ("text").')
    return ", ".join(parts)
