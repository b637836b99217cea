"""The hashes by which WebUIs know adapters and checkpoints.

Source: the formulas that sd-scripts writes and A1111 and Forge read (FORMATS: hashes).
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch

from trainers.formats import safetensors_io

_SLICE_START, _SLICE_LENGTH = 0x100000, 0x10000
_PIECE = 1 << 20


def model_hash(tensors: Mapping[str, torch.Tensor]) -> str:
    """`sshs_model_hash`: sha256 (hex) of the file's bytes after its header; metadata do not matter."""
    return _sha256(safetensors_io.body_chunks(tensors))


def legacy_hash(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> str:
    """`sshs_legacy_hash`: 8 hex digits over 64 KiB at 1 MiB of the file as it would be with the ss_* metadata alone."""
    only_ss = {name: value for name, value in metadata.items() if name.startswith("ss_")}
    return _sha256(_cut(safetensors_io.chunks(tensors, only_ss), _SLICE_START, _SLICE_LENGTH))[:8]


def _cut(pieces: Iterable[bytes | memoryview], start: int, length: int) -> Iterator[bytes | memoryview]:
    """The bytes `start` to `start + length` of a stream."""
    position = 0
    for piece in pieces:
        first, last = max(start - position, 0), min(start + length - position, len(piece))
        if first < last:
            yield piece[first:last]
        position += len(piece)
        if position >= start + length:
            return


def _sha256(pieces: Iterable[bytes | memoryview]) -> str:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def _file_pieces(path: Path | str, start: int) -> Iterator[bytes]:
    with open(path, "rb") as handle:
        handle.seek(start)
        while piece := handle.read(_PIECE):
            yield piece


def file_sha256(path: Path | str) -> str:
    """`ss_new_sd_model_hash`: sha256 (hex) of a whole file."""
    return _sha256(_file_pieces(path, 0))


def file_body_sha256(path: Path | str) -> str:
    """sha256 (hex) of a safetensors file after its header: what `sshs_model_hash` should be."""
    with open(path, "rb") as handle:
        (length,) = struct.unpack("<Q", handle.read(8))
    return _sha256(_file_pieces(path, 8 + length))


def checkpoint_legacy_hash(path: Path | str) -> str:
    """`ss_sd_model_hash`: 8 hex digits over 64 KiB at 1 MiB of a checkpoint."""
    with open(path, "rb") as handle:
        handle.seek(_SLICE_START)
        return hashlib.sha256(handle.read(_SLICE_LENGTH)).hexdigest()[:8]
