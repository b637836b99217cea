"""Which layers a job trains, each with its rank, alpha and scale."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from trainers.bases.detect import BaseInfo
from trainers.errors import InputError
from trainers.formats.sites import Site, check_count, text_sites, unet_sites
from trainers.spec import Job


@dataclass(frozen=True)
class SitePlan:
    """One site with what the job says about it."""

    site: Site
    rank: int
    alpha: float
    scale: float
    block: str


def plan_sites(family: Any, job: Job) -> list[SitePlan]:
    """Every site that the job trains, in the family's order, with its rank, alpha and scale."""
    sites: list[Site] = []
    if job.train_unet:
        unet = unet_sites(family, conv3x3=job.conv_rank > 0)
        check_count(family, "unet", len(unet), conv3x3=job.conv_rank > 0)
        sites += unet
    if job.train_text_encoder:
        for index, encoder in enumerate(family.text_encoders):
            text = text_sites(family, index)
            check_count(family, encoder.component, len(text))
            sites += text
    plans = [plan for plan in (_plan(site, job) for site in sites) if plan.rank > 0]
    if not plans:
        raise InputError("block_ranks: every block is left out, so nothing would be trained.")
    return plans


def weight_shape(info: BaseInfo, site: Site) -> tuple[int, ...]:
    """The shape of a layer's weight, from the base's header; an InputError names a layer that the base has not."""
    shape = info.components[site.component].shapes.get(f"{site.path}.weight")
    if shape is None:
        raise InputError(
            f"base: {info.path.name} has no layer {site.path}, which every model of its kind ({info.family}) has; "
            "choose another base, or options that leave this layer out."
        )
    return tuple(shape)


def _plan(site: Site, job: Job) -> SitePlan:
    conv = site.kind == "conv3x3"
    block = site.block
    usual = job.conv_rank if conv else job.rank
    rank = int(job.block_ranks.get(block, usual))
    given = job.conv_alpha if conv else job.alpha
    alpha = float(given if given is not None else usual / 2)
    if rank != usual:  # a block of another rank keeps the same scale
        alpha *= rank / usual
    scale = alpha / math.sqrt(rank) if job.rslora and rank else alpha / max(rank, 1)
    return SitePlan(site, rank, alpha, scale, block)
