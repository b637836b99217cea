"""What the page and the routes work on: jobs, the folders that may be used, the base models, the library."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from extension.composing import BUNDLED, OWN_CLIP, default_samples, is_toy
from extension.jobs.files import read_json, write_json
from extension.jobs.manager import Jobs
from extension.own_presets import OwnPresets
from extension.recipes import Base
from extension.starting import starting_points
from extension.tokens import Tokenize
from trainers import options
from trainers.errors import InputError
from trainers.options import fields_for

PATH_OPTIONS = tuple(option.name for option in options.FIELDS if option.kind == "path")


def _none() -> list[Any]:
    return []


@dataclass
class Workshop:
    """Given to the page and to the routes by a host.

    Attributes:
        pictures: the folder that dropped pictures are copied below.
        bases: the base models that may be chosen, the loaded one first.
        adapters: folders with trained files beside the runs.
        folders: further folders that pictures and files may be taken from.
        results: the folder in which the host looks for what a method makes; None where it finds it in the runs.
        changed: told the method after a file was put there, so that the host's lists and caches know it.
        notes: sentences that the tab shows at its top.
        clip_skip: what the host draws with SD1, taken over into jobs on such a base; None leaves it to the family.
        tokenizer: how the host's text encoder splits a text; None where that is not known now.
        draw: draws an `extension.grids.Drawing` with the host's loaded model; None where the host draws nothing.
        device: what `device: auto` trains on ("cuda:1"), and the bytes of its memory (None for the processor).
    """

    jobs: Jobs
    pictures: Path
    bases: Callable[[], Sequence[Base]] = _none
    adapters: Callable[[], Sequence[Path]] = _none
    folders: Callable[[], Sequence[Path]] = _none
    results: Callable[[str], Path | None] = lambda method: None
    changed: Callable[[str], None] = lambda method: None
    clip_skip: Callable[[], int | None] = lambda: None
    notes: Callable[[], list[str]] = list
    tokenizer: Callable[[], Tokenize | None] = lambda: None
    draw: Callable[[Any], Any] | None = None
    device: Callable[[], tuple[str, int | None]] = lambda: ("cpu", None)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def start(self) -> None:
        """Looks after the queue from now on, and after the files of runs that are done."""
        from extension.publishing import Publisher

        self.jobs.supervisor.after_look = Publisher(self).look
        self.jobs.start()

    @property
    def presets(self) -> OwnPresets:
        """The person's own presets."""
        return OwnPresets(self.pictures.parent / "presets")

    @property
    def _added_file(self) -> Path:
        return self.jobs.runs / ".folders.json"

    def roots(self) -> list[Path]:
        """The folders that a page or a client may name files in."""
        added = (read_json(self._added_file) or {}).get("folders", [])
        own = [self.pictures, self.jobs.runs, BUNDLED, OWN_CLIP]
        every: Iterable[Path] = [*own, *self.adapters(), *self.folders(), *map(Path, added)]
        return list(dict.fromkeys(path.resolve() for path in every))

    def picture_roots(self) -> list[Path]:
        """The folders in which a person looks for pictures: without the runs and the trained files."""
        added = (read_json(self._added_file) or {}).get("folders", [])
        every: Iterable[Path] = [self.pictures, *self.folders(), *map(Path, added)]
        return [path for path in dict.fromkeys(path.resolve() for path in every) if path.is_dir()]

    def usual_resolution(self) -> int:
        """The side that the loaded base draws at."""
        bases = self.bases()
        first = bases[0] if bases else None
        return (first.side or (1024 if first.family == "sdxl" else 512)) if first else 512

    def allows(self, path: Path) -> bool:
        """Whether a file lies in a folder that may be used, with every link followed."""
        try:
            found = path.resolve()
        except (OSError, RuntimeError):
            return False
        return any(root in found.parents for root in self.roots())

    def add_folder(self, path: str) -> Path:
        """Lets the page use a folder from now on; only ever called for a person at this machine.

        Raises:
            InputError: there is no such folder.
        """
        folder = Path(path).expanduser() if path and "\0" not in path else None
        if folder is None or not folder.is_absolute() or not folder.is_dir():
            raise InputError(f"{path[:200]}: there is no such folder; write its full path.")
        with self._lock:
            added = (read_json(self._added_file) or {}).get("folders", [])
            self.jobs.runs.mkdir(parents=True, exist_ok=True)
            write_json(self._added_file, {"folders": list(dict.fromkeys([*added, str(folder.resolve())]))})
        return folder.resolve()

    def confined(self, path: str, what: str = "path") -> Path:
        """A path that a client named, if it lies in a folder that may be used, with every link followed.

        Raises:
            InputError: it does not.
        """
        text = str(path)
        try:
            found = Path(text).expanduser()
            found = found.resolve() if found.is_absolute() and "\0" not in text else None
        except (OSError, RuntimeError, ValueError):
            found = None
        if found is None or not any(found == root or root in found.parents for root in self.roots()):
            raise InputError(
                f"{what}: {text[:200]!r} is not in a folder that this page may use; allow it beside its path."
            )
        return found

    def checked(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """A job's options from a client, with every path confined and absolute.

        Raises:
            InputError: every path that may not be used.
        """
        checked, problems = dict(values), []
        bases = {str(base.path): base.path for base in self.bases()}
        files = starting_points(self, str(checked.get("method", "lora"))) if checked.get("init_from") else []
        listed = {"base": bases, "init_from": {str(file.path): file.path for file in files}}
        for name in PATH_OPTIONS:
            value = checked.get(name)
            if value is None or value == "":
                continue
            try:
                known = listed.get(name, {}).get(str(value))
                checked[name] = str(known or self.confined(str(value), name))
            except InputError as error:
                problems += error.problems
        if problems:
            raise InputError(*problems)
        return checked

    def completed(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """A checked job, with what the host knows where the person said nothing."""
        done = self.checked(values)
        known = {option.name for option in fields_for(str(done.get("method", "lora")))}
        base = next((base for base in self.bases() if str(base.path) == str(done.get("base"))), None)
        # The host's setting is for SD1: other families have a layer of their own, and it may not go with them.
        skip = self.clip_skip() if base and base.family == "sd1" else None
        done["run"] = {} if skip is None else {"host_clip_skip": skip}
        toy = bool(base and is_toy(base))
        if "sample_prompts" in known and not done.get("sample_prompts"):
            done["sample_prompts"] = default_samples(done, toy)
        if skip is not None and "clip_skip" in known and done.get("clip_skip") in (None, ""):
            done["clip_skip"] = skip
        return done
