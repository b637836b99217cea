"""What embeddings, hypernetworks, aesthetic gradients, autoencoders and base models are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainers.errors import InputError
from trainers.formats.aesthetic import EMBEDDING, PROJECTION
from trainers.formats.safetensors_io import TensorInfo
from trainers.tools.describe_adapter import run_facts

_WIDTH_FAMILIES = {768: "sd1", 1024: "sd2", 1280: "sdxl"}


def _embedding(vectors: TensorInfo, family: str | None, **more: Any) -> dict[str, Any]:
    rows = vectors.shape[0] if len(vectors.shape) > 1 else 1
    return {
        "kind": "embedding",
        "title": "textual inversion embedding",
        "tokens": rows,
        "width": vectors.shape[-1],
        "family": family or _WIDTH_FAMILIES.get(vectors.shape[-1]),
        "dtype": vectors.dtype,
        **more,
    }


def embedding_from_tensors(tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str]) -> dict[str, Any] | None:
    """An embedding in a safetensors file or in diffusers' pickle: named tensors, or one matrix of any name."""
    if EMBEDDING in tensors and len(tensors) == 1 + (PROJECTION in tensors):
        return _aesthetic(tensors[EMBEDDING], PROJECTION in tensors, metadata)
    if {"clip_l", "clip_g"} <= set(tensors):
        return _embedding(tensors["clip_g"], "sdxl", run=run_facts(metadata))
    for name in ("emb_params", "emp_params"):
        if name in tensors and tensors[name].shape:
            return _embedding(tensors[name], None, run=run_facts(metadata))
    if len(tensors) == 1:
        ((name, info),) = tensors.items()
        if 1 <= len(info.shape) <= 2 and info.shape[-1] in _WIDTH_FAMILIES and not name.endswith((".weight", ".bias")):
            return _embedding(info, None, placeholder=name, run=run_facts(metadata))
    return None


def learned_words(metadata: Mapping[str, str]) -> list[list[str]]:
    """The vocabulary's words that each vector is nearest to, where the file says so."""
    try:
        found = json.loads(metadata.get("athanor.nearest_words", "[]"))
        return [[str(word) for word in words] for words in found]
    except (ValueError, TypeError):
        return []


def _aesthetic(vector: TensorInfo, has_projection: bool, metadata: Mapping[str, str]) -> dict[str, Any]:
    return {
        "kind": "aesthetic gradient",
        "title": "aesthetic gradient embedding",
        "width": vector.shape[-1] if vector.shape else 0,
        "dtype": vector.dtype,
        "settings": {"text_projection": "in the file" if has_projection else "not in the file"},
        "run": run_facts(metadata),
    }


def _tensor_tables(content: Any) -> dict[str, TensorInfo]:
    if not isinstance(content, dict):
        return {}
    return {str(name): info for name, info in content.items() if isinstance(info, TensorInfo)}


def _webui_embedding(content: dict) -> dict[str, Any] | None:
    vectors = _tensor_tables(content.get("string_to_param"))
    if not vectors:
        return None
    info = next(iter(vectors.values()))
    facts = {"name": content.get("name"), "steps": content.get("step"), "base": content.get("sd_checkpoint_name")}
    return _embedding(info, None, run={key: str(value) for key, value in facts.items() if value is not None})


def _hypernetwork(content: dict) -> dict[str, Any] | None:
    sizes = sorted(key for key in content if isinstance(key, int) and not isinstance(key, bool))
    if not sizes:
        return None
    pairs = [content[size] for size in sizes]
    if not all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in pairs):
        return None
    parameters = sum(info.numel for pair in pairs for part in pair for info in _tensor_tables(part).values())
    settings = ("layer_structure", "activation_func", "is_layer_norm", "use_dropout", "weight_initialization")
    facts = {"name": content.get("name"), "steps": content.get("step"), "base": content.get("sd_checkpoint_name")}
    return {
        "kind": "hypernetwork",
        "title": "hypernetwork",
        "widths": sizes,
        "parameters": parameters,
        "settings": {name: _plain(content[name]) for name in settings if name in content},
        "run": {key: str(value) for key, value in facts.items() if value is not None},
    }


def _plain(value: Any, depth: int = 0) -> Any:
    if isinstance(value, (list, tuple)) and depth < 3:
        return [_plain(one, depth + 1) for one in value[:100]]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(type(value).__name__)


def from_pickle(content: Any) -> dict[str, Any] | None:
    """The description of a WebUI's .pt file, from its content with `TensorInfo` for tensors; None for a checkpoint."""
    if isinstance(content, TensorInfo):
        return _aesthetic(content, False, {})
    if not isinstance(content, dict):
        return None
    return _webui_embedding(content) or _hypernetwork(content) or embedding_from_tensors(_tensor_tables(content), {})


def autoencoder(tensors: Mapping[str, TensorInfo]) -> dict[str, Any] | None:
    """An autoencoder alone."""
    names = {name.removeprefix("first_stage_model.") for name in tensors}
    if "encoder.conv_in.weight" not in names or any(name.startswith("model.diffusion_model.") for name in names):
        return None
    return {
        "kind": "vae",
        "title": "autoencoder (VAE)",
        "parameters": sum(info.numel for info in tensors.values()),
        "run": {},
    }


def base_model(path: Path) -> dict[str, Any]:
    """A base model, with the reason where it is one that cannot be trained."""
    from trainers.bases.detect import inspect_base
    from trainers.formats.families import FAMILIES

    info = inspect_base(path)
    return {
        "kind": "base",
        "title": "base model",
        "family": info.family,
        "family_title": FAMILIES[info.family].title,
        "layout": info.layout,
        "prediction": info.prediction,
        "prediction_source": info.prediction_source,
        "zero_terminal_snr": info.zero_terminal_snr,
        "channels": list(info.channels),
        "context_width": info.context_width,
        "parameters_by_part": info.parameters,
        "parameters": sum(info.parameters.values()),
        "stored_bytes": info.stored_bytes,
        "dtypes": info.stored_dtypes,
        "run": run_facts(info.metadata),
    }


def refused_base(error: InputError) -> dict[str, Any]:
    """A model that cannot be trained is described by the sentence that refuses it."""
    return {"kind": "other", "title": "a model that cannot be trained here", "problem": str(error), "run": {}}
