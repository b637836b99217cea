"""What is known about files without opening them again: by path, size and time of change, then by content."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from PIL import __version__ as PILLOW_VERSION

from trainers.data.cache import write_atomically
from trainers.data.images import UnreadablePicture, decode, read_bytes
from trainers.looks import Looks, look_at

_VERSION = 2
# A file that changed this shortly before it was read may change again without its time of change moving.
_CLOCK_STEP_NS = 2_000_000_000


@dataclass(frozen=True)
class Facts:
    """sha256 of a file's content, its size in pixels, whether it has an alpha channel, what it looks like; or why it
    cannot be used."""

    sha256: str
    size: tuple[int, int] = (0, 0)
    has_alpha: bool = False
    problem: str = ""
    looks: Looks | None = None


NAME = "index.json"


class FileIndex:
    """Facts about picture files; read from `path` where that exists, else empty.

    `files`: {path: [size, mtime, ctime, time read, sha256]}; `contents`: {sha256: [width, height, alpha, problem]}.
    A moved folder costs a hash per file, a known one a `stat` per file, and only new contents are decoded.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._files: dict[str, list] = {}
        self._contents: dict[str, list] = {}
        self._changed = path is None
        self._read()

    @staticmethod
    def find(folders: Iterable[Path]) -> FileIndex:
        """The index of the first cache folder that has one, else an empty one."""
        return FileIndex(next((each / NAME for each in folders if (each / NAME).is_file()), None))

    def _read(self) -> None:
        if self._path is None:
            return
        try:
            stored = json.loads(self._path.read_text(encoding="utf-8"))
            if stored["version"] == [_VERSION, PILLOW_VERSION]:
                files, contents = stored["files"], stored["contents"]
                if all(len(row) == 5 for row in files.values()) and all(len(row) == 5 for row in contents.values()):
                    self._files, self._contents = files, contents
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            self._changed = True  # missing or damaged: made again from the files

    def save(self, folder: Path) -> None:
        """Write the index into a cache folder, unless it is there already and nothing is new."""
        path = folder / NAME
        if self._changed or path != self._path:
            stored = {"version": [_VERSION, PILLOW_VERSION], "files": self._files, "contents": self._contents}
            write_atomically(path, json.dumps(stored, separators=(",", ":")).encode("utf-8", "surrogatepass"))
            self._path, self._changed = path, False

    def facts(self, path: Path) -> Facts:
        """Facts about one file, decoding it only when its content is new. Safe to call from several threads."""
        name = os.path.abspath(path)
        try:
            stat = os.stat(path)
        except OSError as error:
            return Facts("", problem=f"the file cannot be opened ({error.strerror or error})")
        # On Windows ctime is the time of creation, which says nothing about change.
        stamp = [stat.st_size, stat.st_mtime_ns, 0 if os.name == "nt" else stat.st_ctime_ns]
        row = self._files.get(name)
        if row and row[:3] == stamp and max(stamp[1:]) + _CLOCK_STEP_NS < row[3] and row[4] in self._contents:
            return self._known(row[4])
        now = time.time_ns()
        try:
            data = read_bytes(path)
        except UnreadablePicture as error:
            return Facts("", problem=str(error))
        sha256 = hashlib.sha256(data).hexdigest()
        if sha256 not in self._contents:
            try:
                self._contents[sha256] = _inspect(data)
            except MemoryError:  # not a fact about the file, so it is not kept
                return Facts("", problem="there is not enough memory to read it")
        self._files[name] = [*stamp, now, sha256]
        self._changed = True
        return self._known(sha256)

    def _known(self, sha256: str) -> Facts:
        width, height, alpha, problem, looks = self._contents[sha256]
        return Facts(sha256, (width, height), alpha, problem, Looks.from_list(looks) if looks else None)


def _inspect(data: bytes) -> list:
    try:
        picture, alpha = decode(data)
    except UnreadablePicture as error:
        return [0, 0, False, str(error), None]
    return [picture.width, picture.height, alpha is not None, "", look_at(picture).as_list()]
