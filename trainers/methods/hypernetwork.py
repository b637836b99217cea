"""Hypernetworks, as A1111 has them: small networks before the keys and values of every attention layer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trainers.bases.detect import BaseInfo
from trainers.bases.loader import Base
from trainers.errors import InputError
from trainers.formats import hypernetworks
from trainers.formats.hypernetworks import Hypernetwork, Structure
from trainers.rng import generator
from trainers.spec import Job

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
READERS = (".to_k", ".to_v")
"""The layers whose input is changed; the first of a pair stands before the first of these."""


def trains_text(job: Job) -> bool:
    """Text encoders stay as they are."""
    return False


def structure_of(job: Job) -> Structure:
    """The networks' structure as the job describes it."""
    layers = tuple(float(value) for value in job.layer_structure)
    dropout = tuple(float(value) for value in job.layer_dropout)
    return Structure(
        layers, job.activation, job.activate_output, job.layer_norm, dropout if any(dropout) else (), job.initialisation
    )


def _widths(shapes: dict[str, tuple[int, ...]]) -> list[int]:
    return sorted({shape[1] for name, shape in shapes.items() if name.removesuffix(".weight").endswith(READERS)})


def count_parameters(info: BaseInfo, job: Job) -> int:
    """Number of values that the job will train, from the base's header."""
    total = 0
    with torch.device("meta"):
        for width in _widths(info.components["unet"].shapes):
            total += 2 * sum(p.numel() for p in hypernetworks.build(width, structure_of(job)).parameters())
    return total


class Networks:
    """The networks of one run, before the attention layers of the UNet."""

    trains_unet = True
    trains_text = False

    def __init__(self, base: Base, job: Job) -> None:
        self.job, self.structure = job, structure_of(job)
        self.active, self.strength = True, 1.0
        self.pairs: dict[int, nn.ModuleList] = {}
        device = next(base.unet.parameters()).device
        for name, layer in base.unet.named_modules():
            side = next((i for i, end in enumerate(READERS) if name.endswith(end)), None)
            if side is not None:
                self._place(layer, side, device)
        if job.init_from:
            self.start_from(Path(job.init_from))

    def _place(self, layer: nn.Module, side: int, device: torch.device) -> None:
        width = layer.in_features
        if width not in self.pairs:
            self.pairs[width] = nn.ModuleList(hypernetworks.build(width, self.structure) for _ in READERS)
            for number, network in enumerate(self.pairs[width]):
                draw = generator(self.job.seed, "initial weights", width, number)
                hypernetworks.initialise(network, self.structure, draw)
            self.pairs[width].to(device).train()
        network = self.pairs[width][side]

        def changed(module: nn.Module, args: tuple) -> tuple:
            if not self.active:
                return args
            x = args[0]
            change = network(x).to(x.dtype)
            return (x + (change if self.strength == 1 else change * self.strength), *args[1:])

        layer.register_forward_pre_hook(changed)

    def _named(self) -> Iterator[tuple[str, nn.Parameter]]:
        for width, pair in sorted(self.pairs.items()):
            for side, network in enumerate(pair):
                for name, parameter in network.named_parameters():
                    yield f"{width}.{side}.{name}", parameter

    def param_groups(self) -> list[dict[str, Any]]:
        return [{"name": "hypernetwork", "params": [p for _, p in self._named()], "lr": self.job.learning_rate}]

    def tensors(self) -> dict[str, torch.Tensor]:
        return dict(self._named())

    def constrain(self) -> None:
        """Nothing to keep within bounds."""

    @contextmanager
    def without(self) -> Iterator[None]:
        self.active = False
        try:
            yield
        finally:
            self.active = True

    @contextmanager
    def scaled(self, weight: float) -> Iterator[None]:
        """At another strength than 1, as `<hypernet:NAME:weight>` draws."""
        self.strength = weight
        try:
            yield
        finally:
            self.strength = 1.0

    @contextmanager
    def at_rest(self) -> Iterator[None]:
        for pair in self.pairs.values():
            pair.eval()
        try:
            yield
        finally:
            for pair in self.pairs.values():
                pair.train()

    def save(self, path: Path, metadata: dict[str, str]) -> None:
        pairs = {width: (pair[0], pair[1]) for width, pair in self.pairs.items()}
        short = metadata.get("ss_new_sd_model_hash", "")[:10] or None
        network = Hypernetwork(
            self.job.name, self.structure, pairs, int(metadata["ss_steps"]), metadata.get("ss_sd_model_name"),
            {"sd_checkpoint": short},
        )  # fmt: skip
        hypernetworks.save(path, network, DTYPES[self.job.save_dtype])

    save_snapshot = save

    def start_from(self, path: Path) -> None:
        """Take the weights of an existing hypernetwork of the same structure."""
        found = hypernetworks.read(path)
        for width, pair in self.pairs.items():
            try:
                for mine, theirs in zip(pair, found.pairs[width], strict=True):
                    mine.load_state_dict(theirs.state_dict())
            except (KeyError, RuntimeError):
                raise InputError(
                    f"init_from: {path} is built otherwise than this run at width {width}; set layer_structure, "
                    "activation, layer_norm and layer_dropout to the file's."
                ) from None


def setup(base: Base, job: Job) -> Networks:
    """Put networks before the loaded base's attention layers."""
    return Networks(base, job)
