"""What an adapter file (LoRA and its relatives) is and says of itself."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainers.errors import InputError
from trainers.formats import hashes, safetensors_io
from trainers.formats.adapter_keys import KIND_BY_NAME, Recognised, kind_of, recognise
from trainers.formats.families import FAMILIES
from trainers.formats.layer_names import layer_of, split_key
from trainers.formats.safetensors_io import TensorInfo

_HASHED_UP_TO = 1 << 30
# The matrix whose first side is the rank, for the kinds that have one.
_RANK_PARTS = ("lora_down", "hada_w1_b", "lokr_w2_b", "lokr_w1_b", "a1")
_TOP_TAGS = 12

# What a person wants to know of a run, and the field it stands in.
_RUN_FIELDS = (
    ("name", "ss_output_name"),
    ("base", "ss_sd_model_name"),
    ("base_version", "ss_base_model_version"),
    ("steps", "ss_steps"),
    ("epochs", "ss_epoch"),
    ("pictures", "ss_num_train_images"),
    ("resolution", "ss_resolution"),
    ("batch_size", "ss_total_batch_size"),
    ("optimizer", "ss_optimizer"),
    ("schedule", "ss_lr_scheduler"),
    ("unet_lr", "ss_unet_lr"),
    ("text_encoder_lr", "ss_text_encoder_lr"),
    ("clip_skip", "ss_clip_skip"),
    ("seed", "ss_seed"),
    ("module", "ss_network_module"),
    ("comment", "ss_training_comment"),
    ("title", "modelspec.title"),
    ("architecture", "modelspec.architecture"),
    ("trigger", "modelspec.trigger_phrase"),
    ("author", "modelspec.author"),
    ("license", "modelspec.license"),
    ("description", "modelspec.description"),
    ("date", "modelspec.date"),
)


def run_facts(metadata: Mapping[str, str]) -> dict[str, str]:
    """The run's facts that a file's metadata state, without those left empty."""
    return {name: metadata[key] for name, key in _RUN_FIELDS if metadata.get(key) not in (None, "", "None")}


def top_tags(metadata: Mapping[str, str]) -> list[tuple[str, int]]:
    """The most frequent tags of all data folders; empty where the field is missing or damaged."""
    counts: Counter[str] = Counter()
    try:
        for folder in json.loads(metadata.get("ss_tag_frequency") or "{}").values():
            counts.update({str(tag).strip(): int(count) for tag, count in folder.items()})
    except (ValueError, AttributeError, TypeError, RecursionError):
        return []
    return counts.most_common(_TOP_TAGS)


def _ranks(found: Recognised, tensors: Mapping[str, TensorInfo]) -> dict[str, int]:
    ranks: Counter[int] = Counter()
    for parts in found.sites.values():
        key = next((parts[part] for part in _RANK_PARTS if part in parts), None)
        if key is not None and tensors[key].shape:
            ranks[tensors[key].shape[0]] += 1
    return {str(rank): count for rank, count in ranks.most_common()}


def _alphas(path: Path, found: Recognised) -> dict[str, int]:
    """How often each alpha occurs; reads the alphas alone, a number per layer."""
    keys = {parts["alpha"] for parts in found.sites.values() if "alpha" in parts}
    if not keys or path.suffix.lower() != ".safetensors":
        return {}
    values = safetensors_io.load(path, mapped=True, wanted=keys.__contains__)[0].values()
    counted = Counter(f"{float(value):g}" for value in values if value.numel() == 1)
    return dict(counted.most_common())


def _bundled(found: Recognised) -> list[str]:
    """Names of embeddings that are packed into the file."""
    names = {key.split(".")[1] for key in found.unknown if key.startswith("bundle_emb.") and key.count(".") >= 2}
    return sorted(names)


def _other_layers(keys: list[str], family: str) -> tuple[dict[str, set[str]], list[str]]:
    """Layers that no trainer of ours touches but others' files name (norms, the UNet's ends): `(parts, rest)`."""
    layers: dict[str, set[str]] = {}
    rest = []
    for key in keys:
        parsed = split_key(key)
        layer = layer_of(FAMILIES[family], parsed.component, parsed.flat) if parsed else None
        if layer is None:
            rest.append(key)
        else:
            layers.setdefault(layer.name, set()).add(parsed.part)
    return layers, rest


def _with_other_layers(found: Recognised, keys: list[str]) -> list[str]:
    """Adds what `_other_layers` understands to `found`; returns the keys that stay unknown."""
    families = [found.family] if found.family else list(FAMILIES)
    best = max(families, key=lambda name: len(_other_layers(keys, name)[0]))
    layers, rest = _other_layers(keys, best)
    for parts in layers.values():
        kind = kind_of(parts)
        if kind:
            found.family = best
            found.kinds[kind] = found.kinds.get(kind, 0) + 1
            found.components["other"] = found.components.get("other", 0) + 1
    return rest


def _hash_facts(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    if path.suffix.lower() != ".safetensors" or path.stat().st_size > _HASHED_UP_TO:
        return {}
    actual = hashes.file_body_sha256(path)
    stated = metadata.get("sshs_model_hash")
    return {
        "model_hash": actual,
        "legacy_hash": metadata.get("sshs_legacy_hash"),
        "hash_matches": None if stated is None else stated == actual,
    }


def describe_tensors(
    path: Path, tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str]
) -> dict[str, Any] | None:
    """The description of an adapter, or None where the tensors are no adapter's."""
    shapes = {key: info.shape for key, info in tensors.items()}
    found = recognise(shapes, metadata.get("ss_base_model_version", ""))
    bundled = _bundled(found)
    unknown = [key for key in found.unknown if not key.startswith("bundle_emb.")]
    # Only with layers that trainers of ours name, or where every key is an adapter's: a checkpoint names layers, too.
    if found.sites or (unknown and all(kind_of({parsed.part}) for key in unknown if (parsed := split_key(key)))):
        unknown = _with_other_layers(found, unknown)
    if not found.kinds or not found.family or len(unknown) > len(tensors) // 2:
        return None
    dtypes = Counter(info.dtype for key, info in tensors.items() if not key.endswith(".alpha"))
    return {
        "kind": "adapter",
        "types": found.kinds,
        "title": " and ".join(KIND_BY_NAME[name].title for name in found.kinds) or "adapter",
        "naming": found.naming,
        "family": found.family,
        "family_title": FAMILIES[found.family].title,
        "layers": found.components,
        "ranks": _ranks(found, tensors),
        "alphas": _alphas(path, found),
        "dtype": dtypes.most_common(1)[0][0] if dtypes else "",
        "parameters": sum(info.numel for info in tensors.values()),
        "embeddings": bundled,
        "unknown_keys": unknown,
        "run": run_facts(metadata),
        "tags": top_tags(metadata),
        **_hash_facts(path, metadata),
    }


def describe_folder(path: Path) -> dict[str, Any]:
    """The description of a PEFT folder."""
    from trainers.formats.adapters import read_adapter

    adapter = read_adapter(path)
    ranks = Counter(entry["lora_down"].shape[0] for entry in adapter.entries.values() if "lora_down" in entry)
    alphas = Counter(f"{entry['alpha']:g}" for entry in adapter.entries.values() if "alpha" in entry)
    if not adapter.found.kinds:
        raise InputError(f"{path}: no layer of a known kind is in this adapter.")
    return {
        "kind": "adapter",
        "types": adapter.found.kinds,
        "title": " and ".join(KIND_BY_NAME[name].title for name in adapter.found.kinds),
        "naming": adapter.found.naming,
        "family": adapter.family,
        "family_title": FAMILIES[adapter.family].title,
        "layers": adapter.found.components,
        "ranks": {str(rank): count for rank, count in ranks.most_common()},
        "alphas": dict(alphas.most_common()),
        "unknown_keys": adapter.found.unknown,
        "run": {},
        "tags": [],
    }
