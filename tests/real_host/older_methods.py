"""Files of the older methods for a model that is known by its file: hypernetworks and aesthetic gradients."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from kinds import KINDS, copy_given, write

from trainers.formats import aesthetic, hypernetworks
from trainers.formats.aesthetic import Aesthetic
from trainers.formats.hypernetworks import Hypernetwork, Structure

NAME = "athanorolder"
_TOKENS = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"


def write_older(webui: Path, state: Mapping[str, torch.Tensor]) -> list[Path]:
    """One of each, random but strong enough to be seen; returns the files."""
    hyper, gradient = (webui / "models" / folder for folder in ("hypernetworks", "aesthetic_embeddings"))
    for folder in (hyper, gradient):
        folder.mkdir(exist_ok=True)
    drawn = torch.Generator().manual_seed(1)
    readers = (".attn1.to_k.weight", ".attn2.to_k.weight")
    widths = {tensor.shape[1] for name, tensor in state.items() if name.endswith(readers)}
    structure, pairs = Structure((1, 2, 1), "relu", initialisation="XavierNormal"), {}
    for width in widths:
        pairs[width] = tuple(hypernetworks.build(width, structure) for _ in range(2))
        for network in pairs[width]:
            hypernetworks.initialise(network, structure, drawn)
    hypernetworks.save(hyper / f"{NAME}.pt", Hypernetwork(NAME, structure, pairs))
    projection = torch.randn(16, state[_TOKENS].shape[1], generator=drawn)
    one = Aesthetic(torch.randn(16, generator=drawn), projection)
    aesthetic.save(gradient / f"{NAME}.safetensors", one, {})
    return [hyper / f"{NAME}.pt", gradient / f"{NAME}.safetensors"]


@contextmanager
def files_of_every_kind(
    webui: Path, folders: dict[str, Path], state: Mapping[str, torch.Tensor], given: Path | None
) -> Iterator[dict[str, Path]]:
    """An adapter of every kind, what `make_files.py` made, and a file of each older method, as long as this lasts."""
    older = write_older(webui, state)
    copy_given(given, folders)
    yield {kind: write(folders["lora"] / f"k_{kind}.safetensors", kind, state) for kind in KINDS}
    for file in older:
        file.unlink()
