"""The cache folder: prepared pictures and text embeddings, written atomically, checked when read.

    <root>/README.txt                     says that the folder may be deleted
    <root>/index.json                     what is known about files by path (see `trainers.data.index`)
    <root>/latents/<settings>/<key>.safetensors
    <root>/text/<settings>/<key>.safetensors

`<settings>` is a hash of the cache key (family, autoencoder or text encoder, dtype), so one family's entries are never
read for another. Every entry carries a digest of its own data; one that does not agree is made again.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from trainers.data.walk import CACHE_FOLDER
from trainers.errors import InputError

_VERSION = "1"
_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
_README = "Prepared pictures and texts, so that the next training starts at once. This folder can be deleted.\n"


def digest(*parts: object) -> str:
    """A file name (40 hex digits) that depends on all parts."""
    text = "\x1f".join(map(str, parts))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:40]


def write_atomically(path: Path, data: bytes) -> None:
    """The whole file or nothing under `path`; `InputError` when the disk is full."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        if error.errno in _FULL:
            raise InputError(
                f"The disk that holds the cache {path.parent} is full; "
                "free some space, or set cache_dir to another disk."
            ) from None
        raise InputError(
            f"The cache {path.parent} cannot be written ({error.strerror or error}); set cache_dir to another folder."
        ) from None


def cache_places(wanted: Path | str | None, data: Path, run_folder: Path | str | None) -> list[Path]:
    """The folders that may hold the cache, the preferred one first: the option cache_dir alone, or beside the data
    and in the run folder."""
    if wanted:
        return [Path(wanted)]
    beside = (data if data.is_dir() else data.parent) / CACHE_FOLDER
    return [beside, Path(run_folder) / "cache" if run_folder else Path(tempfile.gettempdir()) / "athanor-cache"]


def cache_root(wanted: Path | str | None, data: Path, run_folder: Path | str | None, notes: list[str]) -> Path:
    """The first of `cache_places` that can be written; made if it is not there.

    A `wanted` folder that cannot be written is an `InputError`; a read-only data folder is not.
    """
    places, problems = cache_places(wanted, data, run_folder), []
    for place in places:
        problem = _unwritable(place)
        if problem is None:
            if problems:
                notes.append(
                    f"{places[0]} cannot be written ({problems[0]}), so prepared pictures are kept in {place}."
                )
            return place
        problems.append(problem)
    if wanted:
        raise InputError(f"cache_dir: {wanted} cannot be written ({problems[0]}); name another folder.")
    tried = " nor ".join(f"{place} ({problem})" for place, problem in zip(places, problems, strict=True))
    raise InputError(f"Neither {tried} can be written; set cache_dir to a folder that can.")


def _unwritable(folder: Path) -> str | None:
    """Why no file can be written in `folder` (which is made); None when it can."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        readme = folder / "README.txt"
        with tempfile.TemporaryFile(dir=folder):
            pass
        if not readme.exists():
            readme.write_text(_README, encoding="utf-8")
    except OSError as error:
        if error.errno in _FULL:
            raise InputError(f"The disk that holds {folder} is full; free some space, or set cache_dir.") from None
        return error.strerror or str(error)
    return None


def _parts(data: bytes) -> tuple[dict[str, str], memoryview]:
    """(metadata, the bytes after the header) of a safetensors file."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    return header.get("__metadata__", {}), memoryview(data)[8 + length :]


def _checksum(body: memoryview) -> str:
    return hashlib.blake2b(body, digest_size=16).hexdigest()


class Entries:
    """Files of tensors in one folder, one per key."""

    def __init__(self, folder: Path, cache_key: str) -> None:
        self.folder, self._settings = folder / digest(_VERSION, cache_key)[:16], f"{_VERSION} {cache_key}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"The cache {self.folder} cannot be made ({error.strerror or error}).") from None

    def path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"

    def known(self) -> dict[str, int]:
        """{key: file size} of all entries, from one listing of the folder."""
        with os.scandir(self.folder) as entries:
            return {
                entry.name.removesuffix(".safetensors"): entry.stat().st_size
                for entry in entries
                if entry.name.endswith(".safetensors")
            }

    def write(self, key: str, tensors: Mapping[str, torch.Tensor]) -> None:
        tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        metadata = {"settings": self._settings}
        metadata["checksum"] = _checksum(_parts(save(tensors, metadata))[1])
        write_atomically(self.path(key), save(tensors, metadata))

    def read(self, key: str) -> dict[str, torch.Tensor] | None:
        """The entry's tensors, in memory of their own; None when it is missing, damaged, or of other settings."""
        try:
            data = self.path(key).read_bytes()
            metadata, body = _parts(data)
            if metadata.get("settings") != self._settings or metadata.get("checksum") != _checksum(body):
                return None
            return load(data)
        except (OSError, SafetensorError, ValueError, AttributeError):
            return None


class _Texts(Mapping[str, dict[str, torch.Tensor]]):
    """{text: tensors}, in memory up to a bound and from disk beyond."""

    def __init__(self, entries: Entries, keys: dict[str, str], limit: int) -> None:
        self._entries, self._keys, self._room = entries, keys, limit
        self._held: dict[str, dict[str, torch.Tensor]] = {}

    def hold(self, text: str) -> bool:
        """Read the entry and keep it while there is room; False when it is damaged."""
        tensors = self._entries.read(self._keys[text])
        if tensors is None:
            return False
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        if size <= self._room:
            self._room -= size
            self._held[text] = tensors
        return True

    def __getitem__(self, text: str) -> dict[str, torch.Tensor]:
        if text in self._held:
            return self._held[text]
        key = self._keys[text]
        tensors = self._entries.read(key)
        if tensors is None:
            raise InputError(
                f"{self._entries.path(key)}: this cached text was damaged or removed; start the run again."
            )
        return tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)


class TextCache:
    """Text embeddings in `folder`, keyed by the text and `cache_key` (family, encoder's hash, clip skip, dtype)."""

    def __init__(self, folder: Path | str, cache_key: str, memory_limit: int = 1 << 30) -> None:
        self._entries, self._limit = Entries(Path(folder), cache_key), memory_limit

    def get(
        self,
        texts: Iterable[str],
        encode: Callable[[list[str]], list[Mapping[str, torch.Tensor | None]]],
        batch_size: int = 16,
        report: Callable[[int, int, str], None] | None = None,
    ) -> Mapping[str, dict[str, torch.Tensor]]:
        """{text: {name: tensor}} for all `texts`; those not cached are given to `encode` in batches and kept.

        `encode` returns one mapping per text; None values are left out. Beyond `memory_limit` bytes the mapping reads
        from disk at each access.
        """
        keys = {text: digest(text) for text in sorted(set(texts))}
        result = _Texts(self._entries, keys, self._limit)
        known = self._entries.known()
        missing = [text for text, key in keys.items() if key not in known or not result.hold(text)]
        for start in range(0, len(missing), batch_size):
            batch = missing[start : start + batch_size]
            with torch.no_grad():
                made = encode(batch)
            for text, mapping in zip(batch, made, strict=True):
                tensors = {name: value for name, value in mapping.items() if value is not None}
                self._entries.write(keys[text], tensors)
            del made
            if report:
                report(min(start + batch_size, len(missing)), len(missing), "texts")
        # Held only now: small blocks that stay, made between the encoder's large ones, would leave memory in shreds.
        for text in missing:
            result.hold(text)
        return result
