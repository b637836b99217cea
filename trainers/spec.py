"""The one schema of a training job.

Every option is declared once, in `trainers/options.py`, as a `Field`. Command line flags, YAML files, the form in the
page, API validation, the file's metadata and the reference documentation are all made from that table. What is wrong
with a job is said here, before anything is loaded, naming the field, the value and what would be right.

Standard library and PyYAML only: the host's process imports this module too.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from trainers.errors import InputError, did_you_mean

BEGINNER, EXPERT = "beginner", "expert"
AUTO_DEVICE = "ATHANOR_DEVICE"
"""The environment variable in which a WebUI names the device that it draws on: what `device: auto` means then."""


@dataclass(frozen=True)
class Field:
    """One option: what it is called, what it may be, and what a person is told about it.

    Attributes:
        kind: "int", "float", "bool", "text", "path", "choice", "list" (of texts) or "map" (text to number).
        methods: methods the option is for; empty means all.
        families: base families the option is for; empty means all.
        unit: what a number counts ("steps", "px"), for the form and the reference.
        optional: None is a value of its own ("not set").
    """

    name: str
    kind: str
    default: Any
    help: str
    group: str
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    unit: str = ""
    methods: tuple[str, ...] = ()
    families: tuple[str, ...] = ()
    level: str = EXPERT
    optional: bool = False

    def is_for(self, method: str) -> bool:
        return not self.methods or method in self.methods


class Job(Mapping[str, Any]):
    """A checked job: every option that its method has, as an attribute and as a mapping entry.

    `job.run` holds what belongs to the run and not to the recipe (session id, start time).
    """

    def __init__(self, values: Mapping[str, Any], run: Mapping[str, Any] | None = None) -> None:
        object.__setattr__(self, "_values", dict(values))
        object.__setattr__(self, "run", dict(run or {}))

    def __getattr__(self, name: str) -> Any:
        try:
            return object.__getattribute__(self, "_values")[name]
        except KeyError:
            raise AttributeError(f"this job has no option {name!r}") from None

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError("a job does not change once it is checked; use job.replace(...)")

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self):
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __reduce__(self):
        return Job, (self._values, self.run)

    def replace(self, **changes: Any) -> Job:
        """A copy with other values; unknown names are an error of the caller."""
        unknown = set(changes) - set(self._values)
        if unknown:
            raise KeyError(sorted(unknown))
        return Job({**self._values, **changes}, self.run)


@dataclass
class _Checker:
    """Collects every problem of a job, so that a person hears them all at once."""

    problems: list[str] = field(default_factory=list)

    def value(self, option: Field, raw: Any) -> Any:
        try:
            return convert(option, raw)
        except InputError as error:
            self.problems.extend(error.problems)
            return option.default


def _shown(raw: Any) -> str:
    text = str(raw)
    return text if len(text) <= 60 else text[:57] + "..."


def _reject(option: Field, raw: Any, wanted: str) -> InputError:
    if str(raw).strip() == "":
        return InputError(f"{option.name}: is empty; it takes {wanted}.")
    return InputError(f"{option.name}: {_shown(raw)!r} will not do; it takes {wanted}.")


def _number_range(option: Field) -> str:
    what = "a whole number" if option.kind == "int" else "a number"
    unit = f" ({option.unit})" if option.unit else ""
    low, high = option.minimum, option.maximum
    if low is not None and high is not None:
        return f"{what} from {low:.9g} to {high:.9g}{unit}"
    if low is not None:
        return f"{what} of at least {low:.9g}{unit}"
    if high is not None:
        return f"{what} of at most {high:.9g}{unit}"
    return what + unit


def _exact(raw: Any) -> int | float:
    """`raw` as a number a float can hold; whole numbers keep all their digits, as a large seed needs."""
    number = float(raw)
    try:
        return int(raw) if isinstance(raw, (int, str)) else number
    except ValueError:  # a text such as 1e-4
        return number


def _convert_number(option: Field, raw: Any) -> int | float:
    wanted = _number_range(option)
    if isinstance(raw, bool):
        raise _reject(option, raw, wanted)
    try:
        number = _exact(raw)
    except (TypeError, ValueError, OverflowError):
        raise _reject(option, raw, wanted) from None
    if not math.isfinite(number):
        raise _reject(option, raw, wanted)
    if option.kind == "int" and number != int(number):
        raise _reject(option, raw, wanted)
    if (option.minimum is not None and number < option.minimum) or (
        option.maximum is not None and number > option.maximum
    ):
        raise _reject(option, raw, wanted)
    return int(number) if option.kind == "int" else float(number)


_TRUE, _FALSE = {"true", "yes", "on", "1"}, {"false", "no", "off", "0"}


def _convert_bool(option: Field, raw: Any) -> bool:
    if isinstance(raw, bool):
        return raw
    word = str(raw).strip().lower()
    if word in _TRUE:
        return True
    if word in _FALSE:
        return False
    raise _reject(option, raw, "yes or no")


def _convert_choice(option: Field, raw: Any) -> str:
    words = [str(raw).strip()]
    if isinstance(raw, bool):  # YAML reads a bare on, off, yes and no as truth values
        words = ["on", "yes"] if raw else ["off", "no", "none"]
    word = words[0]
    for choice in option.choices:
        if choice.lower() in (each.lower() for each in words):
            return choice
    raise InputError(
        f"{option.name}: {_shown(raw)!r} is not one of {', '.join(option.choices)}."
        + did_you_mean(word, option.choices)
    )


def _convert_list(option: Field, raw: Any) -> list[str]:
    if isinstance(raw, str):
        parts = re.split(r"(?<!\\)\|", raw)  # "\|" is a stroke within a text, as in the prompt "[cat|dog]"
        return [part.strip().replace("\\|", "|") for part in parts if part.strip()]
    if isinstance(raw, Iterable) and not isinstance(raw, Mapping):
        return [str(part) for part in raw]
    raise _reject(option, raw, "a list of texts (on the command line separated by |)")


def _convert_map(option: Field, raw: Any) -> dict[str, float]:
    wanted = "names with numbers, such as {mid: 8, up_1: 4} (on the command line mid=8,up_1=4)"
    if isinstance(raw, str):
        pairs = [part.partition("=") for part in raw.split(",") if part.strip()]
        raw = {name.strip(): value for name, _, value in pairs}
    if not isinstance(raw, Mapping):
        raise _reject(option, raw, wanted)
    try:
        numbers = {str(name): float(value) for name, value in raw.items()}
    except (TypeError, ValueError, OverflowError):
        raise _reject(option, raw, wanted) from None
    if not all(map(math.isfinite, numbers.values())):
        raise _reject(option, raw, wanted)
    return numbers


def _convert_text(option: Field, raw: Any) -> str:
    if isinstance(raw, (Mapping, list, tuple)):
        raise _reject(option, raw, "a text")
    text = os.fspath(raw) if isinstance(raw, Path) else str(raw)
    if "\0" in text:
        raise _reject(option, raw, "a text without NUL characters")
    return text


_CONVERTERS = {
    "int": _convert_number,
    "float": _convert_number,
    "bool": _convert_bool,
    "choice": _convert_choice,
    "list": _convert_list,
    "map": _convert_map,
    "text": _convert_text,
    "path": _convert_text,
}


def convert(option: Field, raw: Any) -> Any:
    """`raw` (from YAML, a command line or a form) as the option's type; `InputError` says what would be right."""
    if option.optional and (raw is None or (isinstance(raw, str) and raw.strip().lower() in ("", "none"))):
        return None
    if raw is None:
        raise _reject(option, raw, "a value")
    return _CONVERTERS[option.kind](option, raw)


def parse(raw: Mapping[str, Any]) -> Job:
    """A checked `Job` from raw options; raises `InputError` with every problem found.

    Options of another method, or misspelt ones, are errors that name the nearest option.
    """
    from trainers.options import METHODS, fields_for
    from trainers.rules import rules

    method = str(raw.get("method", "lora"))
    if method not in METHODS:
        raise InputError(
            f"method: {_shown(method)!r} is not one of {', '.join(METHODS)}." + did_you_mean(method, METHODS)
        )
    known = {option.name: option for option in fields_for(method)}
    checker = _Checker()
    values: dict[str, Any] = {"method": method}
    for name in raw:
        if name not in known and name not in ("method", "run"):
            checker.problems.append(
                f"{_shown(name)}: there is no such option for {method}." + did_you_mean(str(name), known)
            )
    for name, option in known.items():
        values[name] = checker.value(option, raw[name]) if name in raw else option.default
    run = raw.get("run") or {}
    if not isinstance(run, Mapping):
        checker.problems.append("run: must hold names and values.")
        run = {}
    job = Job(values, run)
    if not checker.problems:
        checker.problems.extend(rules(job))
    if checker.problems:
        raise InputError(*checker.problems)
    return job


def read_yaml(path: Path | str) -> dict[str, Any]:
    """The raw options of a job file; `InputError` when it cannot be read as one."""
    path = Path(path)
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such job file.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: this job file cannot be read ({error}).") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        raise InputError(f"{path}: this is not readable YAML{where}; check indentation, quotes and colons.") from None
    except (ValueError, RecursionError) as error:  # a date that is none, or lists within lists without end
        raise InputError(f"{path}: this is not readable YAML ({error}); put the value in quotes.") from None
    if not isinstance(raw, dict):
        raise InputError(f"{path}: a job file holds lines of the form `option: value`.")
    return {str(name): value for name, value in raw.items()}


def to_yaml(job: Job) -> str:
    """The complete job as YAML, grouped under headings; `parse(yaml.safe_load(text))` gives the same job."""
    from trainers.options import fields_for

    lines = [f"method: {job.method}"]
    group = None
    for option in fields_for(job.method):
        if option.group != group:
            group = option.group
            lines += ["", f"# {group}"]
        text = yaml.safe_dump({option.name: job[option.name]}, allow_unicode=True, sort_keys=False, width=4096)
        lines.append(text.rstrip("\n"))
    if job.run:
        lines += ["", "# this run", yaml.safe_dump({"run": job.run}, allow_unicode=True, sort_keys=True).rstrip("\n")]
    return "\n".join(lines) + "\n"
