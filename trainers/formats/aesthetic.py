"""Files of aesthetic gradients: one mean CLIP image embedding, and what is needed to compare a text with it.

A `.pt` file, as the method's own programs write it, is one tensor [1, d]. Ours are safetensors: `aesthetic` [1, d], and
where the CLIP folder had it `text_projection` [d, width], which Stable Diffusion 1.x's own text encoder lacks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from trainers.errors import InputError
from trainers.formats import pickles, pt_files, safetensors_io
from trainers.formats.metadata import finish

EMBEDDING, PROJECTION = "aesthetic", "text_projection"
TAG_OPTIONS = "athanor.tag_options"
"""In the metadata, where its tag wants more than a weight: `:steps=10:lr=1e-3`."""
PICKLES = (".pt", ".bin")
ENDINGS = (".safetensors", *PICKLES)
_MAX_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True)
class Aesthetic:
    """What pictures look like, in CLIP's common space of pictures and texts.

    Attributes:
        embedding: [d] float32, the mean of the pictures' embeddings.
        projection: [d, width] float32, from a text encoder's pooled output to that space; None where the file has none.
    """

    embedding: Tensor = field(repr=False)
    projection: Tensor | None = field(default=None, repr=False)

    @property
    def width(self) -> int:
        """Of the common space."""
        return self.embedding.shape[0]


def save(path: Path, one: Aesthetic, metadata: Mapping[str, str]) -> None:
    """Write our own form, whole or not at all. The projection, frozen in any case, is kept in fp16."""
    tensors = {EMBEDDING: one.embedding[None].float().contiguous()}
    if one.projection is not None:
        tensors[PROJECTION] = one.projection.half().contiguous()
    safetensors_io.save(path, tensors, finish(tensors, metadata))


def save_pt(path: Path, one: Aesthetic) -> None:
    """Write the form that the method's own programs read: one tensor [1, d]."""
    pt_files.write(path, pt_files.to_bytes(one.embedding[None].float().contiguous()))


def read(path: Path | str) -> Aesthetic:
    """Either form; one-dimensional tensors, and files with one tensor of any name, are taken as well.

    Raises:
        InputError: one sentence that names the file.
    """
    path = Path(path)
    if path.is_file() and path.stat().st_size > _MAX_BYTES:
        raise InputError(f"{path}: this file is too large for an aesthetic gradient; is it a checkpoint?")
    if path.suffix.lower() in PICKLES:
        content = pickles.load_content(path)
        tensors = {EMBEDDING: content} if isinstance(content, Tensor) else content
    else:
        tensors = safetensors_io.load(path)[0]
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise InputError(f"{path}: this is no aesthetic gradient, which is one vector from CLIP.")
    if len(tensors) == 1 and PROJECTION not in tensors:
        tensors = {EMBEDDING: next(iter(tensors.values()))}
    return _checked(path, tensors)


def tag_options(path: Path) -> str:
    """What the file says should follow the weight in its tag; empty where it says nothing that a tag can have."""
    if path.suffix.lower() != ".safetensors":
        return ""
    try:
        said = safetensors_io.read_header(path).metadata.get(TAG_OPTIONS, "")
    except (InputError, OSError):
        return ""
    return said if re.fullmatch(r"(:(steps|lr|slerp)=[0-9.e-]{1,12}){0,3}", said) else ""


def _checked(path: Path, tensors: Mapping[str, Tensor]) -> Aesthetic:
    vector, projection = tensors.get(EMBEDDING), tensors.get(PROJECTION)
    if vector is None or not vector.is_floating_point() or vector.dim() not in (1, 2) or not vector.numel():
        raise InputError(f"{path}: this is no aesthetic gradient, which is one vector from CLIP.")
    if vector.dim() == 2 and vector.shape[0] != 1:
        raise InputError(f"{path}: holds {vector.shape[0]} vectors, an aesthetic gradient has one; is it an embedding?")
    vector = vector.detach().reshape(-1).to("cpu", torch.float32)
    if not bool(torch.isfinite(vector).all()) or not bool(vector.any()):
        raise InputError(f"{path}: this aesthetic gradient is zero or not finite; make it again.")
    if projection is not None:
        if projection.dim() != 2 or projection.shape[0] != vector.shape[0] or not bool(projection.isfinite().all()):
            raise InputError(f"{path}: its text_projection does not fit its embedding; make it again.")
        projection = projection.detach().to("cpu", torch.float32)
    return Aesthetic(vector, projection)
