"""Recipes by name: YAML files of options in `presets/`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trainers.errors import InputError, did_you_mean
from trainers.spec import read_yaml

FOLDER = Path(__file__).resolve().parent.parent / "presets"


def preset_names() -> list[str]:
    """The names of the presets that ship with the project, sorted; `demo/METHOD` are those of the demonstrations."""
    found = [*FOLDER.glob("*.yaml"), *(FOLDER / "demo").glob("*.yaml")]
    return sorted(path.relative_to(FOLDER).with_suffix("").as_posix() for path in found)


def load_preset(name: str) -> dict[str, Any]:
    """The raw options of a preset; one with `like: NAME` has that one's options where it says nothing itself.

    Args:
        name: the name of a file in `presets/`, or the path of any .yaml file.

    Raises:
        InputError: there is no such preset (the nearest name is given), or it cannot be read.
    """
    if name.lower().endswith((".yaml", ".yml")):
        return read_yaml(Path(name).expanduser())
    names = preset_names()
    if name not in names:
        known = ", ".join(names)
        raise InputError(f"preset: {name!r} is not a preset; there are {known}." + did_you_mean(name, names))
    raw = read_yaml(FOLDER / f"{name}.yaml")
    other = raw.pop("like", None)
    return {**load_preset(other), **raw} if other else raw
