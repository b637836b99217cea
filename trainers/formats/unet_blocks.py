"""Where a UNet's residual blocks, attentions and samplers are, in both namings.

A single file numbers every block of the way down and up in one row (`input_blocks.4`), diffusers nests them by level
(`down_blocks.1.attentions.0`). Both follow from the block structure alone; so do all names built on them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from trainers.formats.families import UNetSpec


@dataclass(frozen=True)
class Block:
    """One unit of a UNet.

    Attributes:
        ldm: path in a single file, without the `model.diffusion_model.` prefix.
        diffusers: path in diffusers' UNet.
        kind: "resnet", "attention", "downsample" or "upsample".
        depth: transformer blocks, for an attention.
        shortcut: whether a residual block changes the number of channels: "no", "level" (where the widths of two
            levels differ) or "yes".
    """

    ldm: str
    diffusers: str
    kind: str
    depth: int = 0
    shortcut: str = "no"


def down_blocks(unet: UNetSpec) -> Iterator[Block]:
    """Blocks of the way down, in order."""
    row = 1
    for level, depth in enumerate(unet.depths):
        here = f"down_blocks.{level}"
        for index in range(unet.resnets):
            shortcut = "level" if index == 0 and level > 0 else "no"
            yield Block(f"input_blocks.{row}.0", f"{here}.resnets.{index}", "resnet", shortcut=shortcut)
            if depth:
                yield Block(f"input_blocks.{row}.1", f"{here}.attentions.{index}", "attention", depth)
            row += 1
        if level < unet.levels - 1:
            yield Block(f"input_blocks.{row}.0.op", f"{here}.downsamplers.0.conv", "downsample")
            row += 1


def middle_blocks(unet: UNetSpec) -> Iterator[Block]:
    """The middle: residual block, attention, residual block."""
    yield Block("middle_block.0", "mid_block.resnets.0", "resnet")
    yield Block("middle_block.1", "mid_block.attentions.0", "attention", unet.mid_depth)
    yield Block("middle_block.2", "mid_block.resnets.1", "resnet")


def up_blocks(unet: UNetSpec) -> Iterator[Block]:
    """Blocks of the way up, in order; diffusers counts its levels from the coarsest."""
    row = 0
    for level, depth in enumerate(reversed(unet.depths)):
        here = f"up_blocks.{level}"
        for index in range(unet.resnets + 1):
            yield Block(f"output_blocks.{row}.0", f"{here}.resnets.{index}", "resnet", shortcut="yes")
            if depth:
                yield Block(f"output_blocks.{row}.1", f"{here}.attentions.{index}", "attention", depth)
            if index == unet.resnets and level < unet.levels - 1:
                position = 2 if depth else 1
                yield Block(f"output_blocks.{row}.{position}.conv", f"{here}.upsamplers.0.conv", "upsample")
            row += 1


def all_blocks(unet: UNetSpec) -> Iterator[Block]:
    """Every block in the order in which it runs."""
    yield from down_blocks(unet)
    yield from middle_blocks(unet)
    yield from up_blocks(unet)


# Parts of a residual block: (single file, diffusers).
RESNET_PARTS = (
    ("in_layers.0", "norm1"),
    ("in_layers.2", "conv1"),
    ("emb_layers.1", "time_emb_proj"),
    ("out_layers.0", "norm2"),
    ("out_layers.3", "conv2"),
)
RESNET_SHORTCUT = ("skip_connection", "conv_shortcut")

# Linear layers of one transformer block; both namings agree from here on.
TRANSFORMER_LINEARS = (
    "attn1.to_q",
    "attn1.to_k",
    "attn1.to_v",
    "attn1.to_out.0",
    "attn2.to_q",
    "attn2.to_k",
    "attn2.to_v",
    "attn2.to_out.0",
    "ff.net.0.proj",
    "ff.net.2",
)
TRANSFORMER_NORMS = ("norm1", "norm2", "norm3")
