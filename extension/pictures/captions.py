"""Captions beside pictures: read as the trainer reads them, replaced at once, and undone also on another day."""

from __future__ import annotations

import base64
import hashlib
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from extension.jobs.files import read_json, write_json
from extension.pictures.files import CAPTIONS, MASK, write_atomically
from trainers.encodings import UnreadableText, decode_text
from trainers.errors import InputError

LONGEST = 20_000
SET_ASIDE = ".set-aside"
_MOST_ENTRIES, _MOST_BYTES = 30, 8_000_000


def caption_file(picture: Path) -> Path | None:
    """The file whose text is the picture's caption, as the trainer finds it; None where there is none."""
    for ending in CAPTIONS:
        for file in (picture.with_suffix(ending), picture.with_name(picture.name + ending)):
            if file.is_file():
                return file
    return None


def read_caption(picture: Path, confined: Callable[[Path], bool] = lambda path: True) -> str | None:
    """The caption beside a picture, its lines joined; None where there is no caption file that may be read."""
    file = caption_file(picture)
    if file is None or (file.is_symlink() and not confined(file)):
        return None
    try:
        data = file.read_bytes()
        text = decode_text(data)[0] if len(data) <= 1 << 20 else ""
    except (OSError, UnreadableText):
        return ""
    return " ".join(line.strip() for line in text.splitlines() if line.strip())


@dataclass(frozen=True)
class Edit:
    """A new caption; `was` is what the page showed before, so that nobody's later text is overwritten."""

    picture: Path
    text: str
    was: str | None


class Editor:
    """Changes captions, and remembers what was there.

    Args:
        memory: the folder in which histories are kept, one file for each picture folder.
    """

    def __init__(self, memory: Path) -> None:
        self._memory = memory
        self._lock = threading.Lock()

    # --- what was done

    def _history_file(self, folder: Path) -> Path:
        return self._memory / f"{hashlib.sha256(str(folder).encode('utf-8', 'surrogatepass')).hexdigest()[:24]}.json"

    def _entries(self, folder: Path) -> list[dict[str, Any]]:
        entries = (read_json(self._history_file(folder)) or {}).get("entries", [])
        return entries if isinstance(entries, list) else []

    def last(self, folder: Path) -> str | None:
        """What `undo` would undo; None where there is nothing."""
        entries = self._entries(folder)
        return str(entries[-1].get("label", "")) if entries else None

    def _remember(self, folder: Path, entries: list[dict[str, Any]]) -> None:
        kept, size = [], 0
        for entry in reversed(entries[-_MOST_ENTRIES:]):
            size += sum(len(str(change)) for change in entry.get("changes", ()))
            if kept and size > _MOST_BYTES:
                break
            kept.append(entry)
        self._memory.mkdir(parents=True, exist_ok=True)
        write_json(self._history_file(folder), {"folder": str(folder), "entries": kept[::-1]})

    # --- doing

    def write(self, folder: Path, label: str, edits: Sequence[Edit]) -> int:
        """Writes every caption that differs from what is there; gives their number.

        What was there is remembered before anything is written, so that a kill in between can be undone too.

        Raises:
            InputError: a text is too long, or a caption was changed by somebody else meanwhile; then none is written.
        """
        with self._lock:
            for edit in edits:
                if len(edit.text) > LONGEST or "\0" in edit.text:
                    raise InputError(f"{edit.picture.name}: a caption has at most {LONGEST} characters.")
            other = [edit.picture.name for edit in edits if (read_caption(edit.picture) or "") != (edit.was or "")]
            if other:
                raise InputError(f"{other[0]}: its caption was changed meanwhile; show the folder again.")
            needed = [edit for edit in edits if edit.text.strip() != (edit.was or "")]
            if not needed:
                return 0
            changes = [_change(folder, edit) for edit in needed]
            entry = {"label": label[:120], "time": round(time.time(), 3), "changes": changes}
            self._remember(folder, [*self._entries(folder), entry])
            for change in changes:
                write_atomically(folder / change["file"], _bytes(change["after"]) or b"")
            return len(needed)

    def set_aside(self, folder: Path, label: str, pictures: Sequence[Path]) -> int:
        """Moves pictures, their captions and masks into a hidden folder inside, where training does not look."""
        with self._lock:
            moved = [
                [file.relative_to(folder).as_posix(), target.relative_to(folder).as_posix()]
                for picture in pictures
                for file, target in _moves(folder, picture)
            ]
            entry = {"label": label[:120], "time": round(time.time(), 3), "moved": moved}
            self._remember(folder, [*self._entries(folder), entry])
            for source, target in moved:
                _move(folder / source, folder / target)
            return len(pictures)

    def undo(self, folder: Path) -> dict[str, Any]:
        """Takes the last change back.

        Returns:
            label: what was undone; `kept`: files that were changed by something else since, and so were left alone.

        Raises:
            InputError: there is nothing to undo.
        """
        with self._lock:
            entries = self._entries(folder)
            if not entries:
                raise InputError("There is nothing to undo in this folder.")
            entry = entries[-1]
            kept = [each["file"] for each in entry.get("changes", ()) if not _take_back(folder, each)]
            for source, target in entry.get("moved", ()):
                if (folder / target).exists() and not (folder / source).exists():
                    _move(folder / target, folder / source)
                else:
                    kept.append(source)
            self._remember(folder, entries[:-1])
            return {"label": str(entry.get("label", "")), "kept": kept}


def _change(folder: Path, edit: Edit) -> dict[str, Any]:
    """One caption file before and after, its bytes in base64 (it may be in any encoding)."""
    file = caption_file(edit.picture) or edit.picture.with_suffix(CAPTIONS[0])
    before = file.read_bytes() if file.is_file() else None
    after = (" ".join(edit.text.split()) + "\n").encode("utf-8", "replace")
    return {"file": file.relative_to(folder).as_posix(), "before": _text(before), "after": _text(after)}


def _text(data: bytes | None) -> str | None:
    return None if data is None else base64.b64encode(data).decode("ascii")


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else base64.b64decode(text)


def _take_back(folder: Path, change: dict[str, Any]) -> bool:
    """Whether the file holds again what it held before; one that somebody else changed since is left alone."""
    file, before, after = folder / change["file"], _bytes(change["before"]), _bytes(change["after"])
    now = file.read_bytes() if file.is_file() else None
    if now == before:
        return True
    if now != after:
        return False
    if before is None:
        file.unlink(missing_ok=True)
    else:
        write_atomically(file, before)
    return True


def _moves(folder: Path, picture: Path) -> list[tuple[Path, Path]]:
    """The picture with its caption and mask, each with a free name in the hidden folder."""
    beside = [picture, caption_file(picture), picture.with_name(picture.stem + MASK)]
    moves = []
    for file in (each for each in beside if each is not None and each.is_file()):
        target, number = folder / SET_ASIDE / file.relative_to(folder), 2
        while target.exists():
            target = target.with_name(f"{file.stem}-{number}{file.suffix}")
            number += 1
        moves.append((file, target))
    return moves


def _move(source: Path, target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(source, target)
    except OSError as error:
        raise InputError(f"{source.name}: cannot be moved ({error.strerror or error}).") from None
