"""CLIP's image encoder from a folder in transformers' layout, and pictures as it wants them.

The folder is one of a whole CLIP model or of its image half. Only its files are read: config.json,
preprocessor_config.json where there is one, and the weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from trainers.bases.build import number_positions
from trainers.errors import InputError
from trainers.formats import pickles, safetensors_io

_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_VISION, _TEXT_PROJECTION = ("vision_model.", "visual_projection."), "text_projection.weight"


@dataclass(frozen=True)
class Look:
    """How pictures are brought to the encoder's size and range (CLIP's own values where the folder does not say)."""

    side: int
    mean: tuple[float, ...] = _MEAN
    std: tuple[float, ...] = _STD

    def pixels(self, picture: Image.Image) -> Tensor:
        """[3, side, side] float32: the shortest side scaled to `side`, the middle cut out, normalised."""
        width, height = picture.size
        scale = self.side / min(width, height)
        size = max(self.side, round(width * scale)), max(self.side, round(height * scale))
        picture = picture.convert("RGB").resize(size, Image.Resampling.BICUBIC)
        left, top = (size[0] - self.side) // 2, (size[1] - self.side) // 2
        cut = picture.crop((left, top, left + self.side, top + self.side))
        values = (np.asarray(cut, np.float32) / 255 - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1), np.float32))


@dataclass
class ClipVision:
    """What a folder holds.

    Attributes:
        width: of the common space of pictures and texts.
        text_projection: [width, text width] float32, None where the folder has no text half.
    """

    folder: Path
    model: CLIPVisionModelWithProjection
    look: Look
    width: int
    text_projection: Tensor | None

    @torch.no_grad()
    def embed(self, pictures: list[Image.Image]) -> Tensor:
        """[pictures, width] float32 on the CPU, not normalised, as CLIP gives them."""
        pixels = torch.stack([self.look.pixels(one) for one in pictures])
        return self.model(pixel_values=pixels.to(self.model.device)).image_embeds.float().cpu()


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise InputError(f"clip_model: {path} cannot be read ({error}).") from None
    if not isinstance(content, dict):
        raise InputError(f"clip_model: {path} is not a configuration.")
    return content


def read_config(folder: Path | str) -> CLIPVisionConfig:
    """The image encoder's configuration; reads nothing but config.json.

    Raises:
        InputError: it is not a CLIP folder, or one of a text encoder alone.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"clip_model: {folder} is not a folder; name the folder of a CLIP model.")
    if not (folder / "config.json").is_file():
        raise InputError(f"clip_model: {folder} has no config.json; name the folder of a CLIP model.")
    if not any((folder / name).is_file() for name in _WEIGHTS):
        raise InputError(f"clip_model: {folder} has neither {' nor '.join(_WEIGHTS)}.")
    said = _json(folder / "config.json")
    values = said.get("vision_config", said)
    if said.get("model_type") not in ("clip", "clip_vision_model") or not isinstance(values, dict):
        kind = str(said.get("model_type"))[:60]
        raise InputError(
            f"clip_model: {folder} holds a model of kind {kind!r}, which does not look at pictures as CLIP does; "
            "name the folder of a CLIP model or of its image encoder."
        )
    try:
        return CLIPVisionConfig(**{"projection_dim": said.get("projection_dim", 512), **values})
    except (TypeError, ValueError) as error:
        raise InputError(f"clip_model: {folder / 'config.json'} cannot be used ({error}).") from None


def _read_weights(folder: Path) -> dict[str, Tensor]:
    def wanted(name: str) -> bool:
        return name.startswith(_VISION) or name == _TEXT_PROJECTION

    file = next(folder / name for name in _WEIGHTS if (folder / name).is_file())
    if file.suffix == ".bin":
        return pickles.load_tensors(file, wanted)
    return safetensors_io.load(file, wanted=wanted)[0]


def _look(folder: Path, side: int) -> Look:
    file = folder / "preprocessor_config.json"
    said: Mapping[str, Any] = _json(file) if file.is_file() else {}
    mean, std = said.get("image_mean", _MEAN), said.get("image_std", _STD)
    try:
        mean, std = tuple(map(float, mean)), tuple(map(float, std))
    except (TypeError, ValueError):
        mean, std = (), ()
    if len(mean) != 3 or len(std) != 3 or not all(std):
        raise InputError(f"clip_model: image_mean and image_std in {file} have to be three numbers each.")
    return Look(side, mean, std)


def load_clip_vision(folder: Path | str, device: torch.device | str = "cpu") -> ClipVision:
    """The image half of a CLIP folder, in float32.

    Raises:
        InputError: see `read_config`; or its weights are damaged, missing, or of another shape than it says.
    """
    folder = Path(folder)
    config = read_config(folder)
    weights = _read_weights(folder)
    projection = weights.pop(_TEXT_PROJECTION, None)
    with torch.device("meta"):
        model = CLIPVisionModelWithProjection(config)
    # Older files also hold the positions' numbers, which are none of the weights.
    weights = {name: value.float() for name, value in weights.items() if not name.endswith("position_ids")}
    try:
        model.load_state_dict(weights, strict=True, assign=True)
    except RuntimeError as error:
        why = str(error).splitlines()[-1].strip()
        raise InputError(f"clip_model: the weights in {folder} do not fit its config.json ({why}).") from None
    number_positions(model)
    model.to(device).eval().requires_grad_(False)
    text = None if projection is None or projection.dim() != 2 else projection.float()
    return ClipVision(folder, model, _look(folder, config.image_size), config.projection_dim, text)
