"""What the base models say of themselves, before any is loaded."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainers.errors import InputError
from trainers.formats.safetensors_io import read_header

SMALL = 256
"""A base that says it draws pictures smaller than this is a toy: it takes the recipe of the demonstration."""

_SIGNS = (
    ("conditioner.embedders.1.", "sdxl"),
    ("cond_stage_model.model.", "sd2"),
    ("cond_stage_model.transformer.", "sd1"),
)
_SPELLINGS = {"epsilon": "epsilon", "eps": "epsilon", "v": "v", "v_prediction": "v", "v-prediction": "v"}


@dataclass(frozen=True)
class Base:
    """A base model that may be chosen.

    Attributes:
        family: "sd1", "sd2", "sdxl", or empty where the file does not say without being loaded.
        side: the side it draws at, where it says so.
        loaded: it is the one that the host draws with now.
        prediction: "epsilon" or "v", or empty where only the loaded model can say.
        vae: the autoencoder that the host draws with instead of the model's own; empty for its own.
        parameters: values of its UNet, 0 where that is not known.
    """

    path: Path
    title: str
    family: str = ""
    side: int | None = None
    loaded: bool = False
    prediction: str = ""
    vae: str = ""
    parameters: int = 0


def describe_base(path: Path, loaded: bool = False) -> Base:
    """What a model file or diffusers folder says of itself; a file that cannot be read keeps its name only."""
    path = Path(path)
    try:
        said = _of_folder(path) if path.is_dir() else _of_file(path)
    except (InputError, OSError, ValueError):
        said = {}
    return Base(path, path.name, loaded=loaded, **said)


def _of_file(path: Path) -> dict[str, Any]:
    if path.suffix.lower() != ".safetensors":
        return {}
    header = read_header(path)
    family = next((family for sign, family in _SIGNS if any(name.startswith(sign) for name in header.tensors)), "")
    side = re.match(r"(\d+)x", header.metadata.get("modelspec.resolution", ""))
    unet = [one for name, one in header.tensors.items() if name.startswith("model.diffusion_model.")]
    return {
        "family": family,
        "side": int(side.group(1)) if side else None,
        "prediction": _prediction(family, header.metadata, "v_pred" in header.tensors),
        "parameters": sum(math.prod(one.shape) for one in unet),
    }


def _prediction(family: str, metadata: Mapping[str, str], marked: bool) -> str:
    stated = _SPELLINGS.get(metadata.get("modelspec.prediction_type", "").lower(), "")
    if stated or marked:
        return stated or "v"
    return "epsilon" if family in ("sd1", "sdxl") else ""  # both kinds of SD2 look alike


def _of_folder(path: Path) -> dict[str, Any]:
    unet = json.loads((path / "unet" / "config.json").read_text(encoding="utf-8"))
    schedule = path / "scheduler" / "scheduler_config.json"
    said = json.loads(schedule.read_text(encoding="utf-8")) if schedule.is_file() else {}
    family = "sd2" if unet.get("cross_attention_dim") == 1024 else "sd1"
    return {
        "family": "sdxl" if (path / "text_encoder_2").is_dir() else family,
        "prediction": _SPELLINGS.get(str(said.get("prediction_type", "")).lower(), ""),
    }
