"""From the tags of a prompt to uses of adapters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from extension.injection.adapter_file import Adapter, Stamp
from extension.injection.aesthetic import AestheticUse
from extension.injection.hypernetworks import NetworkUse
from extension.injection.scales import Use, Whom
from extension.prompt.blocks import BASE, Blocks, block_of
from extension.prompt.tags import PART, PICTURE, Tag, constant_weights, effective
from trainers.formats.aesthetic import Aesthetic
from trainers.formats.hypernetworks import Hypernetwork
from trainers.formats.sites import Site


def block_factor(blocks: Blocks, family: str) -> Callable[[Site], float]:
    """The factor of each layer by `lbw=`; layers outside the blocks (time embedding, the ends) keep 1."""
    weights = blocks.weights(family)

    def factor(site: Site) -> float:
        block = block_of(site.ldm_path) if site.component == "unet" else BASE
        return 1.0 if block is None else weights[block]

    return factor


def whom(tag: Tag, picture: int) -> Whom:
    """Whom a tag in the prompt of `picture` acts on."""
    return Whom(
        negative=True if tag.negative else None,
        part=tag.part if tag.scope == PART and not tag.negative else None,
        picture=picture if tag.scope in (PICTURE, PART) else None,
        region=None if tag.region is None else tag.region.name,
    )


def use_of(tag: Tag, adapter: Adapter, family: str, picture: int = 0) -> Use:
    """What a tag asks for, as a use of its file.

    Args:
        family: of the loaded model; block weights are counted by its blocks.
        picture: index of the picture whose prompt the tag stood in.
    """

    def weight(component: str, step: float, total: int, hires: bool) -> float:
        now = effective(tag, step, total, hires)
        return now.unet if component == "unet" else now.te

    fixed = constant_weights(tag)
    return Use(
        adapter=adapter,
        weight=weight,
        factor=None if tag.blocks is None else block_factor(tag.blocks, family),
        whom=whom(tag, picture),
        ranks=tag.dyn,
        constant=fixed is not None and tag.hires is None,
        label=tag.source_text,
    )


def network_use_of(tag: Tag, network: Hypernetwork, picture: int = 0) -> NetworkUse:
    """What a tag asks for, as a use of a hypernetwork; `picture` as in `use_of`."""

    def weight(component: str, step: float, total: int, hires: bool) -> float:
        return effective(tag, step, total, hires).unet

    return NetworkUse(network, weight, whom(tag, picture))


def aesthetic_use_of(tag: Tag, embedding: Aesthetic, stamp: Stamp, picture: int = 0) -> AestheticUse:
    """What a tag asks for, as a use of an aesthetic gradient: on the prompt it stands in, never on the other one."""

    def weight(component: str, step: float, total: int, hires: bool) -> float:
        return effective(tag, step, total, hires).te

    mine = replace(whom(tag, picture), negative=tag.negative)
    return AestheticUse(embedding, stamp, weight, mine, tag.steps, tag.lr, tag.slerp, tag.source_text)
