"""A tag as text again, in one canonical spelling: for buttons that put tags into the prompt and for fingerprints."""

from __future__ import annotations

from .blocks import Blocks
from .curves import ALWAYS, ONE, Curve, Edge, Window
from .options import OPTION_NAMES
from .tags import ADAPTER_KINDS, ALL, GRADIENT_LR, GRADIENT_STEPS, Tag


def format_tag(tag: Tag) -> str:
    """`tag` in the shortest common form; parsing it gives an equal tag (in the prompt it came from).

    ValueError for a name that no tag can hold (with a colon or `>` in it, or empty).
    """
    items = [_checked_name(tag.name)]
    items += _weights(tag) if tag.kind in ADAPTER_KINDS else _single_weight(tag)
    items += _window(tag.window)
    if tag.blocks is not None:
        items.append(f"lbw={_blocks(tag.blocks)}")
    if tag.hires is not None:
        te, unet = format_curve(tag.hires.te), format_curve(tag.hires.unet)
        items += [f"hr={te}"] if te == unet else [f"hrte={te}", f"hrunet={unet}"]
    if tag.scope != ALL:
        items.append(f"for={tag.scope}")
    if tag.region is not None:
        items.append(f"mask={tag.region.name}")
    if tag.steps != GRADIENT_STEPS:
        items.append(f"steps={tag.steps}")
    if tag.lr != GRADIENT_LR:
        items.append(f"lr={format_number(tag.lr)}")
    if tag.slerp:
        items.append("slerp=1")
    if tag.live:
        items.append("live=1")
    return f"<{tag.kind}:{':'.join(items)}>"


def format_curve(curve: Curve) -> str:
    """`0.8`, or points `0@0,1@0.5`."""
    if len(curve.points) == 1:
        return format_number(curve.points[0][1])
    return ",".join(f"{format_number(weight)}@{format_number(position)}" for position, weight in curve.points)


def format_number(number: float) -> str:
    """The shortest text that reads as the same number, without a needless `.0`."""
    return repr(number).removesuffix(".0")


def _checked_name(name: str) -> str:
    key, equals, _ = name.partition("=")
    reads_as_option = equals and key.strip().lower() in OPTION_NAMES
    if not name.strip() or reads_as_option or any(character in name for character in ":>"):
        raise ValueError(f"a tag cannot hold the name {name!r}")
    return name


def _weights(tag: Tag) -> list[str]:
    items = []
    if tag.te == tag.unet:
        if tag.te != ONE:
            items.append(format_curve(tag.te))
    else:
        items += [f"te={format_curve(tag.te)}", f"unet={format_curve(tag.unet)}"]
    if tag.dyn is not None:
        items.append(f"dyn={tag.dyn}")
    return items


def _single_weight(tag: Tag) -> list[str]:
    return [] if tag.unet == ONE else [format_curve(tag.unet)]


def _window(window: Window) -> list[str]:
    if window == ALWAYS:
        return []
    if window.start is not None and window.stop is not None:
        return [f"step={_edge(window.start)}-{_edge(window.stop)}"]
    return [f"start={_edge(window.start)}"] if window.start is not None else [f"stop={_edge(window.stop)}"]


def _edge(edge: Edge | None) -> str:
    assert edge is not None
    return str(int(edge.value)) if edge.in_steps else f"{edge.value:.9f}".rstrip("0")


def _blocks(blocks: Blocks) -> str:
    return blocks.preset or ",".join(format_number(value) for value in blocks.values)
