"""Tensors of a base model wherever they lie: one safetensors file, one pickle, or the shards of a folder.

A source knows every tensor's name and shape from the headers and loads those that are asked for.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from trainers.errors import InputError
from trainers.formats import pickles, safetensors_io
from trainers.formats.safetensors_io import TensorInfo

PICKLE_ENDINGS = (".ckpt", ".pt", ".pth", ".bin")
Loader = Callable[[Callable[[str], bool]], dict[str, torch.Tensor]]


@dataclass
class Source:
    """Names and shapes, and a way to load them.

    Attributes:
        tensors: every tensor by its name in the file.
        metadata: header metadata (empty for pickles).
        load: loads the tensors whose names a function says yes to.
    """

    tensors: dict[str, TensorInfo]
    load: Loader
    metadata: dict[str, str] = field(default_factory=dict)

    def renamed(self, rename: Callable[[str], str | None]) -> Source:
        """The same tensors under other names; those for which `rename` gives None are left out."""
        names = {new: old for old in self.tensors if (new := rename(old)) is not None}
        tensors = {new: self.tensors[old] for new, old in names.items()}

        def load(wanted: Callable[[str], bool]) -> dict[str, torch.Tensor]:
            old_names = {old: new for new, old in names.items() if wanted(new)}
            return {old_names[old]: tensor for old, tensor in self.load(old_names.__contains__).items()}

        return Source(tensors, load, self.metadata)

    def under(self, prefix: str) -> Source:
        """The tensors whose names begin with `prefix`, without it."""
        return self.renamed(lambda name: name[len(prefix) :] if name.startswith(prefix) else None)


def open_file(path: Path) -> Source:
    """The tensors of one file; raises `InputError` for a damaged one or a pickle with code in it."""
    if path.suffix.lower() in PICKLE_ENDINGS or (path.suffix.lower() != ".safetensors" and pickles.is_pickle(path)):
        return Source(pickles.read_index(path), lambda wanted: pickles.load_tensors(path, wanted))
    header = safetensors_io.read_header(path)

    def load(wanted: Callable[[str], bool]) -> dict[str, torch.Tensor]:
        return safetensors_io.load(path, mapped=True, wanted=wanted, header=header)[0]

    return Source(header.tensors, load, header.metadata)


def _merged(sources: list[Source]) -> Source:
    tensors: dict[str, TensorInfo] = {}
    for source in sources:
        tensors.update(source.tensors)

    def load(wanted: Callable[[str], bool]) -> dict[str, torch.Tensor]:
        loaded: dict[str, torch.Tensor] = {}
        for source in sources:
            loaded.update(source.load(wanted))
        return loaded

    return Source(tensors, load)


def _shards(index: Path) -> list[Path]:
    try:
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        files = sorted({index.parent / Path(str(name)).name for name in names})
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        raise InputError(f"{index}: this list of files cannot be read; copy the model's folder again.") from None
    for file in files:
        if not file.is_file():
            raise InputError(f"{file}: this part of the model is missing; copy the model's folder again.")
    return files


def component_files(folder: Path) -> list[Path]:
    """The weight files of one component of a diffusers folder; safetensors and full precision first."""
    for ending in (".safetensors", ".bin"):
        for stem in ("diffusion_pytorch_model", "model", "pytorch_model"):
            for variant in ("", ".fp16", ".bf16", ".non_ema"):
                file = folder / f"{stem}{variant}{ending}"
                if file.is_file():
                    return [file]
                for index in (f"{stem}{ending}.index{variant}.json", f"{stem}{variant}{ending}.index.json"):
                    if (folder / index).is_file():
                        return _shards(folder / index)
    raise InputError(f"{folder}: no weights are in this folder; copy the model's folder again.")


def open_component(folder: Path) -> Source:
    """The tensors of one component of a diffusers folder."""
    sources = [open_file(file) for file in component_files(folder)]
    return sources[0] if len(sources) == 1 else _merged(sources)


def read_json(path: Path) -> Mapping:
    """A JSON table; empty where the file is missing, `InputError` where it is damaged."""
    if not path.is_file():
        return {}
    try:
        table = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        raise InputError(f"{path}: this file cannot be read; copy the model's folder again.") from None
    if not isinstance(table, dict):
        raise InputError(f"{path}: this file is not what it should be; copy the model's folder again.")
    return table
