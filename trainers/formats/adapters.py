"""Writing and reading LoRA-family adapters.

In the program an adapter is a table of entries by kohya site name,
`{"lora_unet_…": {"lora_down": [r, in(, k, k)], "lora_up": [out, r(, 1, 1)], "alpha": float}}`,
whose change of the layer's weight is `up . down . alpha / r` (parts of other kinds: `trainers.formats.adapter_keys`).
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from trainers.errors import InputError
from trainers.formats import pickles, safetensors_io
from trainers.formats.adapter_keys import Recognised, recognise
from trainers.formats.families import FAMILIES, Family
from trainers.formats.sites import Site, site_by_name

Entry = dict[str, Any]
Entries = dict[str, Entry]
METADATA_KEY = "lora_adapter_metadata"
_PICKLES = (".pt", ".bin", ".ckpt", ".pth")


@dataclass
class Adapter:
    """A file that was read.

    Attributes:
        entries: parts by canonical site name; `alpha` is a float and always there for LoRA.
        family: "sd1", "sd2" or "sdxl".
        found: what was recognised (kinds, naming, unknown keys).
    """

    entries: Entries
    family: str
    found: Recognised
    metadata: dict[str, str] = field(default_factory=dict)


def _rank(entry: Mapping[str, Any]) -> int:
    shape = entry["lora_down"].shape
    return shape[0] if len(shape) else 0


def _site(family: Family, name: str) -> Site:
    site = site_by_name(family, name)
    if site is None:
        raise KeyError(f"{name} is no layer of {family.title}")
    return site


# --- writing


def to_kohya(entries: Mapping[str, Entry], dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
    """Tensors under kohya names, which every WebUI reads. `alpha` stays float32, so that the scale is exact."""
    out: dict[str, torch.Tensor] = {}
    for name, entry in entries.items():
        for part, value in entry.items():
            if part == "alpha":
                out[f"{name}.alpha"] = torch.tensor(float(value), dtype=torch.float32)
            else:
                key = f"{name}.{part}.weight" if part.startswith("lora_") else f"{name}.{part}"
                out[key] = value.detach().to(dtype or value.dtype)
    return out


def _only_lora(entries: Mapping[str, Entry], naming: str) -> None:
    for name, entry in entries.items():
        if "lora_down" not in entry or "lora_mid" in entry or "dora_scale" in entry:
            raise InputError(f"file_format: {name} is of a kind that {naming} files cannot hold; use kohya.")


def _patterns(family: Family, entries: Mapping[str, Entry], scaled: bool) -> dict[str, dict[str, Any]]:
    """PEFT's description of each component: common rank and alpha, and patterns for the layers that differ."""
    described: dict[str, dict[str, Any]] = {}
    for component in family.components:
        chosen = {n: e for n, e in entries.items() if _site(family, n).component == component}
        if not chosen:
            continue
        # Without the `text_model.` level: PEFT compares the ends of names, so this fits with and without it.
        paths = {n: _site(family, n).path.removeprefix("text_model.") for n in chosen}
        ranks = {paths[n]: _rank(e) for n, e in chosen.items()}
        alphas = {paths[n]: float(_rank(e) if scaled else e["alpha"]) for n, e in chosen.items()}
        rank = Counter(ranks.values()).most_common(1)[0][0]
        alpha = Counter(alphas.values()).most_common(1)[0][0]
        described[component] = {
            "r": rank,
            "lora_alpha": alpha,
            "rank_pattern": {path: value for path, value in ranks.items() if value != rank},
            "alpha_pattern": {path: value for path, value in alphas.items() if value != alpha},
            "target_modules": sorted(ranks),
        }
    return described


def to_diffusers(
    family: Family, entries: Mapping[str, Entry], dtype: torch.dtype | None = None
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """`(tensors, metadata)` as diffusers' `save_lora_weights` writes them.

    diffusers keeps alpha only in the header, and readers before 0.35 do not look there: the scale is multiplied into
    `lora_B`, so that every reader gets the same result, and the header says alpha = rank.
    """
    _only_lora(entries, "diffusers")
    out: dict[str, torch.Tensor] = {}
    for name, entry in entries.items():
        site = _site(family, name)
        key, scale = f"{site.component}.{site.path}", float(entry["alpha"]) / _rank(entry)
        down, up = entry["lora_down"].detach(), entry["lora_up"].detach()
        out[f"{key}.lora_A.weight"] = down.to(dtype or down.dtype)
        out[f"{key}.lora_B.weight"] = (up.float() * scale).to(dtype or up.dtype)
    header = {
        f"{component}.{name}": value
        for component, table in _patterns(family, entries, scaled=True).items()
        for name, value in table.items()
    }
    return out, {METADATA_KEY: json.dumps(header, indent=2, sort_keys=True), "format": "pt"}


def to_peft(
    family: Family,
    entries: Mapping[str, Entry],
    dtype: torch.dtype | None = None,
    without_level: Collection[str] = (),
) -> dict[str, tuple[dict[str, torch.Tensor], dict[str, Any]]]:
    """`{component: (tensors of adapter_model.safetensors, content of adapter_config.json)}`: one adapter each.

    Args:
        without_level: text encoders whose layers are called `encoder…` instead of `text_model.encoder…` (CLIPTextModel
            of transformers 5, see `trainers.bases.loader.components_without_level`): PEFT matches names literally.
    """
    _only_lora(entries, "PEFT")

    result = {}
    for component, table in _patterns(family, entries, scaled=False).items():
        tensors = {}
        for name, entry in entries.items():
            site = _site(family, name)
            if site.component == component:
                bare = component in without_level
                key = f"base_model.model.{site.path.removeprefix('text_model.') if bare else site.path}"
                for part, letter in (("lora_down", "A"), ("lora_up", "B")):
                    tensor = entry[part].detach()
                    tensors[f"{key}.lora_{letter}.weight"] = tensor.to(dtype or tensor.dtype)
        config = {
            "peft_type": "LORA",
            "task_type": None,
            "base_model_name_or_path": None,
            "inference_mode": True,
            "bias": "none",
            "fan_in_fan_out": False,
            "lora_dropout": 0.0,
            "use_rslora": False,
            "use_dora": False,
            **table,
        }
        result[component] = (tensors, config)
    return result


def save_peft(folder: Path | str, adapters: Mapping[str, tuple[dict[str, torch.Tensor], dict[str, Any]]]) -> None:
    """Writes what `to_peft` gave: `folder/<component>/adapter_model.safetensors` and `adapter_config.json`."""
    for component, (tensors, config) in adapters.items():
        text = json.dumps(config, indent=2, sort_keys=True) + "\n"
        target = Path(folder) / component
        safetensors_io.write_atomically(target / "adapter_config.json", iter([text.encode("utf-8")]))
        safetensors_io.save(target / "adapter_model.safetensors", tensors, {"format": "pt"})


# --- reading


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        raise InputError(f"{path}: this adapter's description cannot be read; copy the folder again.") from None
    if not isinstance(config, dict):
        raise InputError(f"{path}: this adapter's description is not a table; copy the folder again.")
    return config


def _stated_alphas(config: Mapping[str, Any]) -> dict[str, float]:
    """alpha by path from PEFT's description ("" for the rest), with rsLoRA's scale folded in by the caller."""
    alphas = {"": float(config.get("lora_alpha") or 0)}
    for path, value in dict(config.get("alpha_pattern") or {}).items():
        alphas[str(path)] = float(value)
    return alphas


def _header_configs(path: Path, metadata: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """PEFT descriptions by component from diffusers' header entry."""
    if METADATA_KEY not in metadata:
        return {}
    configs: dict[str, dict[str, Any]] = {}
    try:
        for key, value in json.loads(metadata[METADATA_KEY]).items():
            component, _, name = key.partition(".")
            configs.setdefault(component, {})[name] = value
    except (ValueError, AttributeError, RecursionError):
        raise InputError(f"{path}: its header entry {METADATA_KEY} cannot be read; the file is damaged.") from None
    return configs


def _alpha_from(path: Path, config: Mapping[str, Any], site: Site, rank: int) -> float | None:
    if not config:
        return None
    try:
        alphas = _stated_alphas(config)
        alpha = alphas[""] or float(rank)
        for pattern, value in alphas.items():
            if pattern and (site.path == pattern or site.path.endswith(f".{pattern}")):
                alpha = value
    except (TypeError, ValueError):
        raise InputError(f"{path}: this adapter's description holds an alpha that is not a number.") from None
    return alpha * rank**0.5 if config.get("use_rslora") else alpha


def _alpha_number(path: Path, name: str, value: Any) -> float:
    number = float(value.item()) if isinstance(value, torch.Tensor) and value.numel() == 1 else math.nan
    if not math.isfinite(number):
        raise InputError(f"{path}: the alpha of {name} is not a number; the file is damaged.")
    return number


def _entries(
    path: Path, found: Recognised, tensors: Mapping[str, torch.Tensor], configs: Mapping[str, Mapping[str, Any]]
) -> Entries:
    family = FAMILIES[found.family]
    entries: Entries = {}
    for name, parts in found.sites.items():
        entry: Entry = {part: tensors[key] for part, key in parts.items()}
        if "alpha" in entry:
            entry["alpha"] = _alpha_number(path, name, entry["alpha"])
        if "lora_down" in entry:
            site = _site(family, name)
            stated = _alpha_from(path, configs.get(site.component, {}), site, _rank(entry))
            entry.setdefault("alpha", stated if stated is not None else float(_rank(entry)))
        entries[name] = entry
    return entries


def _check_lora(path: Path, entries: Mapping[str, Entry]) -> None:
    for name, entry in entries.items():
        if ("lora_down" in entry) != ("lora_up" in entry):
            raise InputError(f"{path}: {name} has only one of its two matrices; the file is not whole.")
        if "lora_down" in entry:
            down, up = entry["lora_down"], entry["lora_up"]
            if down.ndim < 2 or up.ndim < 2 or down.shape[0] < 1 or up.shape[1] != down.shape[0]:
                raise InputError(f"{path}: the matrices of {name} do not fit together; the file is damaged.")


def _load_any(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    if path.suffix.lower() in _PICKLES:
        return pickles.load_tensors(path), {}
    return safetensors_io.load(path)


def _peft_parts(path: Path) -> list[Path]:
    if (path / "adapter_config.json").is_file():
        return [path]
    return [folder for folder in sorted(path.iterdir()) if (folder / "adapter_config.json").is_file()]


def _read_folder(path: Path, family: str | None) -> Adapter:
    """A PEFT folder, or a folder with one PEFT folder per component."""
    parts = _peft_parts(path)
    if not parts:
        raise InputError(f"{path}: this folder holds no adapter (no adapter_config.json); name a file.")
    tensors: dict[str, torch.Tensor] = {}
    configs: dict[str, dict[str, Any]] = {}
    for part in parts:
        config = _read_config(part / "adapter_config.json")
        file = next(
            (part / n for n in ("adapter_model.safetensors", "adapter_model.bin") if (part / n).is_file()), None
        )
        if file is None:
            raise InputError(f"{part}: adapter_model.safetensors is missing in this folder.")
        loaded = _load_any(file)[0]
        component = part.name if part.name in ("unet", "text_encoder", "text_encoder_2") else _component_of(loaded)
        tensors.update({f"{component}.{key}": tensor for key, tensor in loaded.items()})
        configs[component] = config
    return _adapter(path, tensors, {}, configs, family)


def _component_of(tensors: Mapping[str, torch.Tensor]) -> str:
    return "text_encoder" if any("self_attn" in key for key in tensors) else "unet"


def _adapter(path: Path, tensors, metadata, configs, family: str | None) -> Adapter:
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    version = metadata.get("ss_base_model_version", "")
    found = recognise(shapes, version, family)
    better = recognise(shapes, version) if family and found.unknown else found
    if better.family and len(better.sites) > len(found.sites):
        other, wanted = FAMILIES[better.family].title, FAMILIES[found.family].title
        raise InputError(f"{path}: this adapter is for {other}, not for {wanted}; choose another file.")
    if not found.family or not found.sites:
        raise InputError(f"{path}: this is no adapter of a known kind for Stable Diffusion 1.x, 2.x or XL.")
    entries = _entries(path, found, tensors, configs)
    _check_lora(path, entries)
    return Adapter(entries, found.family, found, dict(metadata))


def read_adapter(path: Path | str, family: str | None = None) -> Adapter:
    """Reads an adapter in any naming: kohya (both SDXL spellings), diffusers old and new, PEFT (file or folder).

    Args:
        family: says which family it is for, where names alone cannot tell SD1 from SD2.

    Raises:
        InputError: missing, damaged, or no adapter.
    """
    path = Path(path)
    if path.is_dir():
        return _read_folder(path, family)
    tensors, metadata = _load_any(path)
    configs = _header_configs(path, metadata)
    beside = path.parent / "adapter_config.json"
    if path.name.startswith("adapter_model") and beside.is_file():
        return _read_folder(path.parent, family)
    return _adapter(path, tensors, metadata, configs, family)
