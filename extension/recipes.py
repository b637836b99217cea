"""From three answers (what, which word, how long) to the options of a job."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainers.errors import InputError, did_you_mean
from trainers.formats.safetensors_io import read_header
from trainers.options import fields_for
from trainers.presets import FOLDER, load_preset, preset_names

PURPOSES = {
    "person": "A person",
    "anime-character": "A drawn character",
    "style": "A style",
    "object": "A thing",
}
PACES = {"quick": 0.4, "balanced": 1.0, "thorough": 2.0}
"""How long, as a factor on the steps of the recipe."""

SMALL = 256
"""A base that says it draws pictures smaller than this is a toy: it takes the recipe of the demonstration."""

_UNET_ONLY = ("rank", "alpha", "learning_rate", "text_encoder_lr")


@dataclass(frozen=True)
class Base:
    """A base model that may be chosen.

    Attributes:
        family: "sd1", "sd2", "sdxl", or empty where the file does not say without being loaded.
        side: the side it draws at, where it says so.
        loaded: it is the one that the host draws with now.
    """

    path: Path
    title: str
    family: str = ""
    side: int | None = None
    loaded: bool = False


def describe_base(path: Path, loaded: bool = False) -> Base:
    """What a model file or diffusers folder says of itself; a file that cannot be read keeps its name only."""
    path = Path(path)
    try:
        family, side = _of_folder(path) if path.is_dir() else _of_file(path)
    except (InputError, OSError, ValueError):
        family, side = "", None
    return Base(path, path.name, family, side, loaded)


def _of_file(path: Path) -> tuple[str, int | None]:
    if path.suffix.lower() != ".safetensors":
        return "", None
    header = read_header(path)
    said = re.match(r"(\d+)x", header.metadata.get("modelspec.resolution", ""))
    signs = (("conditioner.embedders.1.", "sdxl"), ("cond_stage_model.model.", "sd2"),
             ("cond_stage_model.transformer.", "sd1"))  # fmt: skip
    family = next((family for sign, family in signs if any(name.startswith(sign) for name in header.tensors)), "")
    return family, int(said.group(1)) if said else None


def _of_folder(path: Path) -> tuple[str, int | None]:
    unet = json.loads((path / "unet" / "config.json").read_text(encoding="utf-8"))
    if (path / "text_encoder_2").is_dir():
        return "sdxl", None
    return ("sd2" if unet.get("cross_attention_dim") == 1024 else "sd1"), None


def preset_for(purpose: str, base: Base) -> str:
    """The name of the recipe for a purpose on a base.

    Raises:
        InputError: there is no such purpose.
    """
    if purpose not in PURPOSES:
        raise InputError(
            f"purpose: {purpose[:60]!r} is not one of {', '.join(PURPOSES)}." + did_you_mean(purpose[:60], PURPOSES)
        )
    if base.side and base.side < SMALL:
        return "demo"
    family = "sdxl" if base.family == "sdxl" else "sd1"
    return f"{family}-{purpose}"


def compose(preset: str, pace: str = "balanced", method: str = "lora") -> dict[str, Any]:
    """The options of a recipe at a pace, for a method.

    Only what the method has is kept; rates and sizes that belong to another method are left to its own defaults.

    Raises:
        InputError: there is no such recipe or pace.
    """
    if pace not in PACES:
        raise InputError(f"pace: {pace[:60]!r} is not one of {', '.join(PACES)}." + did_you_mean(pace[:60], PACES))
    if preset not in preset_names():
        raise InputError(f"preset: {preset[:60]!r} is not a preset." + did_you_mean(preset[:60], preset_names()))
    raw = load_preset(preset)
    known = {option.name for option in fields_for(method)}
    other = _UNET_ONLY if method != raw.get("method", method) else ()
    values = {name: value for name, value in raw.items() if name in known and name not in other}
    if values.get("steps"):
        values["steps"] = max(1, round(values["steps"] * PACES[pace]))
    if values.get("warmup"):
        values["warmup"] = round(values["warmup"] * PACES[pace])
    return {**values, "method": method}


def about_preset(name: str) -> str:
    """What a recipe says of itself at its top, as one paragraph."""
    lines = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    said = []
    for line in lines:
        if not line.startswith("#"):
            break
        said.append(line.lstrip("# "))
    return " ".join(part for part in said if part)


def default_samples(values: Mapping[str, Any]) -> list[str]:
    """Prompts that are drawn while training where a person named none: the word alone, and in a new place."""
    word = str(values.get("trigger") or values.get("name") or "").strip()
    return [word, f"{word}, outdoors, by the sea"] if word else []
