"""The layers an adapter can sit on, with their names in every naming.

The names come from the family's table and never from a module's `named_modules()`: libraries rename their classes and
levels (transformers 5 dropped `text_model.` from CLIPTextModel), files do not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from trainers.formats.families import FAMILIES, Family
from trainers.formats.unet_blocks import RESNET_PARTS, RESNET_SHORTCUT, TRANSFORMER_LINEARS, Block, all_blocks


@dataclass(frozen=True)
class Site:
    """One layer that can carry an adapter.

    Attributes:
        name: the full kohya name, e.g. `lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q`.
        component: "unet", "text_encoder" or "text_encoder_2".
        path: the module in diffusers or transformers, always with the `text_model.` level.
        ldm_path: the module in a single file, without the component's prefix. For q, k and v of an open_clip encoder
            it is the fused `attn.in_proj`, and `ldm_part` says which third.
        kind: "linear", "conv1x1" or "conv3x3".
        ldm_part: 0, 1 or 2 for a third of a fused layer, else None.
    """

    name: str
    component: str
    path: str
    ldm_path: str
    kind: str
    ldm_part: int | None = None

    @property
    def block(self) -> str:
        """The part of the network it belongs to: down_0, mid, up_3, text, text_2."""
        if self.component != "unet":
            return "text" if self.component == "text_encoder" else "text_2"
        parts = self.path.split(".")
        return "mid" if parts[0] == "mid_block" else f"{parts[0].partition('_')[0]}_{parts[1]}"


def _attention_paths(block: Block, projection: str) -> Iterator[tuple[str, str]]:
    yield "proj_in", projection
    for index in range(block.depth):
        for linear in TRANSFORMER_LINEARS:
            yield f"transformer_blocks.{index}.{linear}", "linear"
    yield "proj_out", projection


def _unet_site(family: Family, ldm: str, diffusers: str, kind: str) -> Site:
    flat = (ldm if family.unet.sgm_names else diffusers).replace(".", "_")
    return Site(f"lora_unet_{flat}", "unet", diffusers, ldm, kind)


def _resnet_sites(family: Family, block: Block) -> Iterator[Site]:
    for ldm, diffusers in RESNET_PARTS:
        if "norm" not in diffusers:
            kind = "linear" if diffusers == "time_emb_proj" else "conv3x3"
            yield _unet_site(family, f"{block.ldm}.{ldm}", f"{block.diffusers}.{diffusers}", kind)
    if block.shortcut == "yes" or (block.shortcut == "level" and _widens(family, block)):
        ldm, diffusers = RESNET_SHORTCUT
        yield _unet_site(family, f"{block.ldm}.{ldm}", f"{block.diffusers}.{diffusers}", "conv1x1")


def _widens(family: Family, block: Block) -> bool:
    """Every published family widens from level to level, except into a fourth one."""
    return int(block.diffusers.split(".")[1]) < 3


@cache
def _unet_sites(family_name: str, conv3x3: bool) -> tuple[Site, ...]:
    family = FAMILIES[family_name]
    sites: list[Site] = []
    projection = "linear" if family.unet.linear_projection else "conv1x1"
    for block in all_blocks(family.unet):
        if block.kind == "attention":
            for part, kind in _attention_paths(block, projection):
                sites.append(_unet_site(family, f"{block.ldm}.{part}", f"{block.diffusers}.{part}", kind))
        elif conv3x3 and block.kind == "resnet":
            sites.extend(_resnet_sites(family, block))
        elif conv3x3:
            sites.append(_unet_site(family, block.ldm, block.diffusers, "conv3x3"))
    return tuple(sites)


def unet_sites(family: Family, conv3x3: bool = False) -> tuple[Site, ...]:
    """The UNet's sites in the order in which they run.

    Without `conv3x3`: every linear layer and 1x1 convolution of the attentions (192 for SD1 and SD2, 722 for SDXL).
    With it, also the residual blocks' layers and the samplers (278, 788): what sd-scripts calls conv_dim.
    """
    return _unet_sites(family.name, conv3x3)


# Parts of a CLIP layer: (transformers, open_clip, third of the fused projection).
_CLIP_LINEARS = (
    ("self_attn.q_proj", "attn.in_proj", 0),
    ("self_attn.k_proj", "attn.in_proj", 1),
    ("self_attn.v_proj", "attn.in_proj", 2),
    ("self_attn.out_proj", "attn.out_proj", None),
    ("mlp.fc1", "mlp.c_fc", None),
    ("mlp.fc2", "mlp.c_proj", None),
)


@cache
def _text_sites(family_name: str, index: int) -> tuple[Site, ...]:
    encoder = FAMILIES[family_name].text_encoders[index]
    sites = []
    for layer in range(encoder.layers):
        for part, open_clip, third in _CLIP_LINEARS:
            path = f"text_model.encoder.layers.{layer}.{part}"
            ldm = path if encoder.ldm_layout == "hf" else f"transformer.resblocks.{layer}.{open_clip}"
            name = f"{encoder.kohya_prefix}_{path.replace('.', '_')}"
            sites.append(
                Site(name, encoder.component, path, ldm, "linear", third if encoder.ldm_layout != "hf" else None)
            )
    return tuple(sites)


def text_sites(family: Family, index: int) -> tuple[Site, ...]:
    """Sites of text encoder `index`: six linear layers of each layer that is used."""
    return _text_sites(family.name, index)


def component_sites(family: Family, component: str, conv3x3: bool = False) -> tuple[Site, ...]:
    """Sites of one component by its name."""
    if component == "unet":
        return unet_sites(family, conv3x3)
    index = [encoder.component for encoder in family.text_encoders].index(component)
    return text_sites(family, index)


def all_sites(family: Family, conv3x3: bool = True) -> tuple[Site, ...]:
    """Every site of the family, the UNet's first."""
    return tuple(site for component in family.components for site in component_sites(family, component, conv3x3))


@cache
def _by_name(family_name: str) -> dict[str, Site]:
    return {site.name: site for site in all_sites(FAMILIES[family_name])}


def site_by_name(family: Family, name: str) -> Site | None:
    """The site with this kohya name, or None."""
    return _by_name(family.name).get(name)


def expected_count(family: Family, component: str, conv3x3: bool = False) -> int:
    """The published number of sites of a component (a constant, not a count of our own table)."""
    if component == "unet":
        return family.unet_conv3x3_site_count if conv3x3 else family.unet_site_count
    index = [encoder.component for encoder in family.text_encoders].index(component)
    return family.text_site_counts[index]


def check_count(family: Family, component: str, count: int, conv3x3: bool = False) -> None:
    """Raises `RuntimeError` unless `count` sites of the component were found: a wrong count stops a run.

    A trainer that goes on with fewer sites trains only a part of the model and says nothing.
    """
    expected = expected_count(family, component, conv3x3)
    if count != expected:
        raise RuntimeError(f"{family.name} {component}: {count} layers were found where {expected} were expected")
