"""What only the pixels tell: damage, exact and near copies, pictures far softer than the others.

A folder is looked at in pieces, so that a page can show how far it is, and every picture once: what is known stays in
memory as long as the file does not change.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import ImageOps

from extension.pictures.files import open_picture
from extension.pictures.folder import MOST, pictures_in
from trainers.errors import InputError
from trainers.looks import SIDE, Looks, eight_bit, far_softer, groups_of_alike, is_deep, look_at

_MOST_KNOWN = 20_000
_SECONDS = 1.0


@dataclass(frozen=True)
class _Known:
    sha256: str = ""
    looks: Looks | None = None
    problem: str = ""


class CloserLook:
    """Looks at pictures, each once."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[str, int, int], _Known] = OrderedDict()
        self._lock = threading.Lock()

    def look(
        self, folder: Path, start: int = 0, confined: Callable[[Path], bool] = lambda path: True
    ) -> dict[str, Any]:
        """Goes on for about a second.

        Returns:
            next: from where to go on; None when all is known, and then
            problems: {file: [{"kind": "broken" | "copy" | "alike" | "soft", "of": file, "why": sentence}]}.
        """
        files = pictures_in(folder, confined)[:MOST]
        end = time.monotonic() + _SECONDS
        for number in range(start, len(files)):
            if number > start and time.monotonic() > end:
                return {"next": number, "total": len(files)}
            self._look_at(files[number])
        return {"next": None, "total": len(files), "problems": self._judged(folder, files)}

    def _look_at(self, file: Path) -> _Known:
        try:
            stat = file.stat()
        except OSError as error:
            return _Known(problem=f"cannot be opened ({error.strerror or error}).")
        key = (str(file), stat.st_mtime_ns, stat.st_size)
        with self._lock:
            if key in self._known:
                self._known.move_to_end(key)
                return self._known[key]
        found = _inspect(file)
        with self._lock:
            self._known[key] = found
            while len(self._known) > _MOST_KNOWN:
                self._known.popitem(last=False)
        return found

    def _judged(self, folder: Path, files: Sequence[Path]) -> dict[str, list[dict[str, str]]]:
        names = [file.relative_to(folder).as_posix() for file in files]
        known = [self._look_at(file) for file in files]
        problems: dict[str, list[dict[str, str]]] = {}

        def say(number: int, **what: str) -> None:
            problems.setdefault(names[number], []).append(what)

        first: dict[str, int] = {}
        for number, each in enumerate(known):
            if each.problem:
                say(number, kind="broken", why=each.problem)
            elif each.sha256 in first:
                say(number, kind="copy", of=names[first[each.sha256]])
            else:
                first[each.sha256] = number
        # Only one of each content, so that a copy is not called nearly the same as well.
        alone = [number for number in first.values() if known[number].looks]
        looks = [known[number].looks for number in alone]
        for group in groups_of_alike(looks):
            for member in group[1:]:
                say(alone[member], kind="alike", of=names[alone[group[0]]])
        for member in far_softer(looks):
            say(alone[member], kind="soft")
        return problems


def _inspect(file: Path) -> _Known:
    try:
        sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
        with open_picture(file) as opened:
            opened.draft("RGB", (SIDE, SIDE))
            upright = ImageOps.exif_transpose(opened) or opened
            upright.load()
            if is_deep(upright):
                upright = eight_bit(upright)
            elif upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info:
                upright = upright.convert("RGBA")
            return _Known(sha256, look_at(upright.convert("RGB")))
    except InputError as error:
        return _Known(problem=error.problems[0].partition(": ")[2])
    except Exception:  # Pillow raises many kinds on damaged files
        return _Known(problem="is damaged or cut short.")
