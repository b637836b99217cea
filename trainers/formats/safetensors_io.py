"""Reading and writing safetensors files.

Reading looks at the header alone first and believes nothing in it: sizes are checked against the file before any
memory is taken. Writing is byte for byte reproducible (sorted header) and atomic (the final name never holds half a
file).

Format: 8 bytes little-endian header length, a JSON header, the tensors' bytes without gaps.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import struct
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import torch

from trainers.errors import InputError

MAX_HEADER = 100 * 1024 * 1024  # the limit of the reference implementation

_DTYPES: dict[str, tuple[str, int]] = {
    "F64": ("float64", 8),
    "I64": ("int64", 8),
    "U64": ("uint64", 8),
    "C64": ("complex64", 8),
    "F32": ("float32", 4),
    "I32": ("int32", 4),
    "U32": ("uint32", 4),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "I16": ("int16", 2),
    "U16": ("uint16", 2),
    "I8": ("int8", 1),
    "U8": ("uint8", 1),
    "BOOL": ("bool", 1),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E5M2": ("float8_e5m2", 1),
    "F8_E4M3FNUZ": ("float8_e4m3fnuz", 1),
    "F8_E5M2FNUZ": ("float8_e5m2fnuz", 1),
    "F8_E8M0": ("float8_e8m0fnu", 1),
}
# Older torch lacks some of these; a file that uses them is then refused when it is loaded, not when it is looked at.
_TO_TORCH = {name: getattr(torch, attribute, None) for name, (attribute, _) in _DTYPES.items()}
_FROM_TORCH = {dtype: name for name, dtype in _TO_TORCH.items() if dtype is not None}


@dataclass(frozen=True)
class TensorInfo:
    """What a header says of one tensor; `begin` and `end` are bytes after the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int = 0
    end: int = 0

    @property
    def numel(self) -> int:
        count = 1
        for side in self.shape:
            count *= side
        return count

    @property
    def nbytes(self) -> int:
        return self.numel * _DTYPES[self.dtype][1] if self.dtype in _DTYPES else self.end - self.begin


@dataclass(frozen=True)
class Header:
    """A checked header: metadata, tensors by name, and where the data begins in the file."""

    metadata: dict[str, str]
    tensors: dict[str, TensorInfo] = field(repr=False)
    data_start: int = 0


def _damaged(path: Path, why: str) -> InputError:
    return InputError(f"{path}: this is not a whole safetensors file ({why}); copy or download it again.")


def check_file(path: Path) -> int:
    """Size of a regular file in bytes; `InputError` says why it is none (missing, a folder, a pipe, not readable)."""
    try:
        if path.is_dir():
            raise InputError(f"{path}: this is a folder, not a file.")
        if path.exists() and not path.is_file():
            raise InputError(f"{path}: this is not a regular file.")
        with open(path, "rb") as handle:
            return os.fstat(handle.fileno()).st_size
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file.") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: this file cannot be opened ({error}).") from None


def _no_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    names = dict(pairs)
    if len(names) != len(pairs):
        raise ValueError("a name occurs twice")
    return names


def _parse_json(path: Path, raw: bytes) -> dict:
    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=_no_duplicates)
    except (UnicodeDecodeError, ValueError, RecursionError):
        raise _damaged(path, "its header cannot be read") from None
    if not isinstance(header, dict):
        raise _damaged(path, "its header is not a table")
    return header


def _natural(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**62


def _tensor_info(path: Path, name: str, entry: object, size: int) -> TensorInfo:
    if not isinstance(entry, dict):
        raise _damaged(path, f"the entry {name[:80]!r} is not a tensor")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise _damaged(path, f"{name[:80]!r} has the unknown number format {str(dtype)[:20]!r}")
    if not isinstance(shape, list) or len(shape) > 64 or not all(map(_natural, shape)):
        raise _damaged(path, f"{name[:80]!r} has an impossible shape")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_natural, offsets)):
        raise _damaged(path, f"{name[:80]!r} has impossible offsets")
    info = TensorInfo(dtype, tuple(shape), *offsets)
    if info.end < info.begin or info.end > size:
        raise _damaged(path, f"{name[:80]!r} reaches beyond the end of the file")
    if info.end - info.begin != info.nbytes:
        raise _damaged(path, f"{name[:80]!r} does not have the size its shape asks for")
    return info


def _check_layout(path: Path, tensors: Mapping[str, TensorInfo], size: int) -> None:
    position = 0
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if info.begin != position:
            raise _damaged(path, f"{name[:80]!r} overlaps its neighbour or leaves a gap")
        position = info.end
    if position != size:
        raise _damaged(path, "its end does not fit its header")


def _metadata(path: Path, raw: object) -> dict[str, str]:
    if raw is None:
        return {}
    if not isinstance(raw, dict) or not all(isinstance(value, str) for value in raw.values()):
        raise _damaged(path, "its metadata are not texts")
    return dict(raw)


def read_header(path: Path | str) -> Header:
    """The checked header of a safetensors file, without reading its tensors.

    Raises:
        InputError: the file is missing, unreadable, truncated, or its header is impossible in any way.
    """
    path = Path(path)
    size = check_file(path)
    with open(path, "rb") as handle:
        start = handle.read(8)
        if len(start) < 8:
            raise _damaged(path, "it is empty or cut off")
        (length,) = struct.unpack("<Q", start)
        if length > MAX_HEADER or 8 + length > size or length < 2:
            raise _damaged(path, "its header does not fit into it")
        raw = handle.read(length)
    if len(raw) != length:
        raise _damaged(path, "it is cut off")
    entries = _parse_json(path, raw)
    metadata = _metadata(path, entries.pop("__metadata__", None))
    body = size - 8 - length
    tensors = {name: _tensor_info(path, name, entry, body) for name, entry in entries.items()}
    _check_layout(path, tensors, body)
    return Header(metadata, tensors, 8 + length)


def _view(storage: torch.UntypedStorage, info: TensorInfo, offset: int) -> torch.Tensor:
    flat = torch.empty(0, dtype=torch.uint8).set_(storage, offset, (info.end - info.begin,))
    return flat.view(_TO_TORCH[info.dtype]).reshape(info.shape)


def _checked_dtypes(path: Path, header: Header) -> None:
    for info in header.tensors.values():
        if _TO_TORCH[info.dtype] is None:
            raise InputError(f"{path}: this file needs a newer torch (it holds numbers in the format {info.dtype}).")


def load(
    path: Path | str,
    *,
    mapped: bool = False,
    wanted: Callable[[str], bool] | None = None,
    header: Header | None = None,
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """`(tensors, metadata)` of a safetensors file.

    Args:
        mapped: give tensors that lie in the file's memory mapping (copy on write): no time and no second copy for a
            large base. The file must then not be replaced while they live (Windows refuses to). Otherwise the tensors
            have memory of their own.
        wanted: which names to load; None means all.
        header: what `read_header` gave for this file, where it was read already.

    Raises:
        InputError: see `read_header`.
    """
    path = Path(path)
    header = header or read_header(path)
    _checked_dtypes(path, header)
    names = [name for name in header.tensors if wanted is None or wanted(name)]
    if not any(header.tensors[name].numel for name in names):
        return {name: _empty(header.tensors[name]) for name in names}, header.metadata
    storage = _map(path)
    tensors = {}
    for name in names:
        info = header.tensors[name]
        tensor = _empty(info) if not info.numel else _aligned_view(storage, info, header.data_start)
        tensors[name] = tensor if mapped else tensor.clone()
    return tensors, header.metadata


def _map(path: Path) -> torch.UntypedStorage:
    try:
        return torch.UntypedStorage.from_file(os.fspath(path), False, path.stat().st_size)
    except (OSError, RuntimeError) as error:
        raise InputError(f"{path}: this file cannot be read ({error}).") from error


def _empty(info: TensorInfo) -> torch.Tensor:
    return torch.empty(info.shape, dtype=_TO_TORCH[info.dtype])


def _aligned_view(storage: torch.UntypedStorage, info: TensorInfo, data_start: int) -> torch.Tensor:
    """A view into the mapping, or a copy where the writer left the tensor at an odd address."""
    offset = data_start + info.begin
    if offset % _DTYPES[info.dtype][1] == 0:
        return _view(storage, info, offset)
    flat = torch.empty(0, dtype=torch.uint8).set_(storage, offset, (info.end - info.begin,)).clone()
    return flat.view(_TO_TORCH[info.dtype]).reshape(info.shape)


# --- writing


def _ordered(tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """Wide number formats first, so that every tensor lies aligned; by name within a format."""
    return sorted(tensors, key=lambda name: (-tensors[name].element_size(), str(tensors[name].dtype), name))


def header_bytes(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> bytes:
    """Length and header for these tensors: sorted, padded to 8 bytes, the same bytes every time."""
    entries: dict[str, object] = {}
    if metadata:
        entries["__metadata__"] = {name: str(metadata[name]) for name in sorted(metadata)}
    position = 0
    for name in _ordered(tensors):
        tensor = tensors[name]
        size = tensor.numel() * tensor.element_size()
        entries[name] = {
            "dtype": _FROM_TORCH[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [position, position + size],
        }
        position += size
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def body_chunks(tensors: Mapping[str, torch.Tensor]) -> Iterator[memoryview]:
    """The bytes after the header, tensor by tensor."""
    for name in _ordered(tensors):
        tensor = tensors[name].detach().contiguous().cpu()
        if tensor.numel():
            yield memoryview(tensor.reshape(-1).view(torch.uint8).numpy())


def chunks(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> Iterator[bytes | memoryview]:
    """The whole file in pieces."""
    yield header_bytes(tensors, metadata)
    yield from body_chunks(tensors)


def _write_all(handle: BinaryIO, pieces: Iterator[bytes | memoryview]) -> None:
    for piece in pieces:
        handle.write(piece)
    handle.flush()
    os.fsync(handle.fileno())


def write_atomically(path: Path | str, pieces: Iterator[bytes | memoryview]) -> None:
    """Writes `pieces` under `path` so that the name holds the old file or the whole new one, never a part.

    Raises:
        InputError: the disk is full, or the folder cannot be written to; nothing is left behind.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name[:60]}.", suffix=".part", dir=path.parent)
        temporary = Path(name)
        with os.fdopen(descriptor, "wb") as handle:
            _write_all(handle, pieces)
        _readable_as_usual(temporary)
        os.replace(temporary, path)
        temporary = None
        _sync_folder(path.parent)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", None))
        why = "there is no room left on the disk" if full else str(error)
        raise InputError(f"{path}: this file could not be written ({why}).") from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink()


def _readable_as_usual(path: Path) -> None:
    """Temporary files are private to their owner; a result has the rights any new file has."""
    mask = os.umask(0)
    os.umask(mask)
    with contextlib.suppress(OSError):
        path.chmod(0o666 & ~mask)


def _sync_folder(folder: Path) -> None:
    """Makes the new name itself survive a power cut, where the system can (Windows cannot open folders)."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def save(path: Path | str, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Writes a safetensors file: equal tensors and metadata give equal bytes; see `write_atomically`."""
    write_atomically(path, chunks(tensors, metadata or {}))
