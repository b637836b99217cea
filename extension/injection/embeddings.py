"""Textual Inversion embeddings: reading every form of file, and a store that sees new and changed files by itself."""

from __future__ import annotations

import copy
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from extension.injection.adapter_file import Adapter, Stamp, stamp
from extension.injection.embedding_png import read_picture
from extension.listing import walk_files
from trainers.errors import InputError
from trainers.formats import pickles, safetensors_io

PICKLES = (".pt", ".bin")
PICTURES = (".png", ".webp", ".jxl", ".avif")
ENDINGS = (".safetensors", *PICKLES, *PICTURES)
_MAX_BYTES = 256 * 1024 * 1024
_SLOTS = {"clip_l": "text_encoder", "clip_g": "text_encoder_2"}
_FIRST_NAMES = ("emb_params", "emp_params", "*")
_CHUNK = 75  # tokens of one chunk of a prompt; an embedding has to fit into one


@dataclass(frozen=True)
class Embedding:
    """Vectors that stand for a name.

    Attributes:
        name: the word in a prompt.
        vectors: [n, width] by text encoder ("text_encoder", "text_encoder_2"), float32 on the CPU.
        source: the file it came from; `stamp` which content of it.
    """

    name: str
    vectors: Mapping[str, Tensor] = field(compare=False)
    source: Path | None = None
    stamp: Stamp | None = None
    step: int | None = None
    checkpoint: str | None = None

    @property
    def count(self) -> int:
        """How many tokens it takes."""
        return max(vectors.shape[0] for vectors in self.vectors.values())

    def problem(self, widths: Mapping[str, int]) -> str | None:
        """Why it cannot be used with text encoders of these widths, or None."""
        if set(self.vectors) != set(widths):
            return f'The embedding "{self.name}" is for {_described(self.vectors)}; this model has {_named(widths)}.'
        for encoder, width in widths.items():
            if self.vectors[encoder].shape[1] != width:
                return (
                    f'The embedding "{self.name}" is for {_described(self.vectors)}; this model has {_named(widths)}.'
                )
        if self.count > _CHUNK:
            return f'The embedding "{self.name}" has {self.count} vectors; a prompt has room for {_CHUNK} at a time.'
        return None


def _described(vectors: Mapping[str, Tensor]) -> str:
    return _named({encoder: value.shape[1] for encoder, value in vectors.items()})


def _named(widths: Mapping[str, int]) -> str:
    families = {(768,): "SD1", (1024,): "SD2", (768, 1280): "SDXL"}
    sizes = tuple(widths[encoder] for encoder in sorted(widths))
    known = families.get(sizes)
    text = " and ".join(map(str, sizes)) + " wide"
    return f"{known} ({text})" if known else f"vectors {text}"


def _matrix(name: str, value: Any) -> Tensor:
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.dim() not in (1, 2) or not value.numel():
        raise InputError(f'"{name}" holds something else than vectors.')
    matrix = value.detach().to("cpu", torch.float32)
    matrix = matrix[None] if matrix.dim() == 1 else matrix
    if not bool(torch.isfinite(matrix).all()):
        raise InputError(f'The embedding "{name}" holds numbers that are not finite; train or download it again.')
    return matrix.contiguous()


def from_tensors(name: str, tensors: Mapping[str, Any], **more: Any) -> Embedding:
    """An embedding from the tensors of a file: `clip_l` and `clip_g`, or one tensor of any name.

    Raises:
        InputError: there is none in it, or it is not clear which.
    """
    found = {key: value for key, value in tensors.items() if isinstance(value, Tensor)}
    if "clip_g" in found or "clip_l" in found:
        missing = [key for key in _SLOTS if key not in found]
        if missing:
            raise InputError(f'"{name}" has no {missing[0]}: an SDXL embedding needs clip_l and clip_g.')
        return Embedding(name, {slot: _matrix(name, found[key]) for key, slot in _SLOTS.items()}, **more)
    chosen = next((key for key in _FIRST_NAMES if key in found), None)
    if chosen is None and len(found) == 1:
        chosen = next(iter(found))
    if chosen is None:
        raise InputError(f'"{name}" holds {len(found)} tensors, not one embedding.')
    return Embedding(name, {"text_encoder": _matrix(name, found[chosen])}, **more)


def _from_content(name: str, content: Any, **more: Any) -> Embedding:
    """From what a `.pt` file holds: A1111's dict, or `{placeholder: tensor}` of diffusers."""
    if not isinstance(content, dict):
        raise InputError(f'"{name}" is not an embedding.')
    params = content.get("string_to_param")
    if isinstance(params, dict):
        step, checkpoint = content.get("step"), content.get("sd_checkpoint_name")
        more["step"] = step if isinstance(step, int) else None
        more["checkpoint"] = checkpoint if isinstance(checkpoint, str) else None
        return from_tensors(name, params, **more)
    return from_tensors(name, content, **more)


def read_embedding(path: Path | str) -> Embedding | None:
    """Reads a file of any form; None for a picture without an embedding in it.

    Raises:
        InputError: one sentence that names the file.
    """
    path = Path(path)
    ending, name = path.suffix.lower(), path.stem
    try:
        made = stamp(path)
    except OSError:
        raise InputError(f"{path}: there is no such file.") from None
    if ending not in PICTURES and made[2] > _MAX_BYTES:
        raise InputError(f"{path}: this file is too large for an embedding; is it a checkpoint?")
    more = {"source": path, "stamp": made}
    try:
        if ending in PICTURES:
            content = read_picture(path)
            if content is None:
                return None
            title = content.get("name") if isinstance(content, dict) else None
            return _from_content(title if isinstance(title, str) and title else name, content, **more)
        if ending in PICKLES:
            return _from_content(name, pickles.load_content(path), **more)
        return from_tensors(name, safetensors_io.load(path)[0], **more)
    except InputError as problem:
        text = str(problem)
        raise InputError(text if str(path) in text else f"{path}: {text}") from None


def bundled_embeddings(adapter: Adapter) -> list[Embedding]:
    """Embeddings that came inside an adapter's file."""
    tensors = adapter.bundled_tensors()
    return [from_tensors(name, parts, source=adapter.path, stamp=adapter.stamp) for name, parts in tensors.items()]


def shadowed_word(name: str, vocabulary: Container[str]) -> bool:
    """Whether the name is an ordinary word of the tokenizer, which it would take away from every prompt.

    Args:
        vocabulary: CLIP's, in which a whole word ends with `</w>`.
    """
    return f"{name.strip().lower()}</w>" in vocabulary


class EmbeddingStore:
    """Embeddings of some folders by name.

    Attributes:
        problems: `{file: sentence}` for files that could not be read, and for names that occur twice.
    """

    def __init__(self, folders: Iterable[Path | str]) -> None:
        self.folders = [Path(folder) for folder in folders]
        self.problems: dict[Path, str] = {}
        self._read: dict[Path, tuple[Stamp, Embedding | None, str]] = {}
        self._by_name: dict[str, Embedding] = {}

    def rescan(self) -> bool:
        """Looks for new, changed and removed files; True when anything is different."""
        before = {path: entry[0] for path, entry in self._read.items()}
        now: dict[Path, tuple[Stamp, Embedding | None, str]] = {}
        for _, path in walk_files(self.folders, ENDINGS):
            try:
                current = stamp(path)
            except OSError:
                continue  # gone since the folder was listed
            known = self._read.get(path)
            now[path] = known if known is not None and known[0] == current else self._look(path, current)
        self._read = now
        self._index()
        return before != {path: entry[0] for path, entry in now.items()}

    def _look(self, path: Path, current: Stamp) -> tuple[Stamp, Embedding | None, str]:
        try:
            return current, read_embedding(path), ""
        except InputError as problem:
            return current, None, str(problem)

    def _index(self) -> None:
        self._by_name, self.problems = {}, {}
        for path, (_, embedding, problem) in self._read.items():
            if problem:
                self.problems[path] = problem
            elif embedding is not None:
                first = self._by_name.setdefault(embedding.name.lower(), embedding)
                if first is not embedding:
                    self.problems[path] = f'{path}: {first.source} already has the name "{embedding.name}".'

    def get(self, name: str) -> Embedding | None:
        """The embedding of this name; as in prompts, upper and lower case are the same."""
        return self._by_name.get(name.lower())

    def showing(self, items: Iterable[Embedding]) -> EmbeddingStore:
        """The same embeddings, with these in the place of what has their names."""
        made = copy.copy(self)
        made._by_name = {**self._by_name, **{item.name.lower(): item for item in items}}
        return made

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted(embedding.name for embedding in self._by_name.values())

    def all(self) -> list[Embedding]:
        """All embeddings, by name."""
        return [self._by_name[name] for name in sorted(self._by_name)]

    def reports(self, widths: Mapping[str, int], vocabulary: Container[str] = ()) -> list[str]:
        """Sentences about everything that is wrong: unreadable, of another width, shadowing a word."""
        lines = list(self.problems.values())
        for embedding in self.all():
            problem = embedding.problem(widths)
            if problem:
                lines.append(problem)
            elif shadowed_word(embedding.name, vocabulary):
                lines.append(
                    f'The embedding "{embedding.name}" takes the place of the word; rename {embedding.source}.'
                )
        return lines
