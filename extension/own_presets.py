"""A person's own presets: YAML files of options in the host's data folder, which the command line reads too.

The first line keeps what was answered (purpose, pace, memory), so that the form can be put back as it was.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from trainers import spec
from trainers.errors import InputError, did_you_mean
from trainers.options import METHODS, fields_for, filled, name_problem

ANSWERS = ("purpose", "pace", "memory")
_MARK = "# answers: "
_OF_ONE_JOB = ("name", "trigger", "run", "override_checks")


class OwnPresets:
    """The presets in one folder.

    Every method raises InputError for a name that no file can have or that there is not.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)

    def names(self) -> list[str]:
        """Sorted."""
        return sorted(path.stem for path in self.folder.glob("*.yaml")) if self.folder.is_dir() else []

    def save(self, name: str, values: Mapping[str, Any], answers: Mapping[str, Any]) -> None:
        """Keeps the options of a form under a name; another one of the same name goes into the folder's trash.

        What belongs to one job (its name, trigger word, paths) is left out; problems of the rest are told.
        """
        path = self._path(name)
        method = str(values.get("method", "lora"))
        if method not in METHODS:
            raise InputError(f"method: {method[:60]!r} is not one of {', '.join(METHODS)}.")
        fields = {option.name: option for option in fields_for(method) if option.kind != "path"}
        kept: dict[str, Any] = {"method": method}
        for option in values.keys() & fields.keys() - set(_OF_ONE_JOB):
            value = spec.convert(fields[option], values[option])
            if value != fields[option].default:
                kept[option] = value
        said = {name: answers[name] for name in ANSWERS if isinstance(answers.get(name), (str, int))}
        lines = yaml.safe_dump(kept, allow_unicode=True, sort_keys=True)
        text = f"{_MARK}{json.dumps(said, ensure_ascii=True)}\n{lines}"
        if path.is_file() and path.read_text(encoding="utf-8", errors="replace") != text:
            shutil.copyfile(path, self._in_trash(path))
        self._write(path, text)

    def load(self, name: str) -> dict[str, Any]:
        """`{"values": all options but those of one job, "answers": what was answered}`."""
        path = self._existing(name)
        first = path.read_text(encoding="utf-8").partition("\n")[0]
        try:
            said = json.loads(first[len(_MARK) :]) if first.startswith(_MARK) else {}
        except ValueError:
            said = {}
        answers = {name: said[name] for name in ANSWERS if name in said} if isinstance(said, dict) else {}
        values = spec.read_yaml(path)
        apart = [option.name for option in fields_for(str(values.get("method", "lora"))) if option.kind == "path"]
        return {"values": filled(values, [*apart, *_OF_ONE_JOB]), "answers": answers}

    def delete(self, name: str) -> None:
        """Moves it into the folder's trash."""
        path = self._existing(name)
        os.replace(path, self._in_trash(path))

    def _in_trash(self, path: Path) -> Path:
        trash = self.folder / ".trash"
        trash.mkdir(exist_ok=True)
        return trash / f"{path.stem}-{uuid.uuid4().hex[:8]}.yaml"

    def _path(self, name: str) -> Path:
        problem = name_problem(name)
        if problem or name.startswith("."):
            raise InputError(problem or "name: must not begin with a dot.")
        return self.folder / f"{name}.yaml"

    def _existing(self, name: str) -> Path:
        path = self._path(name)
        if not path.is_file():
            raise InputError(f"preset: {name[:60]!r} is none of your own presets." + did_you_mean(name, self.names()))
        return path

    def _write(self, path: Path, text: str) -> None:
        temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            temporary.write_text(text, encoding="utf-8", newline="\n")
            os.replace(temporary, path)
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({error.strerror or error}).") from None
        finally:
            temporary.unlink(missing_ok=True)
