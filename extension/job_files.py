"""A job as a file and as a command line, and back into the form."""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from extension.jobs.environment import ROOT, Environment
from trainers import spec
from trainers.errors import InputError
from trainers.options import METHODS, fields_for, filled

LARGEST = 256 * 1024
_WORDS = ("base", "data", "name")


def as_yaml(values: Mapping[str, Any]) -> str:
    """The complete job file.

    Raises:
        InputError: every problem of the job.
    """
    return spec.to_yaml(spec.parse({name: value for name, value in values.items() if name != "run"}))


def as_command(values: Mapping[str, Any], environment: Environment) -> str:
    """The command that trains the same, for this system's shell, to be typed in the project's folder.

    Raises:
        InputError: every problem of the job.
    """
    job = spec.parse({name: value for name, value in values.items() if name != "run"})
    words = [str(environment.python), "-m", "trainers", job.method]
    for name in _WORDS:
        words += [f"--{name}", str(job[name])]
    own = [f"{option.name}={_word(option.kind, job[option.name])}" for option in fields_for(job.method)
           if option.name not in _WORDS and job[option.name] != option.default]  # fmt: skip
    words += ["--set", *own] if own else []
    folder = str(ROOT)
    if os.name == "nt":
        return f"cd /d {subprocess.list2cmdline([folder])} && {subprocess.list2cmdline(words)}"
    return f"cd {shlex.quote(folder)} && {shlex.join(words)}"


def _word(kind: str, value: Any) -> str:
    if kind == "list":
        return "|".join(text.replace("|", "\\|") for text in value)
    if kind == "map":
        return ",".join(f"{name}={number:g}" for name, number in value.items())
    return "" if value is None else str(value)


def read(text: str) -> dict[str, Any]:
    """The options in a job file's text; what is not given has its default.

    Raises:
        InputError: it is no job file, or options in it are unknown or wrong.
    """
    if len(text) > LARGEST:
        raise InputError(f"This file is too large for a job file (at most {LARGEST // 1024} KiB).")
    with tempfile.TemporaryDirectory(prefix="athanor-") as folder:
        file = Path(folder) / "job.yaml"
        file.write_text(text, encoding="utf-8", newline="\n")
        try:
            raw = spec.read_yaml(file)
        except InputError as error:
            raise InputError(*(problem.replace(str(file), "job file") for problem in error.problems)) from None
    method = str(raw.get("method", "lora"))
    known = {option.name: option for option in fields_for(method)} if method in METHODS else {}
    problems, values = [], {"method": method}
    if not known:
        problems.append(f"method: {method[:60]!r} is not one of {', '.join(METHODS)}.")
    for name, value in raw.items():
        if name in known:
            try:
                values[name] = spec.convert(known[name], value)
            except InputError as error:
                problems += error.problems
        elif name not in ("method", "run") and known:
            problems.append(f"{name[:60]}: there is no such option for {method}.")
    if problems:
        raise InputError(*problems)
    return filled(values)
