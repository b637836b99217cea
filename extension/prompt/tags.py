"""What a tag asks for, as plain data, and how strongly it acts at each step."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from .blocks import Blocks
from .curves import ALWAYS, ONE, Curve, Window
from .regions import Region

KINDS = frozenset({"lora", "lyco", "ti", "hypernet", "aesthetic"})
"""Kinds of tags this grammar reads; everything else in angle brackets is text."""

ADAPTER_KINDS = frozenset({"lora", "lyco"})
"""Two spellings of the same thing: a file of adapter layers."""

GRADIENT_STEPS, GRADIENT_LR = 5, 1e-4
"""What an aesthetic gradient takes where its tag does not say."""

ALL, PICTURE, PART = "all", "picture", "part"
SCOPES = (ALL, PICTURE, PART)


class Weights(NamedTuple):
    """Strength at one moment: of the text encoders and of the UNet."""

    te: float
    unet: float


OFF = Weights(0.0, 0.0)


@dataclass(frozen=True)
class Strength:
    """Strength over a pass: a curve for the text encoders and one for the UNet."""

    te: Curve
    unet: Curve


@dataclass(frozen=True)
class Tag:
    """One tag of a prompt.

    Attributes:
        kind: "lora", "lyco", "ti", "hypernet" or "aesthetic".
        name: as it was typed, spaces included; resolve it with `names.resolve`.
        te, unet: weight curves; equal for embeddings and hypernetworks.
        dyn: how many ranks to use, None for all.
        window: the steps in which it acts.
        blocks: block weights or None.
        hires: other curves for the hires pass or None.
        scope: whom it acts on: "all" (every row of every picture of the batch), "picture" (the rows of its own picture)
            or "part" (the rows of its own AND part).
        negative: it stood in the negative prompt and acts on negative rows only.
        region: where in the picture, None for everywhere.
        steps, lr, slerp: how an aesthetic gradient moves its copy of the text encoder, and how that is blended in.
        live: take the newest snapshot of a run in progress.
        part: index of the AND part it stood in.
        span, clean_span: its place in the text that was parsed, and in the clean text (empty where it was taken out).
        source_text: the tag as typed.

    The places and the source text do not count when tags are compared.
    """

    kind: str
    name: str
    te: Curve = ONE
    unet: Curve = ONE
    dyn: int | None = None
    window: Window = ALWAYS
    blocks: Blocks | None = None
    hires: Strength | None = None
    scope: str = ALL
    negative: bool = False
    region: Region | None = None
    steps: int = GRADIENT_STEPS
    lr: float = GRADIENT_LR
    slerp: bool = False
    live: bool = False
    part: int = 0
    span: tuple[int, int] = field(default=(0, 0), compare=False)
    clean_span: tuple[int, int] = field(default=(0, 0), compare=False)
    source_text: str = field(default="", compare=False)

    def strength(self, hires: bool = False) -> Strength:
        """The curves of the first or of the hires pass."""
        return self.hires if hires and self.hires is not None else Strength(self.te, self.unet)


def effective(tag: Tag, step: float, total: int, hires: bool = False) -> Weights:
    """How strongly `tag` acts on the step that follows after `step` of `total` steps of this pass.

    The text encoders' weight is meant for conditioning computed for that step.
    """
    if not tag.window.is_open(step, total):
        return OFF
    strength = tag.strength(hires)
    return Weights(strength.te.at(step, total), strength.unet.at(step, total))


def schedule(tag: Tag, total: int, hires: bool = False) -> list[Weights]:
    """`effective` for every step of a pass of `total` steps."""
    return [effective(tag, step, total, hires) for step in range(total)]


def constant_weights(tag: Tag, hires: bool = False) -> Weights | None:
    """The weights where they are the same at every step of a pass of any length, else None."""
    strength = tag.strength(hires)
    te, unet = strength.te.constant, strength.unet.constant
    if tag.window != ALWAYS or te is None or unet is None:
        return None
    return Weights(te, unet)


def combine(tags: Iterable[Tag]) -> list[Tag]:
    """Among the tags of one row, an adapter named several times with constant weights becomes one tag with their sum.

    Tags are added only when everything else about them is equal (blocks, window, scope, region, …); the others stay as
    they are. Order and places are those of the first mention.
    """
    combined: dict[object, Tag] = {}
    for index, tag in enumerate(tags):
        if constant_weights(tag) is None or constant_weights(tag, hires=True) is None:
            combined[index] = tag
            continue
        kind = "lora" if tag.kind in ADAPTER_KINDS else tag.kind
        part = tag.part if tag.scope == PART else 0
        key = replace(tag, kind=kind, te=ONE, unet=ONE, hires=None, part=part)
        combined[key] = _sum(combined[key], tag) if key in combined else tag
    return list(combined.values())


def _sum(first: Tag, second: Tag) -> Tag:
    hires = None
    if first.hires is not None or second.hires is not None:
        one, other = first.strength(hires=True), second.strength(hires=True)
        hires = Strength(_add(one.te, other.te), _add(one.unet, other.unet))
    return replace(first, te=_add(first.te, second.te), unet=_add(first.unet, second.unet), hires=hires)


def _add(first: Curve, second: Curve) -> Curve:
    return Curve.flat((first.constant or 0.0) + (second.constant or 0.0))
