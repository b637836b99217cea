"""Writing a model as one LDM file or as a diffusers folder."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from trainers.bases.tokenizer import BEGIN, END, write_vocabulary
from trainers.formats import safetensors_io
from trainers.formats.families import Family, TextEncoderSpec
from trainers.formats.ldm_keys import (
    OPEN_CLIP_PROJECTION,
    open_clip_fused,
    open_clip_key_map,
    unet_key_map,
    vae_key_map,
    vae_structure,
)

Tensors = dict[str, torch.Tensor]
_TEXT_ROOTS = ("embeddings.", "encoder.", "final_layer_norm.")


def canonical_state(module: torch.nn.Module) -> Tensors:
    """A module's tensors under canonical names (text encoders with the `text_model.` level)."""
    state = module.state_dict()
    named = {f"text_model.{name}" if _is_bare_text(module, name) else name: value for name, value in state.items()}
    return {name: value.detach() for name, value in named.items() if not name.endswith("position_ids")}


def _is_bare_text(module: torch.nn.Module, name: str) -> bool:
    return hasattr(module, "final_layer_norm") and name.startswith(_TEXT_ROOTS)


def unet_to_ldm(family: Family, tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """A UNet's tensors under the single file's names, without prefix."""
    return {ldm: tensors[name] for ldm, name in unet_key_map(family) if name in tensors}


def vae_to_ldm(tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """An autoencoder's tensors under the single file's names; attention matrices become 1x1 convolutions."""
    out = {}
    for ldm, name in vae_key_map(*vae_structure(tensors)):
        if name in tensors:
            tensor = tensors[name]
            is_matrix = ".attn_1." in ldm and tensor.ndim == 2
            out[ldm] = tensor[:, :, None, None] if is_matrix else tensor
    return out


def text_to_ldm(encoder: TextEncoderSpec, tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """A text encoder's tensors under the single file's names, without prefix.

    SD2 reads the layer before the last, and only those layers are loaded; programs that build the whole network still
    expect the last layer, a projection and a logit scale: they get copies and constants that nobody reads.
    """
    if encoder.ldm_layout == "hf":
        positions = tensors["text_model.embeddings.position_embedding.weight"].shape[0]
        return {**tensors, "text_model.embeddings.position_ids": torch.arange(positions)[None]}
    out = {ldm: tensors[name] for ldm, name in open_clip_key_map(encoder.layers)}
    for ldm, parts in open_clip_fused(encoder.layers):
        out[ldm] = torch.cat([tensors[name] for name in parts])
    last = f"transformer.resblocks.{encoder.layers - 1}."
    for layer in range(encoder.layers, encoder.full_layers):
        for name in [name for name in out if name.startswith(last)]:
            out[name.replace(last, f"transformer.resblocks.{layer}.")] = out[name].clone()
    ldm, name = OPEN_CLIP_PROJECTION
    width = out["ln_final.weight"].shape[0]
    out[ldm] = tensors[name].t().contiguous() if name in tensors else torch.eye(width)
    out["logit_scale"] = torch.tensor(math.log(100.0))
    return out


def single_file_state(base: Any) -> Tensors:
    """All tensors of a model (`.family`, `.unet`, `.text_encoders`, `.vae`) under single-file names."""
    family: Family = base.family
    out = {family.unet_prefix + k: v for k, v in unet_to_ldm(family, canonical_state(base.unet)).items()}
    for encoder, module in zip(family.text_encoders, base.text_encoders, strict=True):
        out.update({encoder.ldm_prefix + k: v for k, v in text_to_ldm(encoder, canonical_state(module)).items()})
    if base.vae is not None:
        out.update({family.vae_prefix + k: v for k, v in vae_to_ldm(canonical_state(base.vae)).items()})
    return out


def _cast(tensors: Mapping[str, torch.Tensor], dtype: torch.dtype | None) -> Tensors:
    return {
        name: tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor
        for name, tensor in tensors.items()
    }


def save_single_file(
    base: Any, path: Path | str, dtype: torch.dtype | None = torch.float16, metadata: Mapping[str, str] | None = None
) -> None:
    """Writes one LDM safetensors file.

    Args:
        base: anything with `.family` (a Family), `.unet`, `.text_encoders` (a list) and `.vae` (or None).
        dtype: number format of the file; None keeps what the modules have.
    """
    safetensors_io.save(path, _cast(single_file_state(base), dtype), metadata)


def _write_json(path: Path, table: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(table, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _save_tokenizer(folder: Path, pad_token: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_vocabulary(folder)
    special = {"bos_token": BEGIN, "eos_token": END, "unk_token": END, "pad_token": pad_token}
    _write_json(
        folder / "tokenizer_config.json", {**special, "model_max_length": 77, "tokenizer_class": "CLIPTokenizer"}
    )
    _write_json(folder / "special_tokens_map.json", special)


def _scheduler(prediction: str) -> dict[str, Any]:
    return {
        "_class_name": "DDIMScheduler",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "num_train_timesteps": 1000,
        "prediction_type": "v_prediction" if prediction == "v" else "epsilon",
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "timestep_spacing": "leading",
    }


def _index(family: Family, text_classes: list[str]) -> dict[str, Any]:
    index: dict[str, Any] = {
        "_class_name": "StableDiffusionXLPipeline" if len(text_classes) > 1 else "StableDiffusionPipeline",
        "scheduler": ["diffusers", "DDIMScheduler"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    if len(text_classes) > 1:
        index["force_zeros_for_empty_prompt"] = False
    else:
        index.update(safety_checker=[None, None], feature_extractor=[None, None], requires_safety_checker=False)
    for encoder, name in zip(family.text_encoders, text_classes, strict=True):
        index[encoder.component] = ["transformers", name]
        index[encoder.component.replace("text_encoder", "tokenizer")] = ["transformers", "CLIPTokenizer"]
    return index


def save_diffusers(base: Any, folder: Path | str, dtype: torch.dtype | None = None) -> None:
    """Writes a diffusers folder that `from_pretrained` reads without the hub; arguments as `save_single_file`."""
    folder = Path(folder)
    family: Family = base.family
    for name, module in (("unet", base.unet), ("vae", base.vae)):
        module.save_config(folder / name)
        tensors = _cast(canonical_state(module), dtype)
        safetensors_io.save(folder / name / "diffusion_pytorch_model.safetensors", tensors, {"format": "pt"})
    for encoder, module in zip(family.text_encoders, base.text_encoders, strict=True):
        config = module.config.to_dict()
        config["architectures"] = [type(module).__name__]
        _write_json(folder / encoder.component / "config.json", config)
        tensors = _cast(canonical_state(module), dtype)
        safetensors_io.save(folder / encoder.component / "model.safetensors", tensors, {"format": "pt"})
        tokenizer = folder / encoder.component.replace("text_encoder", "tokenizer")
        _save_tokenizer(tokenizer, END if encoder.pads_with_end else "!")
    prediction = getattr(base, "prediction", family.default_prediction)
    _write_json(folder / "scheduler" / "scheduler_config.json", _scheduler(prediction))
    _write_json(folder / "model_index.json", _index(family, [type(m).__name__ for m in base.text_encoders]))
