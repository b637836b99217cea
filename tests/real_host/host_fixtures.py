"""The WebUI that is tested, whichever it is, with this extension and without: what tests for all of them draw with."""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from kinds import KINDS, write
from patcher_fixtures import THEIRS, Drawing
from server import PROMPT

from trainers.formats import safetensors_io

_TOKENS = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"
_HASHES = re.compile(r'Lora hashes: ("[^"]*"|[^,]*), ')
READS = {"a1111": tuple(KINDS), "forge": THEIRS, "reforge": THEIRS}
"""What each WebUI's own loader reads."""
HIRES = {"enable_hr": True, "hr_upscaler": "Latent", "denoising_strength": 0.6, "hr_scale": 2}
_TILES = {"hypertile_enable_unet": True, "hypertile_max_tile_unet": 128}
MERGED = {"on": {"settings": {"token_merging_ratio": 0.6}}, "off": {}}
TILES = {
    "a1111": {"on": {"settings": _TILES}, "off": {"settings": {**_TILES, "hypertile_enable_unet": False}}},
    "reforge": {"on": {"alwayson_scripts": {"HyperTile Integrated": {"args": [True, 128, 1, 0, False]}}}, "off": {}},
}
"""Requests in which self-attention sees tiles instead of whole pictures, and without; Forge has no such thing."""
MORE_HIRES = {"forge": {"hr_cfg": 5, "hr_additional_modules": ["Use same choices"]}}


@dataclass
class Hosts:
    """The WebUI with this extension and without.

    Attributes:
        kind: "a1111", "forge" or "reforge".
        ours, alone: draw with the one and with the other.
        folders: where test files lie; state: the checkpoint's tensors.
    """

    kind: str
    folder: Path
    ours: Drawing
    alone: Drawing
    folders: dict[str, Path]
    state: dict[str, torch.Tensor]

    @property
    def width(self) -> int:
        """Of the token embeddings."""
        return self.state[_TOKENS].shape[1]

    @property
    def reads(self) -> tuple[str, ...]:
        """The kinds that the WebUI's own loader reads."""
        return READS[self.kind]

    @property
    def writes_ti_hashes(self) -> bool:
        """Whether the WebUI writes hashes of embeddings into the infotext: reForge does not, with us or alone."""
        return self.kind != "reforge"

    @property
    def hires(self) -> dict:
        """A request's settings for a hires pass."""
        return {**HIRES, **MORE_HIRES.get(self.kind, {})}

    def lora(self, name: str, **more) -> Path:
        """A LoRA of this name."""
        return write(self.folders["lora"] / f"{name}.safetensors", "lora", self.state, **more)

    def embedding(self, name: str, width: int, seed: int = 3) -> Path:
        """An embedding of this name, of two vectors."""
        size = float(self.state[_TOKENS].std())
        vectors = torch.randn(2, width, generator=torch.Generator().manual_seed(seed)) * size
        path = self.folders["embedding"] / f"{name}.safetensors"
        safetensors_io.save(path, {"emb_params": vectors}, {})
        os.utime(self.folders["embedding"].parent)  # A1111 alone looks for new ones only when this changed
        return path

    def model(self) -> dict:
        """What a neighbour sees of the model: its weights' checksum, hooks, and who answers to tags."""
        self.ours()  # Forge loads its model for the first picture
        return self.ours.server.get("/neighbour/model")

    @contextlib.contextmanager
    def given_back(self):
        """The tags are the WebUI's own loader's; what is drawn meanwhile is not taken for ours later."""
        self.ours.server.post("/sdapi/v1/options", {"athanor_lora": False})
        try:
            with self.ours.forgotten():
                yield
        finally:
            self.ours.server.post("/sdapi/v1/options", {"athanor_lora": True})


@pytest.fixture(scope="module")
def hosts(request, which_webui, webui):
    """After a file's tests a picture without tags is the WebUI's own again."""
    names = ("servers", "a1111_folders", "state")
    if which_webui != "a1111":
        names = ("patcher_servers", "patcher_folders", "patcher_state")
    servers, folders, state = (request.getfixturevalue(name) for name in names)
    pair = servers if which_webui != "a1111" else [Drawing(server) for server in servers]
    made = Hosts(which_webui, webui, *pair, folders, state)
    plain = made.alone()  # now, as tests may change what the WebUI alone draws
    yield made
    assert made.ours(fresh=True).away_from(plain) == 0


def tag(kind: str, weight: float = 0.7, more: str = "") -> str:
    """A prompt with one adapter of this kind."""
    return f"{PROMPT} <lora:k_{kind}:{weight}{more}>"


def without_hashes(infotext: str) -> str:
    """Forge and reForge write no hashes where they make none; ours are always written."""
    return _HASHES.sub("", infotext)
