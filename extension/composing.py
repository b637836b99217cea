"""Recipes are composed: purpose, family and method say how it learns, the pace how long, the memory in how many parts.

All of it is data in `presets/`: the complete recipes (`sd1-person.yaml`, …) and the tables in `presets/compose/`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from extension.recipes import SMALL, Base
from extension.starting import ENDINGS as GO_ON_FROM
from trainers import options
from trainers.errors import InputError, did_you_mean
from trainers.options import DATA, METHODS, NAMED_BY_ITSELF, ONE_PASS, fields_for
from trainers.presets import FOLDER, load_preset, preset_names
from trainers.spec import convert, read_yaml

BUNDLED = FOLDER.parent / "assets" / "pictures"
"""The pictures that come with the project."""

OWN_CLIP = BUNDLED.parent / "clip"
"""The CLIP model that comes with the project, whose text half is the embedded base's."""

LEAST_EXPOSURES = 1000
"""Fewer than these teach nothing that can be judged, so no pace goes below them unless the recipe itself does."""

FAMILIES = ("sd1", "sd2", "sdxl")
_OBJECTIVE = ("clip_skip", "resolution", "min_snr_gamma")
_HOLDING = ("kept_word", "prior_target", "prior_weight")  # belongs to how strongly a method learns


@cache
def table(name: str) -> dict[str, Any]:
    """One of the tables in `presets/compose/`: "purposes", "paces", "memory", "methods"."""
    return read_yaml(FOLDER / "compose" / f"{name}.yaml")


def methods() -> dict[str, dict[str, Any]]:
    """What is known of each method that can be trained, in the order it is offered."""
    return {name: facts for name, facts in table("methods").items() if name in METHODS}


QUESTIONS = {
    "trigger": "trigger", "captions": "captions", "pace": "steps", "base": "base", "memory": "batch_size",
    "init_from": "init_from",
}  # fmt: skip
"""Questions of the form that some methods do not have, and the option that each is about."""


def asked(method: str) -> list[str]:
    """The questions among `QUESTIONS` that mean something to a method."""
    known = {option.name for option in fields_for(method)}
    if method in NAMED_BY_ITSELF:
        known.discard("trigger")
    if method not in GO_ON_FROM:
        known.discard("init_from")
    return [question for question, option in QUESTIONS.items() if option in known]


@dataclass(frozen=True)
class Wish:
    """What a person answered.

    Attributes:
        memory: GB of the graphics card, one of `memory_classes()`; None leaves the recipe as it is.
        preset: the name of a complete recipe that is taken instead of the one for the purpose.
        pictures: how many there are; None while that is not known.
    """

    base: Base
    purpose: str = "object"
    pace: str = "balanced"
    method: str = "lora"
    memory: int | None = None
    preset: str = ""
    pictures: int | None = None

    def problems(self) -> list[str]:
        """What is none of the choices."""
        known = {"purpose": table("purposes"), "pace": table("paces"), "method": METHODS}
        if self.preset:
            known["preset"] = preset_names()
        found = []
        for name, choices in known.items():
            value = str(getattr(self, name))[:60]
            if value not in choices:
                found.append(f"{name}: {value!r} is not one of {', '.join(choices)}." + did_you_mean(value, choices))
        if self.memory is not None and self.memory not in memory_classes():
            classes = ", ".join(map(str, memory_classes()))
            found.append(f"memory: {self.memory} is not one of {classes} (GB).")
        return found


@dataclass(frozen=True)
class Recipe:
    """Options, and where they are from.

    Attributes:
        preset: the complete recipe that it is made from; empty where only the method's own values are.
        exposures: how many pictures the model is shown; None where the recipe does not count steps.
        changes: option -> sentence, for each change that fits it into the memory and alters the result.
        capped: it ends earlier than the pace says, because there are few pictures.
    """

    values: dict[str, Any]
    preset: str = ""
    exposures: int | None = None
    changes: dict[str, str] = field(default_factory=dict)
    capped: bool = False


def compose(wish: Wish) -> Recipe:
    """The options for what a person answered.

    Raises:
        InputError: an answer that is none of the choices.
    """
    problems = wish.problems()
    if problems:
        raise InputError(*problems)
    preset, values = _how_it_learns(wish)
    changes: dict[str, str] = {}
    if wish.memory and not is_toy(wish.base):
        exposures = _exposures(values)
        values, changes = _into_memory(values, wish)
        values = _with_exposures(values, exposures)
    wanted, capped = _dose(wish, _exposures(values))
    values = _with_exposures(values, wanted)
    known = {option.name for option in fields_for(wish.method)}
    values = _watched(_looked_at(_held_to_its_base(values, wish, known), wish, known), known)
    return Recipe({**values, "method": wish.method}, preset, wanted and _exposures(values), changes, capped)


# --- how it learns


def is_toy(base: Base) -> bool:
    """Whether it is a tiny model, which takes the recipe of the demonstration."""
    return bool(base.side and base.side < SMALL)


def family_of(base: Base) -> str:
    """The family whose recipes are for a base; "sd1" where its file does not say."""
    return base.family if base.family in FAMILIES else "sd1"


def preset_for(wish: Wish) -> str:
    """The name of the complete recipe for a purpose, family and method; empty where there is none."""
    if wish.preset:
        return wish.preset
    if is_toy(wish.base) and wish.method not in ONE_PASS:
        return next((name for name in ("demo", *_named("demo/")) if method_of_preset(name) == wish.method), "")
    for family in _families(wish.base):
        plain = f"{family}-{wish.purpose}"
        for name in (plain, f"{plain}-{wish.method}", *_named(f"{plain}-")):
            if name in preset_names() and method_of_preset(name) == wish.method:
                return name
    others = [name for name in preset_names() if not name.startswith(("sd1-", "sd2-", "sdxl-", "demo"))]
    return next((name for name in others if method_of_preset(name) == wish.method), "")


def _families(base: Base) -> tuple[str, ...]:
    """The family whose recipes are for a base, and what comes nearest to it."""
    family = family_of(base)
    return (family, "sd1") if family == "sd2" else (family,)


def _named(beginning: str) -> list[str]:
    return [name for name in preset_names() if name.startswith(beginning)]


@cache
def _preset(name: str) -> Mapping[str, Any]:
    """A shipped recipe, read once."""
    return load_preset(name)


def method_of_preset(preset: str) -> str:
    """The method that a shipped recipe is for."""
    return str(_preset(preset).get("method", "lora"))


def _how_it_learns(wish: Wish) -> tuple[str, dict[str, Any]]:
    """A complete recipe, or the method's own values with what the purpose's recipe says of pictures and captions."""
    preset = preset_for(wish)
    known = {option.name: option for option in fields_for(wish.method)}
    if preset and method_of_preset(preset) == wish.method:
        values = dict(_preset(preset))
    else:
        raw = _preset(preset or f"{_families(wish.base)[-1]}-{wish.purpose}")
        values = {**_about_pictures(raw, known), **_own_recipe(wish, known)}
    values = {name: convert(known[name], value) for name, value in values.items() if name in known}
    if family_of(wish.base) == "sd2" and not preset.startswith("sd2"):  # 512 or 768 px: the model says which
        values = {name: value for name, value in values.items() if name not in ("resolution", "clip_skip")}
    return preset, values


def _own_recipe(wish: Wish, known: Mapping[str, Any]) -> dict[str, Any]:
    """How a method learns where no recipe of it is for the purpose: as its recipe for another one, else its table's."""
    for family in _families(wish.base):
        other = next((name for name in _named(f"{family}-") if method_of_preset(name) == wish.method), None)
        if other is not None:
            return {
                name: value
                for name, value in _preset(other).items()
                if name not in _about_pictures(_preset(other), known)
            }
    return methods()[wish.method].get("recipe", {}).get(_families(wish.base)[-1], {})


def _held_to_its_base(values: dict[str, Any], wish: Wish, known: set[str]) -> dict[str, Any]:
    """So small a model has no room to spare: a recipe that holds it to what it knows needs pictures of other things."""
    wanted = is_toy(wish.base) and "prior_weight" in values and "regularisation_data" in known
    return {"regularisation_data": str(BUNDLED / "unrelated"), **values} if wanted else values


def _looked_at(values: dict[str, Any], wish: Wish, known: set[str]) -> dict[str, Any]:
    """Nobody with the embedded base has to look for a CLIP model that fits it."""
    return {"clip_model": str(OWN_CLIP), **values} if is_toy(wish.base) and "clip_model" in known else values


def _about_pictures(raw: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value for name, value in raw.items()
        if name in _OBJECTIVE or (name in known and known[name].group == DATA and name not in _HOLDING)
    }  # fmt: skip


# --- how long


def _batch(values: Mapping[str, Any]) -> int:
    return int(values.get("batch_size", 1)) * int(values.get("gradient_accumulation", 1))


def _taught(values: Mapping[str, Any]) -> float:
    """Pictures of what is taught in a step: half of them where each stands beside itself under the kept word."""
    return _batch(values) / (2 if values.get("kept_word") else 1)


def _exposures(values: Mapping[str, Any]) -> int | None:
    return round(int(values["steps"]) * _taught(values)) if values.get("steps") else None


def _dose(wish: Wish, full: int | None) -> tuple[int | None, bool]:
    """(exposures at this pace, whether there are too few pictures for more)."""
    if full is None:
        return None, False
    pace = table("paces")[wish.pace]
    wanted = max(round(full * pace["exposures"]), min(full, LEAST_EXPOSURES))
    most = int(pace["most_per_picture"]) * wish.pictures if wish.pictures else wanted
    return min(wanted, most), most < wanted


def _with_exposures(values: dict[str, Any], wanted: int | None) -> dict[str, Any]:
    """The same recipe over another number of exposures; its warm-up keeps its share."""
    if wanted is None:
        return values
    former = int(values["steps"])
    steps = max(1, round(wanted / _taught(values)))
    changed = {"steps": steps}
    if values.get("warmup"):
        changed["warmup"] = round(values["warmup"] * steps / former)
    return {**values, **changed}


# --- what is seen of it

FILES_OF_A_RUN = 5


def _watched(values: dict[str, Any], known: set[str]) -> dict[str, Any]:
    """The same recipe with files and pictures on the way, of which the best is found and put where the host looks."""
    part = max(1, -(-int(values.get("steps") or 0) // FILES_OF_A_RUN))
    wishes: dict[str, Any] = {"find_best": True, "publish": True}
    if values.get("steps") and "output" not in known:  # whole models are too large for a file each time
        wishes |= {"save_every": part, "sample_every": part}
    return {**{name: value for name, value in wishes.items() if name in known}, **values}


def default_samples(values: Mapping[str, Any], toy: bool = False) -> list[str]:
    """Prompts that are drawn while training where a person named none.

    Args:
        toy: the base is a tiny model, which knows only simple things.
    """
    word = str(values.get("trigger") or "").strip()
    if values.get("method") == "textual_inversion":
        word = str(values.get("name") or "").strip()
    if word and toy:
        return [word, f"{word} on a striped purple background", f"two {word}, blue checks", "a red star, plain green"]
    return options.default_samples(word)


# --- in how many parts


def memory_classes() -> list[int]:
    """Sizes of a graphics card's memory that there are rows for, in GB."""
    return list(table("memory")["classes"])


def memory_class(size: int | None) -> int | None:
    """The class of a card with `size` bytes; None where there is no card, or one smaller than every class."""
    fitting = [each for each in memory_classes() if size and each <= round(size / 2**30)]
    return max(fitting, default=None)


def _into_memory(values: dict[str, Any], wish: Wish) -> tuple[dict[str, Any], dict[str, str]]:
    """The recipe for a card of this size, and what alters its result."""
    changed, because, at_once = dict(values), {}, _batch(values)
    known = {option.name for option in fields_for(wish.method)}
    for row in table("memory")["rows"]:
        if not _is_for(row, wish):
            continue
        at_once = min(at_once, row.get("at_once", at_once))
        for name, value in row.get("values", {}).items():
            if name in known and changed.get(name) != value:
                changed[name] = value
                if name in row.get("because", {}):
                    because[name] = row["because"][name]
    return _in_parts(changed, at_once, because), because


def _is_for(row: Mapping[str, Any], wish: Wish) -> bool:
    actual = {"memory": wish.memory, "family": family_of(wish.base), "method": wish.method}
    for name, value in actual.items():
        wanted = row.get(name, value)
        if value not in (wanted if isinstance(wanted, list) else [wanted]):
            return False
    return True


def _in_parts(values: dict[str, Any], at_once: int, because: dict[str, str]) -> dict[str, Any]:
    """Computes a batch in parts of at most `at_once` pictures, which divide it, and adds them up."""
    batch = _batch(values)
    part = max(size for size in range(1, batch + 1) if batch % size == 0 and size <= max(1, at_once))
    if part == int(values.get("batch_size", 1)):
        return values
    if not values.get("fused_backward"):
        return {**values, "batch_size": part, "gradient_accumulation": batch // part}
    because["batch_size"] = "Fewer pictures are looked at in one step, because gradients are used up at once."
    return {**values, "batch_size": part}


def about_preset(name: str) -> str:
    """What a recipe says of itself at its top, as one paragraph."""
    return about(FOLDER / f"{name}.yaml")


def about(file: Path) -> str:
    """The comment at a recipe file's top, as one paragraph."""
    said = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        said.append(line.lstrip("# "))
    return " ".join(part for part in said if part)
