"""A small CLIP over the base's own drawings: its text half is the base's frozen text model and one learned matrix."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from trainers.bases.clip_vision import Look
from trainers.bases.loader import load_base

from .drawings import COLOURS, HELD_OUT, SIZE, Scene, draw, is_held_out
from .shapes import SHAPES
from .words import EOS, text_config, tokens

ASSETS = Path(__file__).resolve().parents[1]
BASE, FOLDER = ASSETS / "base" / "athanor-base.safetensors", ASSETS / "clip"
WIDTH = 64  # of the common space
LOOK = Look(SIZE)
MEAN, STD = (torch.tensor(values)[:, None, None] for values in (LOOK.mean, LOOK.std))


def vision_config() -> CLIPVisionConfig:
    """A vision transformer over 8x8 patches."""
    return CLIPVisionConfig(
        hidden_size=96,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=SIZE,
        patch_size=8,
        projection_dim=WIDTH,
        hidden_act="quick_gelu",
    )


def pixels(pictures: list[np.ndarray]) -> Tensor:
    """uint8 pictures (64, 64, 3) as the image half takes them, normalised: (pictures, 3, 64, 64)."""
    values = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255
    return (values - MEAN) / STD


class Clip(nn.Module):
    """The parts that learn."""

    def __init__(self) -> None:
        super().__init__()
        self.vision = CLIPVisionModelWithProjection(vision_config())
        self.text_projection = nn.Linear(text_config().hidden_size, WIDTH, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(10.0).log())

    def pictures(self, values: Tensor) -> Tensor:
        """Unit vectors (pictures, WIDTH)."""
        return nn.functional.normalize(self.vision(pixel_values=values).image_embeds.float(), dim=-1)

    def texts(self, pooled: Tensor) -> Tensor:
        """Unit vectors (texts, WIDTH) of what `TextHalf` gives."""
        return nn.functional.normalize(self.text_projection(pooled).float(), dim=-1)


class TextHalf:
    """The base's own text model, which only reads."""

    def __init__(self, base: Path = BASE) -> None:
        self.model = load_base(base, parts=("text",)).text_encoders[0].float().eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, captions: list[str]) -> Tensor:
        """Its output at the end of each text, (captions, 64): the text is read from left to right, so what comes after
        the end changes nothing and is cut off."""
        numbers = tokens(captions)
        ends = (numbers == EOS).int().argmax(1)
        hidden = self.model(numbers[:, : int(ends.max()) + 1])[0]
        return hidden[torch.arange(len(hidden)), ends].float()


def load_clip(folder: Path = FOLDER) -> Clip:
    """The exported one."""
    weights = {name: value.float() for name, value in load_file(folder / "model.safetensors").items()}
    clip = Clip().eval().requires_grad_(False)
    clip.text_projection.weight.copy_(weights.pop("text_projection.weight"))
    clip.vision.load_state_dict(weights)
    return clip


def held_out_rounds(count: int) -> list[list[tuple[np.ndarray, str, Scene]]]:
    """`count` sets of drawings in which every combination that is kept from training comes once, fully described."""
    combinations = sorted(combination for combination in product(SHAPES, COLOURS, COLOURS) if is_held_out(*combination))
    found: dict[tuple[str, ...], list] = {(s, c, b): [] for s, c, b in combinations if c != b}
    index = 0
    while any(len(drawings) < count for drawings in found.values()):
        picture, words, scene = draw(HELD_OUT, index, full=True)
        found[scene.shape, scene.colour, scene.background].append((picture, words, scene))
        index += 1
    return [[drawings[number] for drawings in found.values()] for number in range(count)]


@torch.no_grad()
def retrieval(clip: Clip, text: TextHalf, rounds: int = 3) -> dict[str, float | int]:
    """How often a caption finds its drawing among one of every held-out combination, and a drawing its caption."""
    right, back, total = 0, 0, 0
    for drawings in held_out_rounds(rounds):
        pictures = clip.pictures(pixels([picture for picture, _, _ in drawings]))
        near = clip.texts(text([words for _, words, _ in drawings])) @ pictures.T
        own = torch.arange(len(drawings))
        right += int((near.argmax(1) == own).sum())
        back += int((near.argmax(0) == own).sum())
        total += len(drawings)
    return {
        "among": total // rounds,
        "caption_finds_drawing": round(right / total, 4),
        "drawing_finds_caption": round(back / total, 4),
    }
