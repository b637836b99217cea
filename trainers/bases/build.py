"""Configurations of diffusers and transformers modules, read from the shapes of a model's tensors.

A file says how wide it is; the family says how it is built. So nothing has to be looked up on the hub, and narrow
models of the same structure load like the published ones.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from trainers.errors import InputError
from trainers.formats.families import Family, TextEncoderSpec
from trainers.formats.ldm_keys import vae_structure

Shapes = Mapping[str, tuple[int, ...]]
POSITIONS = 77


def _first(shapes: Shapes, pattern: str) -> tuple[int, ...]:
    found = next((shape for name, shape in shapes.items() if re.fullmatch(pattern, name)), None)
    if found is None:
        raise InputError(f"the model is not whole: no tensor like {pattern!r} is in it.")
    return found


def unet_widths(family: Family, shapes: Shapes) -> tuple[int, ...]:
    """Channels of each level, finest first."""
    return tuple(
        _first(shapes, rf"down_blocks\.{level}\.resnets\.0\.conv1\.weight")[0] for level in range(family.unet.levels)
    )


def context_width(shapes: Shapes) -> int:
    """Width of the text the UNet attends to."""
    return _first(shapes, r".*\.attn2\.to_k\.weight")[1]


def unet_config(family: Family, shapes: Shapes, pooled_width: int = 0) -> dict[str, Any]:
    """Arguments of diffusers' UNet2DConditionModel; `pooled_width` is needed for size conditioning (SDXL)."""
    spec = family.unet
    widths = unet_widths(family, shapes)
    down = tuple("CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in spec.depths)
    up = tuple("CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in reversed(spec.depths))
    config: dict[str, Any] = {
        "sample_size": family.resolution // 8,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": widths,
        "layers_per_block": spec.resnets,
        "down_block_types": down,
        "up_block_types": up,
        "cross_attention_dim": context_width(shapes),
        # diffusers calls the number of heads attention_head_dim, for historical reasons.
        "attention_head_dim": tuple(spec.heads_for(width) for width in widths),
        "use_linear_projection": spec.linear_projection,
        "transformer_layers_per_block": tuple(max(1, depth) for depth in spec.depths),
    }
    if spec.size_conditioning:
        joined = _first(shapes, r"add_embedding\.linear_1\.weight")[1]
        config["addition_embed_type"] = "text_time"
        config["projection_class_embeddings_input_dim"] = joined
        config["addition_time_embed_dim"] = (joined - pooled_width) // 6
    return config


def text_config(spec: TextEncoderSpec, shapes: Shapes, heads: int | None = None) -> dict[str, Any]:
    """Arguments of transformers' CLIPTextConfig."""
    vocabulary, width = _first(shapes, r"text_model\.embeddings\.token_embedding\.weight")
    inner = _first(shapes, r"text_model\.encoder\.layers\.0\.mlp\.fc1\.weight")[0]
    positions = _first(shapes, r"text_model\.embeddings\.position_embedding\.weight")[0]
    projection = shapes.get("text_projection.weight", (width,))[0]
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": heads or max(1, width // 64),
        "max_position_embeddings": positions,
        "hidden_act": spec.activation,
        "layer_norm_eps": 1e-5,
        "projection_dim": projection,
        "bos_token_id": 49406,
        "eos_token_id": 49407,
        "pad_token_id": 49407 if spec.pads_with_end else 0,
    }


def vae_config(shapes: Shapes, latent_scale: float) -> dict[str, Any]:
    """Arguments of diffusers' AutoencoderKL."""
    levels, resnets = vae_structure(shapes)
    if not levels:
        raise InputError("no autoencoder is in the file.")
    widths = tuple(_first(shapes, rf"encoder\.down_blocks\.{i}\.resnets\.0\.conv1\.weight")[0] for i in range(levels))
    return {
        "in_channels": _first(shapes, r"encoder\.conv_in\.weight")[1],
        "out_channels": _first(shapes, r"decoder\.conv_out\.weight")[0],
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "block_out_channels": widths,
        "layers_per_block": resnets,
        "latent_channels": _first(shapes, r"post_quant_conv\.weight")[1],
        "sample_size": 512,
        "scaling_factor": latent_scale,
    }


def import_libraries() -> None:
    """Imports what models are made of: a measurement of memory that follows counts the models alone."""
    from diffusers import UNet2DConditionModel  # noqa: F401
    from transformers import CLIPTextModel  # noqa: F401


def make_unet(config: Mapping[str, Any]):
    """A UNet on the meta device."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        return UNet2DConditionModel(**config)


def make_text_encoder(config: Mapping[str, Any], projected: bool):
    """A CLIP text encoder on the meta device."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    with torch.device("meta"):
        return (CLIPTextModelWithProjection if projected else CLIPTextModel)(CLIPTextConfig(**config))


def make_vae(config: Mapping[str, Any]):
    """An autoencoder on the meta device."""
    from diffusers import AutoencoderKL

    with torch.device("meta"):
        return AutoencoderKL(**config)


def _module_name(module: torch.nn.Module, name: str) -> str:
    """The canonical name as this version of the library spells it (transformers 5 has no `text_model.` level)."""
    if name.startswith("text_model.") and not hasattr(module, "text_model"):
        return name[len("text_model.") :]
    return name


def number_positions(module: torch.nn.Module) -> None:
    """Gives CLIP's position numbers, which no file holds, to a module from the meta device; where its weights lie."""
    for owner in module.modules():
        positions = owner._buffers.get("position_ids")
        if positions is not None and positions.is_meta:
            numbers = torch.arange(positions.shape[-1], device=next(module.parameters()).device)
            owner._buffers["position_ids"] = numbers.expand((1, -1)).clone()


def fill(module: torch.nn.Module, tensors: Mapping[str, torch.Tensor], what: str) -> None:
    """Puts tensors (canonical names) into a module that was built on the meta device; nothing is copied.

    Raises:
        InputError: a tensor is missing or has another shape than the module's; names it.
    """
    renamed = {_module_name(module, name): tensor for name, tensor in tensors.items()}
    wanted = module.state_dict()
    for name, parameter in wanted.items():
        if name.endswith("position_ids"):
            continue
        if name not in renamed:
            raise InputError(f"{what}: the model is not whole: {name} is missing.")
        if renamed[name].shape != parameter.shape:
            have, want = list(renamed[name].shape), list(parameter.shape)
            raise InputError(f"{what}: {name} has the shape {have} where {want} is needed; this model is not known.")
    module.load_state_dict({name: renamed[name] for name in wanted if name in renamed}, strict=False, assign=True)
    number_positions(module)
    left = [name for name, value in [*module.named_parameters(), *module.named_buffers()] if value.is_meta]
    if left:
        raise RuntimeError(f"{what}: {left[0]} was not filled")
    module.requires_grad_(False)
    module.eval()
