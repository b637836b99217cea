"""Where the trainers' environment of a WebUI lies, and the files beside it.

Standard library only: `install.py` asks here before anything is installed, the WebUI's process afterwards.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENTS = ".venvs"
LONGEST_INSIDE = 150
"""Characters that the longest name below an environment has (without torch, which is the WebUI's own)."""
_WINDOWS_LIMIT = 259


@dataclass(frozen=True)
class Place:
    """One environment's folder, and the files beside it that outlive making it anew.

    Attributes:
        folder: the environment.
        why: the reason why it is not in our own folder; empty where it is.
    """

    folder: Path
    why: str = ""

    def _beside(self, ending: str) -> Path:
        return self.folder.with_name(self.folder.name + ending)

    @property
    def status(self) -> Path:
        """What the build says of itself, as JSON."""
        return self._beside(".status.json")

    @property
    def log(self) -> Path:
        """What the build printed."""
        return self._beside(".log")

    @property
    def lock(self) -> Path:
        """Held while it is being made."""
        return self._beside(".lock")


def key_of(prefix: str | None = None, version: Sequence[int] | None = None) -> str:
    """A short name for the Python that runs this: WebUIs that share our folder get an environment each.

    Short, because Windows counts the characters of a whole path.
    """
    real = os.path.normcase(os.path.realpath(prefix or sys.prefix))
    numbers = version or sys.version_info[:2]
    return f"py{numbers[0]}{numbers[1]}-{hashlib.sha256(real.encode()).hexdigest()[:8]}"


def user_folder() -> Path:
    """The person's own folder for programs' data."""
    home = Path.home()
    if os.name == "nt":
        return Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local") / "athanor"
    if sys.platform == "darwin":
        return home / "Library" / "Application Support" / "athanor"
    return Path(os.environ.get("XDG_DATA_HOME") or home / ".local" / "share") / "athanor"


def candidates(root: Path = ROOT, data: Path | None = None, key: str = "") -> list[Place]:
    """Where it may be, best first: our own folder, the WebUI's data folder, the person's own folder."""
    key = key or key_of()
    places = [Place(root / ENVIRONMENTS / key)]
    if data is not None:
        places.append(Place(data / "environments" / key, f"{root} cannot be used for it"))
    return [*places, Place(user_folder() / "environments" / key, f"{root} cannot be used for it")]


def known(root: Path = ROOT, data: Path | None = None, key: str = "") -> Place | None:
    """The first place where one was made, or was begun."""
    return next((place for place in candidates(root, data, key) if place.status.exists()), None)


def choose(root: Path = ROOT, data: Path | None = None) -> Place | None:
    """The place for it: the first that can be written and is not too deep; None where there is none."""
    why = ""
    for place in candidates(root, data):
        reason = "its path is too long for Windows" if too_deep(place.folder) else not_writable(place.folder.parent)
        if not reason:
            return Place(place.folder, why)
        why = why or f"{place.folder.parent.parent}: {reason}"
    return None


def too_deep(folder: PurePath, windows: bool = os.name == "nt") -> bool:
    """Whether names below would be longer than Windows takes where long paths are not switched on."""
    return windows and len(str(folder)) + 1 + LONGEST_INSIDE > _WINDOWS_LIMIT and not _long_paths()


def _long_paths() -> bool:
    """Whether this Windows takes long paths."""
    try:
        import winreg

        with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, r"SYSTEM\CurrentControlSet\Control\FileSystem") as key:
            return winreg.QueryValueEx(key, "LongPathsEnabled")[0] == 1
    except (ImportError, OSError):
        return False


def not_writable(folder: Path) -> str:
    """Why nothing can be written into a folder, which is made where it is missing; empty where something can."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return f"it cannot be written ({error.strerror or error})"
