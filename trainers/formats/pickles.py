"""Reading pickles (.ckpt, .pt, .bin) without running any code in them.

Python's pickle is a small program that can call anything. This reader interprets the same format but knows only what
a file of tensors needs: tensors, their storages, plain containers. A file that names anything else is refused.

Layout of torch's zip format (torch >= 1.6): `<folder>/data.pkl` and one file per storage in `<folder>/data/`.
"""

from __future__ import annotations

import collections
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trainers.errors import InputError
from trainers.formats.safetensors_io import TensorInfo, check_file

_STORAGES = {
    "DoubleStorage": ("F64", torch.float64),
    "FloatStorage": ("F32", torch.float32),
    "HalfStorage": ("F16", torch.float16),
    "BFloat16Storage": ("BF16", torch.bfloat16),
    "LongStorage": ("I64", torch.int64),
    "IntStorage": ("I32", torch.int32),
    "ShortStorage": ("I16", torch.int16),
    "CharStorage": ("I8", torch.int8),
    "ByteStorage": ("U8", torch.uint8),
    "BoolStorage": ("BOOL", torch.bool),
    "UntypedStorage": ("U8", torch.uint8),
}
# Training programs leave their bookkeeping beside the weights. Objects of these packages are read as empty shells.
_SHELLS = ("pytorch_lightning.", "lightning.", "lightning_fabric.", "numpy.core.multiarray", "numpy._core.multiarray")
_SHELL_NAMES = {("numpy", "dtype"), ("_codecs", "encode"), ("torch", "device"), ("torch", "Size")}
_DEEPEST = 16
_MAX_PICKLE = 256 * 1024 * 1024


class _Shell:
    """Stands for an object nobody needs: accepts everything, does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class _Refused(Exception):
    """The pickle names something a file of weights does not need."""


class _ParameterDict(dict):
    """torch's ParameterDict as a dict (old textual inversion files keep their vectors in one)."""

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.update(state.get("_parameters") or state.get("_keys") or {})


class _Reader(pickle.Unpickler):
    """An unpickler that knows tensors and plain containers only.

    Args:
        make: called with (storage, offset, shape, stride) for every tensor.
        storage: called with the persistent id of a storage.
    """

    def __init__(self, file: Any, make: Callable[..., Any], storage: Callable[[tuple], Any]) -> None:
        super().__init__(file, encoding="utf-8")
        self._make = make
        self._storage = storage

    def find_class(self, module: str, name: str) -> Any:
        known = {
            ("collections", "OrderedDict"): collections.OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): lambda s, offset, size, stride, *_: self._make(
                s, offset, tuple(size), tuple(stride)
            ),
            ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
            ("torch.nn.modules.container", "ParameterDict"): _ParameterDict,
            # A module's state (a ParameterDict is one) always holds an empty set.
            ("__builtin__", "set"): set,
            ("builtins", "set"): set,
        }
        if (module, name) in known:
            return known[module, name]
        if module in ("torch", "torch.storage") and name in _STORAGES:
            return _STORAGES[name]
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if module.startswith(_SHELLS) or (module, name) in _SHELL_NAMES:
            return _Shell
        raise _Refused(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage":
            raise _Refused("a reference")
        return self._storage(pid)


def is_pickle(path: Path | str) -> bool:
    """Whether a file looks like one that torch.save wrote (zip, or the older plain pickle)."""
    with open(path, "rb") as handle:
        start = handle.read(4)
    return start == b"PK\x03\x04" or start[:1] == b"\x80"


def _unreadable(path: Path, why: str) -> InputError:
    return InputError(f"{path}: this file cannot be read ({why}); copy or download it again.")


def _has_code(path: Path, what: str) -> InputError:
    return InputError(
        f"{path}: this file holds more than weights (it names {what[:80]}, which could run code) and is not read; "
        "use a .safetensors file."
    )


class _Zip:
    """torch's zip format, opened for reading."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = check_file(path)
        try:
            self.archive = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
            raise _unreadable(path, "it is damaged or cut off") from None
        pickles = [name for name in self.archive.namelist() if name.endswith("data.pkl")]
        if not pickles:
            self.archive.close()
            raise _unreadable(path, "no weights are in it")
        self.pickle_name = pickles[0]
        self.root = pickles[0][: -len("data.pkl")]

    def __enter__(self) -> _Zip:
        return self

    def __exit__(self, *exc: object) -> None:
        self.archive.close()

    def member(self, name: str, limit: int) -> zipfile.ZipInfo:
        try:
            info = self.archive.getinfo(name)
        except KeyError:
            raise _unreadable(self.path, "a part of it is missing") from None
        if info.file_size > limit:
            raise _unreadable(self.path, "a part of it claims an impossible size")
        return info

    def read(self, make: Callable[..., Any], storage: Callable[[tuple], Any]) -> Any:
        info = self.member(self.pickle_name, min(_MAX_PICKLE, 20 * self.size))
        try:
            with self.archive.open(info) as file:
                return _Reader(file, make, storage).load()
        except _Refused as refused:
            raise _has_code(self.path, str(refused)) from None
        except InputError:
            raise
        except MemoryError:
            # Python takes the memory for a text of the length that a pickle states before it looks for the text.
            raise _unreadable(self.path, "it asks for more memory than there is") from None
        except Exception:
            # A hostile pickle can fail in any way at all; whichever it was, the file is not one of ours to read.
            raise _unreadable(self.path, "it is damaged") from None


def _index_tensor(storage: tuple, offset: int, shape: tuple, stride: tuple) -> TensorInfo:
    name, _ = storage
    if not all(isinstance(side, int) and 0 <= side < 2**40 for side in shape):
        raise ValueError("impossible shape")
    return TensorInfo(name, shape)


def _state_dict(content: Any) -> dict[str, Any]:
    """The table of tensors: under `state_dict` where a training program wrapped it."""
    for _ in range(_DEEPEST):  # a hostile table can contain itself
        if not (isinstance(content, dict) and isinstance(content.get("state_dict"), dict)):
            break
        content = content["state_dict"]
    return content if isinstance(content, dict) else {}


def read_content_index(path: Path | str) -> Any:
    """The pickle's content with every tensor replaced by its `TensorInfo`; no weights are read."""
    path = Path(path)
    if not _is_zip(path):
        return _described(_load_old(path))
    with _Zip(path) as archive:
        return archive.read(_index_tensor, lambda pid: pid[1])


def read_index(path: Path | str) -> dict[str, TensorInfo]:
    """Names and shapes of the tensors of a checkpoint, found without reading the weights."""
    table = _state_dict(read_content_index(path))
    return {str(name): info for name, info in table.items() if isinstance(info, TensorInfo)}


@dataclass(frozen=True)
class _Stored:
    """A tensor that is still in the file."""

    pid: tuple
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class _Storages:
    """Reads storages when a tensor of theirs is wanted, each once."""

    def __init__(self, archive: _Zip) -> None:
        self._archive = archive
        self._read: dict[str, torch.Tensor] = {}

    def _raw(self, key: str) -> torch.Tensor:
        if key not in self._read:
            info = self._archive.member(f"{self._archive.root}data/{key}", self._archive.size)
            raw = bytearray(info.file_size)
            with self._archive.archive.open(info) as file:
                _fill(raw, file)
            self._read[key] = torch.frombuffer(raw, dtype=torch.uint8) if raw else torch.empty(0, dtype=torch.uint8)
        return self._read[key]

    def tensor(self, stored: _Stored) -> torch.Tensor:
        try:
            (_, dtype), key = stored.pid[1], str(stored.pid[2])
            return torch.as_strided(self._raw(key).view(dtype), stored.shape, stored.stride, stored.offset)
        except (InputError, MemoryError):
            raise
        except Exception:
            # Impossible shapes, missing ends, wrong checksums: whichever it was, the file is damaged.
            raise _unreadable(self._archive.path, "it is damaged") from None

    def filled(self, content: Any, depth: int = 0) -> Any:
        """The content with every stored tensor read."""
        if isinstance(content, _Stored):
            return self.tensor(content)
        if depth > _DEEPEST:
            raise _unreadable(self._archive.path, "it is nested too deeply")
        if isinstance(content, dict):
            return {key: self.filled(value, depth + 1) for key, value in content.items()}
        if isinstance(content, (list, tuple)):
            return type(content)([self.filled(value, depth + 1) for value in content])
        return content


def _fill(raw: bytearray, file: Any) -> None:
    view = memoryview(raw)
    while view:
        count = file.readinto(view[: 1 << 24])
        if not count:
            raise EOFError("a storage is cut off")
        view = view[count:]


def load_content(path: Path | str) -> Any:
    """The pickle's whole content with real tensors (hypernetworks, embeddings).

    Raises:
        InputError: the file is damaged, or holds anything but tensors and plain containers.
    """
    path = Path(path)
    if not _is_zip(path):
        return _load_old(path)
    with _Zip(path) as archive:
        return _Storages(archive).filled(archive.read(_Stored, lambda pid: pid))


def load_tensors(path: Path | str, wanted: Callable[[str], bool] | None = None) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint by name; of a zip file only those that are wanted are read."""
    path = Path(path)

    def chosen(content: Any, kind: type) -> dict[str, Any]:
        table = {str(name): value for name, value in _state_dict(content).items() if isinstance(value, kind)}
        return {name: value for name, value in table.items() if wanted is None or wanted(name)}

    if not _is_zip(path):
        return chosen(_load_old(path), torch.Tensor)
    with _Zip(path) as archive:
        storages = _Storages(archive)
        stored = chosen(archive.read(_Stored, lambda pid: pid), _Stored)
        return {name: storages.tensor(one) for name, one in stored.items()}


def _is_zip(path: Path) -> bool:
    check_file(path)
    with open(path, "rb") as handle:
        return handle.read(4) == b"PK\x03\x04"


def _load_old(path: Path) -> Any:
    """The format of torch before 1.6, through torch's own weights-only reader."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = str(error)
        if "GLOBAL" in named or "Unsupported" in named:
            raise _has_code(path, "a function") from None
        raise _unreadable(path, "it is damaged") from None
    except MemoryError:
        raise
    except Exception:
        # torch's reader answers damaged files with many kinds of exception.
        raise _unreadable(path, "it is damaged or cut off") from None


def _described(content: Any, depth: int = 0) -> Any:
    if isinstance(content, torch.Tensor):
        names = {dtype: name for name, dtype in _STORAGES.values()}
        return TensorInfo(names.get(content.dtype, "F32"), tuple(content.shape))
    if isinstance(content, dict) and depth <= _DEEPEST:
        return {key: _described(value, depth + 1) for key, value in content.items()}
    if isinstance(content, (list, tuple)) and depth <= _DEEPEST:
        return [_described(value, depth + 1) for value in content]
    return content
