"""One component of a base model (UNet, text encoder, autoencoder) under the names diffusers and transformers use.

Whatever naming a file has, the rest of the program sees canonical names: diffusers' for UNet and autoencoder,
transformers' with the `text_model.` level for text encoders.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from trainers.bases.source import Source
from trainers.formats.families import Family, TextEncoderSpec
from trainers.formats.ldm_keys import (
    OPEN_CLIP_PROJECTION,
    VAE_OLD_ATTENTION,
    open_clip_fused,
    open_clip_key_map,
    unet_key_map,
    vae_key_map,
    vae_structure,
)


@dataclass(frozen=True)
class Piece:
    """How one canonical tensor comes out of a stored one.

    Attributes:
        stored: name in the source.
        shape: shape it will have.
        change: "" (as it is), "transpose", "matrix" (a 1x1 convolution as a matrix), "conv" (a matrix as a 1x1
            convolution) or "third" (rows of a fused projection).
        third: which third.
    """

    stored: str
    shape: tuple[int, ...]
    change: str = ""
    third: int = 0

    def apply(self, tensor: torch.Tensor) -> torch.Tensor:
        """The canonical tensor; a view where possible."""
        if self.change == "transpose":
            return tensor.t().contiguous()
        if self.change == "third":
            return tensor.chunk(3)[self.third]
        return tensor.reshape(self.shape) if self.change else tensor


@dataclass
class Component:
    """Canonical names of a component and how to load them.

    Attributes:
        left_over: stored names under the component's prefix that are not understood.
    """

    source: Source
    pieces: dict[str, Piece]
    left_over: list[str] = field(default_factory=list)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: piece.shape for name, piece in self.pieces.items()}

    @property
    def parameters(self) -> int:
        """Number of values in the component."""
        return sum(torch.Size(piece.shape).numel() for piece in self.pieces.values())

    @property
    def stored_bytes(self) -> int:
        """Bytes the component takes in the file."""
        used = {piece.stored for piece in self.pieces.values()}
        return sum(self.source.tensors[name].nbytes for name in used)

    @property
    def stored_dtype(self) -> str:
        """The number format most of the component is stored in (safetensors' name, e.g. "F16")."""
        sizes: dict[str, int] = {}
        for piece in self.pieces.values():
            info = self.source.tensors[piece.stored]
            sizes[info.dtype] = sizes.get(info.dtype, 0) + info.numel
        return max(sizes, key=sizes.__getitem__) if sizes else "F32"

    def load(self, dtype: torch.dtype | None, device: torch.device | str = "cpu") -> dict[str, torch.Tensor]:
        """The tensors under canonical names; those already in `dtype` stay in the file's memory mapping."""
        stored = self.source.load({piece.stored for piece in self.pieces.values()}.__contains__)
        return {
            name: piece.apply(stored[piece.stored]).to(device=device, dtype=dtype)
            for name, piece in self.pieces.items()
        }


def _plain(source: Source, pairs: Mapping[str, str]) -> dict[str, Piece]:
    return {
        canonical: Piece(stored, source.tensors[stored].shape)
        for stored, canonical in pairs.items()
        if stored in source.tensors
    }


def _left_over(source: Source, pieces: Mapping[str, Piece]) -> list[str]:
    used = {piece.stored for piece in pieces.values()}
    return [name for name in source.tensors if name not in used]


def _as_matrix(piece: Piece) -> Piece:
    return Piece(piece.stored, piece.shape[:2], "matrix") if len(piece.shape) == 4 else piece


def _as_conv(piece: Piece) -> Piece:
    return Piece(piece.stored, (*piece.shape, 1, 1), "conv") if len(piece.shape) == 2 else piece


def unet_component(source: Source, family: Family, ldm: bool) -> Component:
    """The UNet from `source`, whose names have no prefix any more."""
    names = dict(unet_key_map(family)) if ldm else {canonical: canonical for _, canonical in unet_key_map(family)}
    pieces = _plain(source, names)
    shaped = _as_matrix if family.unet.linear_projection else _as_conv
    for name in pieces:
        if name.endswith(("proj_in.weight", "proj_out.weight")) and ".attentions." in name:
            pieces[name] = shaped(pieces[name])
    return Component(source, pieces, _left_over(source, pieces))


def _modern_vae_name(name: str) -> str:
    """diffusers' name of today for one of before 0.17."""
    for old, new in VAE_OLD_ATTENTION:
        name = re.sub(rf"(mid_block\.attentions\.0)\.{old}\.", rf"\1.{new}.", name)
    return name


def vae_component(source: Source) -> Component:
    """The autoencoder from `source`, in either naming."""
    levels, resnets = vae_structure(source.tensors)
    ldm = any(name.startswith("encoder.down.") for name in source.tensors)
    pairs = vae_key_map(levels, resnets)
    if ldm:
        names = dict(pairs)
    else:
        known = {canonical for _, canonical in pairs}
        names = {name: _modern_vae_name(name) for name in source.tensors if _modern_vae_name(name) in known}
    pieces = _plain(source, names)
    for name in pieces:
        if ".attentions.0.to_" in name and name.endswith(".weight"):
            pieces[name] = _as_matrix(pieces[name])
    return Component(source, pieces, _left_over(source, pieces))


_HF_ROOTS = ("embeddings.", "encoder.", "final_layer_norm.")


def _hf_text_names(source: Source, encoder: TextEncoderSpec) -> dict[str, str]:
    names = {}
    for name in source.tensors:
        canonical = f"text_model.{name}" if name.startswith(_HF_ROOTS) else name
        layer = re.match(r"text_model\.encoder\.layers\.(\d+)\.", canonical)
        if canonical.endswith("position_ids") or (layer and int(layer[1]) >= encoder.layers):
            continue
        if canonical.startswith("text_model.") or (encoder.pooled and canonical == "text_projection.weight"):
            names[name] = canonical
    return names


def _open_clip_pieces(source: Source, encoder: TextEncoderSpec) -> dict[str, Piece]:
    pieces = _plain(source, dict(open_clip_key_map(encoder.layers)))
    for stored, parts in open_clip_fused(encoder.layers):
        if stored in source.tensors:
            shape = source.tensors[stored].shape
            for third, canonical in enumerate(parts):
                pieces[canonical] = Piece(stored, (shape[0] // 3, *shape[1:]), "third", third)
    stored, canonical = OPEN_CLIP_PROJECTION
    if encoder.pooled:
        if stored in source.tensors:
            pieces[canonical] = Piece(stored, tuple(reversed(source.tensors[stored].shape)), "transpose")
        elif f"{stored}.weight" in source.tensors:  # some merges keep it as a linear layer
            pieces[canonical] = Piece(f"{stored}.weight", source.tensors[f"{stored}.weight"].shape)
    return pieces


def text_component(source: Source, encoder: TextEncoderSpec) -> Component:
    """A text encoder from `source` (prefix removed), in transformers' or open_clip's naming."""
    if any(name.startswith("transformer.resblocks.") for name in source.tensors):
        pieces = _open_clip_pieces(source, encoder)
    else:
        pieces = _plain(source, _hf_text_names(source, encoder))
    return Component(source, pieces, _left_over(source, pieces))
