"""Small random models of every family: the full block structure (so every site exists), but narrow."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import torch

from trainers.bases import build, export
from trainers.formats.families import FAMILIES, Family

UNET_WIDTHS = {"sd1": (32, 64, 96, 96), "sd2": (32, 64, 96, 96), "sdxl": (32, 64, 96)}
TEXT_WIDTHS = {"sd1": (32,), "sd2": (32,), "sdxl": (32, 64)}
VAE_WIDTHS = (32, 32, 32, 32)
POOLED = 64
TIME_WIDTH = 32  # width of each of the six embedded sizes of a tiny SDXL


def _unet_config(family: Family, widths: tuple[int, ...], context: int) -> dict:
    shapes: dict[str, tuple[int, ...]] = {
        f"down_blocks.{level}.resnets.0.conv1.weight": (width,) for level, width in enumerate(widths)
    }
    shapes["down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"] = (widths[0], context)
    shapes["add_embedding.linear_1.weight"] = (4 * widths[0], POOLED + 6 * TIME_WIDTH)
    return build.unet_config(family, shapes, POOLED)


def _text_config(encoder, width: int, vocabulary: int) -> dict:
    shapes = {
        "text_model.embeddings.token_embedding.weight": (vocabulary, width),
        "text_model.encoder.layers.0.mlp.fc1.weight": (2 * width,),
        "text_model.embeddings.position_embedding.weight": (77, width),
        "text_projection.weight": (POOLED, width),
    }
    return build.text_config(encoder, shapes)


def _vae_config(latent_scale: float, widths: tuple[int, ...], blocks: int) -> dict:
    shapes: dict[str, tuple[int, ...]] = {}
    for level, width in enumerate(widths):
        for block in range(blocks):
            shapes[f"encoder.down_blocks.{level}.resnets.{block}.conv1.weight"] = (width,)
    shapes["encoder.conv_in.weight"] = (widths[0], 3)
    shapes["decoder.conv_out.weight"] = (3,)
    shapes["post_quant_conv.weight"] = (4, 4)
    return build.vae_config(shapes, latent_scale)


def _randomise(module: torch.nn.Module, generator: torch.Generator) -> torch.nn.Module:
    """Weights of a size that keeps signals alive through the whole network; norms are near one, biases not zero."""
    module.to_empty(device="cpu")
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1:
            scale = 0.5 if "embedding" in name else parameter[0].numel() ** -0.5
            parameter.data.copy_(noise * scale)
        else:
            parameter.data.copy_(noise * 0.02 + (1.0 if "norm" in name and name.endswith("weight") else 0.05))
    for owner in module.modules():
        positions = owner._buffers.get("position_ids")
        if positions is not None:
            owner._buffers["position_ids"] = torch.arange(positions.shape[-1]).expand((1, -1)).clone()
    return module.eval().requires_grad_(False)


def tiny_modules(
    family: str,
    seed: int = 0,
    prediction: str = "epsilon",
    unet_widths: tuple[int, ...] | None = None,
    text_widths: tuple[int, ...] | None = None,
    vae_widths: tuple[int, ...] = VAE_WIDTHS,
    vae_blocks: int = 1,
) -> SimpleNamespace:
    """Random modules with `.family`, `.prediction`, `.unet`, `.text_encoders`, `.vae`, as `export` takes them."""
    table = FAMILIES[family]
    generator = torch.Generator().manual_seed(seed)
    text_widths = text_widths or TEXT_WIDTHS[family]
    unet = build.make_unet(_unet_config(table, unet_widths or UNET_WIDTHS[family], sum(text_widths)))
    encoders = [
        build.make_text_encoder(_text_config(encoder, width, 49408), encoder.pooled)
        for encoder, width in zip(table.text_encoders, text_widths, strict=True)
    ]
    vae = build.make_vae(_vae_config(table.latent_scale, vae_widths, vae_blocks))
    return SimpleNamespace(
        family=table,
        prediction=prediction,
        unet=_randomise(unet, generator),
        text_encoders=[_randomise(encoder, generator) for encoder in encoders],
        vae=_randomise(vae, generator),
    )


def make_tiny(
    family: str,
    path: Path | str,
    layout: str = "ldm",
    seed: int = 0,
    dtype: torch.dtype | None = torch.float32,
    metadata: dict[str, str] | None = None,
    **widths,
) -> Path:
    """Writes a tiny random model and returns its path.

    Args:
        family: "sd1", "sd2" or "sdxl".
        path: the file (layout "ldm": .safetensors or .ckpt) or folder (layout "diffusers") to write.
        widths: see `tiny_modules` (also `prediction`).
    """
    path = Path(path)
    modules = tiny_modules(family, seed, **widths)
    if layout == "diffusers":
        export.save_diffusers(modules, path, dtype)
    elif path.suffix == ".ckpt":
        state = {name: tensor.to(dtype or tensor.dtype) for name, tensor in export.single_file_state(modules).items()}
        torch.save({"state_dict": state, "epoch": 1, "global_step": 2}, path)
    else:
        export.save_single_file(modules, path, dtype, metadata)
    return path
