"""Drawings as latents and token numbers, cached on disk in pieces so that training can start on the first ones."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor

from .drawings import TRAIN, caption, render, sample_scene
from .train_autoencoder import SCALING, build, to_tensor
from .words import tokens

PIECE = 4096
WORDINGS = 3  # captions per drawing


def load_autoencoder(work: Path) -> AutoencoderKL:
    """The trained autoencoder."""
    model = build()
    model.load_state_dict(load_file(work / "autoencoder.safetensors"))
    return model.eval().requires_grad_(False)


def drawing_with_wordings(index: int) -> tuple[np.ndarray, list[str]]:
    """Training drawing number `index` and several captions for it."""
    rng = np.random.default_rng([TRAIN, index])
    scene = sample_scene(rng, held_out=False)
    return render(scene, rng), [caption(scene, rng) for _ in range(WORDINGS)]


@torch.no_grad()
def write_piece(autoencoder: AutoencoderKL, path: Path, first: int) -> None:
    """Encode one piece's drawings and write it under its final name when complete."""
    latents, words = [], []
    for start in range(first, first + PIECE, 64):
        pictures, wordings = zip(*(drawing_with_wordings(i) for i in range(start, start + 64)), strict=True)
        with torch.autocast("cpu", torch.bfloat16):
            latents.append(autoencoder.encode(to_tensor(list(pictures))).latent_dist.mean.float() * SCALING)
        words += [line for lines in wordings for line in lines]
    numbers = tokens(words).view(PIECE, WORDINGS, -1).int()
    part = path.with_suffix(".part")
    save_file({"latents": torch.cat(latents).contiguous(), "tokens": numbers}, part)
    part.replace(path)


class LatentCache:
    """The pieces encoded so far. Several processes encode alternate pieces and wait for each other's.

    Drawings whose captions have a word of `emphasis` count three times.
    """

    def __init__(self, work: Path, rank: int = 0, count: int = 1, emphasis: list[str] | None = None) -> None:
        self.rank, self.count = rank, count
        self.folder = work / "latents"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.autoencoder = load_autoencoder(work)
        self.latents, self.tokens = torch.empty(0), torch.empty(0)
        self.pieces = 0
        plurals = [word + "s" for word in emphasis or ()]
        self.emphasis = tokens([*(emphasis or ()), *plurals])[:, 1].int() if emphasis else torch.empty(0)
        self.order = torch.empty(0, dtype=torch.long)

    def grow(self, pieces: int) -> None:
        """Load pieces up to this count, encoding those that are missing."""
        for number in range(self.pieces, pieces):
            path = self.folder / f"{number:03d}.safetensors"
            if number % self.count == self.rank and not path.exists():
                write_piece(self.autoencoder, path, number * PIECE)
        while self.pieces < pieces:
            path = self.folder / f"{self.pieces:03d}.safetensors"
            while not path.exists():
                time.sleep(0.5)
            self.add(load_file(path))

    def add(self, piece: dict[str, Tensor]) -> None:
        """Append one piece."""
        self.latents = torch.cat([self.latents, piece["latents"]]) if self.pieces else piece["latents"]
        self.tokens = torch.cat([self.tokens, piece["tokens"]]) if self.pieces else piece["tokens"]
        self.pieces += 1
        often = torch.isin(self.tokens.flatten(1), self.emphasis).any(1).nonzero()[:, 0]
        self.order = torch.cat([torch.arange(len(self.latents)), often, often])

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Random latents and one of each one's captions."""
        chosen = self.order[torch.randint(len(self.order), (size,), generator=generator)]
        wording = torch.randint(WORDINGS, (size,), generator=generator)
        return self.latents[chosen], self.tokens[chosen, wording].long()
