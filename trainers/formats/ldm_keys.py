"""Names of a single file (LDM, SGM) beside diffusers' and transformers' names, generated from the structure tables.

Every function gives pairs `(single file, diffusers)` without the component's prefix. Pairs may be given for tensors a
particular file lacks (a shortcut where two levels are equally wide): the caller keeps the ones that are there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from trainers.formats.families import Family, UNetSpec
from trainers.formats.unet_blocks import (
    RESNET_PARTS,
    RESNET_SHORTCUT,
    TRANSFORMER_LINEARS,
    TRANSFORMER_NORMS,
    all_blocks,
)

Pair = tuple[str, str]
_BOTH = (".weight", ".bias")


def _unet_modules(unet: UNetSpec) -> Iterator[Pair]:
    yield "time_embed.0", "time_embedding.linear_1"
    yield "time_embed.2", "time_embedding.linear_2"
    if unet.size_conditioning:
        yield "label_emb.0.0", "add_embedding.linear_1"
        yield "label_emb.0.2", "add_embedding.linear_2"
    yield "input_blocks.0.0", "conv_in"
    for block in all_blocks(unet):
        if block.kind == "resnet":
            for ldm, diffusers in (*RESNET_PARTS, RESNET_SHORTCUT):
                yield f"{block.ldm}.{ldm}", f"{block.diffusers}.{diffusers}"
        elif block.kind == "attention":
            for part in ("norm", "proj_in", "proj_out"):
                yield f"{block.ldm}.{part}", f"{block.diffusers}.{part}"
            for index in range(block.depth):
                for part in (*TRANSFORMER_LINEARS, *TRANSFORMER_NORMS):
                    inner = f"transformer_blocks.{index}.{part}"
                    yield f"{block.ldm}.{inner}", f"{block.diffusers}.{inner}"
        else:
            yield block.ldm, block.diffusers
    yield "out.0", "conv_norm_out"
    yield "out.2", "conv_out"


def unet_key_map(family: Family) -> list[Pair]:
    """All tensors of the family's UNet: `[(single file, diffusers)]`."""
    return [(ldm + end, diffusers + end) for ldm, diffusers in _unet_modules(family.unet) for end in _BOTH]


_VAE_RESNET = (("norm1", "norm1"), ("conv1", "conv1"), ("norm2", "norm2"), ("conv2", "conv2"))
_VAE_SHORTCUT = ("nin_shortcut", "conv_shortcut")
VAE_ATTENTION = (("norm", "group_norm"), ("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("proj_out", "to_out.0"))
# diffusers before 0.17 named the autoencoder's attention like this.
VAE_OLD_ATTENTION = (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0"))


def _vae_middle(side: str) -> Iterator[Pair]:
    for ldm, diffusers in (("block_1", "resnets.0"), ("block_2", "resnets.1")):
        for one, other in _VAE_RESNET:
            yield f"{side}.mid.{ldm}.{one}", f"{side}.mid_block.{diffusers}.{other}"
    for one, other in VAE_ATTENTION:
        yield f"{side}.mid.attn_1.{one}", f"{side}.mid_block.attentions.0.{other}"


def _vae_modules(levels: int, resnets: int) -> Iterator[Pair]:
    parts = (*_VAE_RESNET, _VAE_SHORTCUT)
    for side in ("encoder", "decoder"):
        yield f"{side}.conv_in", f"{side}.conv_in"
        yield from _vae_middle(side)
        yield f"{side}.norm_out", f"{side}.conv_norm_out"
        yield f"{side}.conv_out", f"{side}.conv_out"
    for level in range(levels):
        for index in range(resnets):
            for one, other in parts:
                yield (
                    f"encoder.down.{level}.block.{index}.{one}",
                    f"encoder.down_blocks.{level}.resnets.{index}.{other}",
                )
        yield f"encoder.down.{level}.downsample.conv", f"encoder.down_blocks.{level}.downsamplers.0.conv"
        # The single file counts the decoder's levels from the finest, diffusers from the coarsest.
        ours = levels - 1 - level
        for index in range(resnets + 1):
            for one, other in parts:
                yield (
                    f"decoder.up.{level}.block.{index}.{one}",
                    f"decoder.up_blocks.{ours}.resnets.{index}.{other}",
                )
        yield f"decoder.up.{level}.upsample.conv", f"decoder.up_blocks.{ours}.upsamplers.0.conv"
    yield "quant_conv", "quant_conv"
    yield "post_quant_conv", "post_quant_conv"


def vae_key_map(levels: int = 4, resnets: int = 2) -> list[Pair]:
    """All tensors of a KL autoencoder with `levels` levels and `resnets` residual blocks in each (encoder side)."""
    return [(ldm + end, diffusers + end) for ldm, diffusers in _vae_modules(levels, resnets) for end in _BOTH]


def vae_structure(keys: Iterable[str]) -> tuple[int, int]:
    """`(levels, residual blocks per level)` of an autoencoder, from its names in either naming."""
    pattern = re.compile(r"encoder\.(?:down\.(\d+)\.block|down_blocks\.(\d+)\.resnets)\.(\d+)\.")
    found = [match.groups() for match in map(pattern.match, keys) if match]
    if not found:
        return 0, 0
    return max(int(a or b) for a, b, _ in found) + 1, max(int(c) for *_, c in found) + 1


_OPEN_CLIP_LAYER = (
    ("ln_1.weight", "layer_norm1.weight"),
    ("ln_1.bias", "layer_norm1.bias"),
    ("ln_2.weight", "layer_norm2.weight"),
    ("ln_2.bias", "layer_norm2.bias"),
    ("attn.out_proj.weight", "self_attn.out_proj.weight"),
    ("attn.out_proj.bias", "self_attn.out_proj.bias"),
    ("mlp.c_fc.weight", "mlp.fc1.weight"),
    ("mlp.c_fc.bias", "mlp.fc1.bias"),
    ("mlp.c_proj.weight", "mlp.fc2.weight"),
    ("mlp.c_proj.bias", "mlp.fc2.bias"),
)


def open_clip_key_map(layers: int) -> list[Pair]:
    """Tensors of an open_clip text model that are only renamed: `[(open_clip, transformers)]`."""
    pairs = [
        ("token_embedding.weight", "text_model.embeddings.token_embedding.weight"),
        ("positional_embedding", "text_model.embeddings.position_embedding.weight"),
        ("ln_final.weight", "text_model.final_layer_norm.weight"),
        ("ln_final.bias", "text_model.final_layer_norm.bias"),
    ]
    for layer in range(layers):
        for one, other in _OPEN_CLIP_LAYER:
            pairs.append((f"transformer.resblocks.{layer}.{one}", f"text_model.encoder.layers.{layer}.{other}"))
    return pairs


def open_clip_fused(layers: int) -> list[tuple[str, tuple[str, str, str]]]:
    """Fused projections: `[(open_clip name, (q, k, v) in transformers)]`; rows are q, then k, then v."""
    fused = []
    for layer in range(layers):
        for end in ("weight", "bias"):
            parts = tuple(f"text_model.encoder.layers.{layer}.self_attn.{x}_proj.{end}" for x in "qkv")
            fused.append((f"transformer.resblocks.{layer}.attn.in_proj_{end}", parts))
    return fused


# open_clip keeps the projection as [width, out]; transformers' linear layer has [out, width].
OPEN_CLIP_PROJECTION = ("text_projection", "text_projection.weight")
