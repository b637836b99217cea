"""An adapter's file: what is in it, by layer, without its tensors; they are read when a bank is built and not kept.

A file is known by (path, modification time, size), so one that was trained again under the same name is another file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainers.errors import InputError
from trainers.formats import pickles, safetensors_io
from trainers.formats.adapter_keys import recognise
from trainers.formats.families import FAMILIES
from trainers.formats.layer_names import layer_of, split_key
from trainers.formats.sites import Site

_BUNDLE = "bundle_emb."
_METADATA_KEY = "lora_adapter_metadata"

Stamp = tuple[str, int, int]


def stamp(path: Path) -> Stamp:
    """(path, modification time in ns, size): the identity of a file's content."""
    status = os.stat(path)
    return (str(path), status.st_mtime_ns, status.st_size)


@dataclass(frozen=True)
class Match:
    """An adapter's keys led to the layers of one family.

    Attributes:
        sites: `{site: {part: key}}`.
        unknown: keys of layers this family does not have, and of no known kind.
    """

    sites: dict[Site, dict[str, str]]
    unknown: tuple[str, ...]


@dataclass
class Adapter:
    """What a file holds.

    Attributes:
        path, stamp: which file, and which content.
        metadata: the header's texts.
        family: the family its keys name ("sd1", "sd2", "sdxl"), None where nothing fits.
        groups: `{(component, path with "_"): {part: key}}`.
        bundled: embeddings in the file: `{name: {tensor name: key}}`.
        unknown: keys that are no adapter's.
    """

    path: Path
    stamp: Stamp
    metadata: dict[str, str]
    family: str | None
    groups: dict[tuple[str, str], dict[str, str]]
    bundled: dict[str, dict[str, str]]
    unknown: tuple[str, ...]
    configs: dict[str, dict[str, Any]] = field(default_factory=dict, repr=False)
    _matches: dict[str, Match] = field(default_factory=dict, repr=False)

    @property
    def name(self) -> str:
        """The file's name without its ending."""
        return self.path.stem

    def match(self, family: str) -> Match:
        """Its keys on the layers of a family."""
        if family not in self._matches:
            self._matches[family] = _match(self, family)
        return self._matches[family]

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by key, in memory of their own.

        Raises:
            InputError: the file is gone, damaged, or another one than was looked at.
        """
        loaded = _load(self.path)
        if stamp(self.path) != self.stamp:
            raise InputError(f"{self.path}: this file was replaced while it was read; generate again.")
        return loaded

    def bundled_tensors(self) -> dict[str, dict[str, Tensor]]:
        """Embeddings that came in the file: `{name: {tensor name: [n, width]}}`."""
        if not self.bundled:
            return {}
        tensors = self.tensors()
        return {name: {part: tensors[key] for part, key in keys.items()} for name, keys in self.bundled.items()}

    def stated_alpha(self, site: Site, rank: int) -> float | None:
        """alpha of a file whose description stands in its header or beside it (diffusers, PEFT), else None."""
        config = self.configs.get(site.component) or self.configs.get("")
        return None if config is None else _alpha(config, site, rank, self.path)


def _is_pickle(path: Path) -> bool:
    return path.suffix.lower() in (".pt", ".bin", ".ckpt", ".pth")


def _load(path: Path) -> dict[str, Tensor]:
    return pickles.load_tensors(path) if _is_pickle(path) else safetensors_io.load(path)[0]


def _match(adapter: Adapter, family: str) -> Match:
    sites: dict[Site, dict[str, str]] = {}
    unknown = list(adapter.unknown)
    for (component, flat), parts in adapter.groups.items():
        site = layer_of(FAMILIES[family], component, flat)
        if site is None:
            unknown.extend(parts.values())
        else:
            sites.setdefault(site, {}).update(parts)
    return Match(sites, tuple(unknown))


def _json_table(path: Path, text: str, what: str) -> dict[str, Any]:
    try:
        table = json.loads(text)
    except (ValueError, RecursionError):
        table = None
    if not isinstance(table, dict):
        raise InputError(f"{path}: {what} cannot be read; copy or download the file again.")
    return table


def _configs(path: Path, metadata: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """PEFT's description by component: in the header as diffusers writes it, or in the file PEFT puts beside."""
    configs: dict[str, dict[str, Any]] = {}
    if _METADATA_KEY in metadata:
        table = _json_table(path, metadata[_METADATA_KEY], f"its header entry {_METADATA_KEY}")
        for key, value in table.items():
            component, _, name = key.partition(".")
            configs.setdefault(component, {})[name] = value
    beside = path.parent / "adapter_config.json"
    if path.name.startswith("adapter_model.") and beside.is_file():
        configs[""] = _json_table(beside, beside.read_text(encoding="utf-8", errors="replace"), "its description")
    return configs


def _alpha(config: Mapping[str, Any], site: Site, rank: int, path: Path) -> float:
    """alpha of one layer by PEFT's rules: patterns match the end of the path; rsLoRA divides by sqrt(r)."""
    try:
        alpha = float(config.get("lora_alpha") or config.get("alpha") or rank)
        for pattern, value in dict(config.get("alpha_pattern") or {}).items():
            if site.path == pattern or site.path.endswith(f".{pattern}"):
                alpha = float(value)
    except (TypeError, ValueError):
        raise InputError(f"{path}: its description holds an alpha that is not a number.") from None
    return alpha * rank**0.5 if config.get("use_rslora") else alpha


def _bundle_key(key: str) -> tuple[str, str]:
    """`bundle_emb.<name>.string_to_param.*` or `bundle_emb.<name>.<tensor>`: (name, tensor)."""
    rest = key[len(_BUNDLE) :]
    name, marker, part = rest.rpartition(".string_to_param.")
    return (name, part) if marker else tuple(rest.rpartition(".")[::2])


def read_index(path: Path | str) -> Adapter:
    """Looks at a file's names and shapes; no tensor is read.

    Raises:
        InputError: missing, damaged, or a pickle with code in it.
    """
    path = Path(path)
    if _is_pickle(path):
        infos, metadata = pickles.read_index(path), {}
    else:
        header = safetensors_io.read_header(path)
        infos, metadata = header.tensors, header.metadata
    groups: dict[tuple[str, str], dict[str, str]] = {}
    bundled: dict[str, dict[str, str]] = {}
    unknown: list[str] = []
    for key in infos:
        parsed = split_key(key)
        if key.startswith(_BUNDLE):
            name, part = _bundle_key(key)
            bundled.setdefault(name, {})[part] = key
        elif parsed is None:
            unknown.append(key)
        else:
            groups.setdefault((parsed.component, parsed.flat), {})[parsed.part] = key
    shapes = {key: info.shape for key, info in infos.items()}
    family = recognise(shapes, metadata.get("ss_base_model_version", "")).family
    made = stamp(path)
    return Adapter(path, made, dict(metadata), family, groups, bundled, tuple(unknown), _configs(path, metadata))


class AdapterFiles:
    """Indexes of files, kept as long as the files stay the same."""

    def __init__(self, limit: int = 256) -> None:
        self._limit = limit
        self._known: dict[str, Adapter] = {}

    def get(self, path: Path | str) -> Adapter:
        """The file's index, read again when its modification time or size is another.

        Raises:
            InputError: see `read_index`.
        """
        path = Path(path)
        known = self._known.get(str(path))
        try:
            fresh = known is not None and known.stamp == stamp(path)
        except OSError:
            raise InputError(f"{path}: there is no such file.") from None
        if not fresh:
            self._known.pop(str(path), None)
            while len(self._known) >= self._limit:
                self._known.pop(next(iter(self._known)))
            self._known[str(path)] = known = read_index(path)
        return known


def site_parameters(
    adapter: Adapter, site: Site, parts: Mapping[str, str], tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Canonical parameters of one site, with alpha from the file's description where the file has no such key."""
    params = {part: tensors[key] for part, key in parts.items()}
    if "lora_down" in params and "alpha" not in params:
        alpha = adapter.stated_alpha(site, params["lora_down"].shape[0])
        if alpha is not None:
            params["alpha"] = torch.tensor(alpha, dtype=torch.float64)
    return params
