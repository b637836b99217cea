"""Readers of single values inside a tag: text -> number, curve, window edge, block weights, region.

Each takes the text between two colons (after the `=`) and raises `UnreadableValue` with what is wrong. Numbers are
converted, never evaluated.
"""

from __future__ import annotations

import math
import re

from .blocks import PRESETS, TABLES, Blocks
from .curves import Curve, Edge, Window
from .errors import UnreadableValue, has_control_characters, printable
from .names import nearest
from .regions import REGIONS, Region, named_region
from .tags import SCOPES

MAX_NUMBER_LENGTH = 40
MAX_WEIGHT = 10_000.0
"""A larger factor is infinite in half precision."""
MAX_STEP = 1_000_000
MAX_POINTS = 200
MAX_GRADIENT_STEPS = 200


def read_number(text: str) -> float:
    """A finite number as Python's float reads it (and so A1111): decimal digits of any script, exponents."""
    text = text.strip()
    if not text:
        raise UnreadableValue("a number is missing")
    if len(text) > MAX_NUMBER_LENGTH:
        raise UnreadableValue(f'"{printable(text, 20)}" is too long for a number')
    try:
        number = float(text)
    except ValueError:
        raise UnreadableValue(f'"{printable(text)}" is not a number') from None
    if not math.isfinite(number):
        raise UnreadableValue(f'"{printable(text)}" is not a finite number')
    return number


def read_weight(text: str) -> float:
    """A weight; negative ones turn the effect round."""
    number = read_number(text)
    if abs(number) > MAX_WEIGHT:
        raise UnreadableValue(f'"{printable(text.strip())}" is larger than {MAX_WEIGHT:.0f}, the largest weight')
    return number


def read_curve(text: str) -> Curve:
    """`0.8`, or points `weight@position` with `,` or `;` between them (`~` may stand for `@`), as in loractl.

    Positions are fractions when all are at most 1, else steps; a point without one stands at the end.
    """
    points = text.replace(";", ",").replace("~", "@").split(",")
    if len(points) > MAX_POINTS:
        raise UnreadableValue(f"a weight curve may have at most {MAX_POINTS} points, this one has {len(points)}")
    if len(points) == 1 and "@" not in text and "~" not in text:
        return Curve.flat(read_weight(text))
    pairs = [_read_point(point) for point in points]
    in_steps = any(position is not None and position > 1 for position, _ in pairs)
    if in_steps and any(position is None for position, _ in pairs):
        raise UnreadableValue(f'in "{printable(text)}" every weight needs a step, written weight@step')
    if all(position is None for position, _ in pairs):
        raise UnreadableValue(f'"{printable(text)}" is not a number; the points of a curve are written weight@position')
    placed = sorted(
        ((1.0 if position is None else position, weight) for position, weight in pairs), key=lambda pair: pair[0]
    )
    if len(placed) == 1:
        return Curve.flat(placed[0][1])
    return Curve(tuple(placed), in_steps)


def _read_point(text: str) -> tuple[float | None, float]:
    weight, at, position = text.partition("@")
    if not at:
        return None, read_weight(weight)
    place = read_number(position)
    if not 0 <= place <= MAX_STEP:
        raise UnreadableValue(f'"{printable(text.strip())}" stands at a place outside the run')
    return place + 0.0, read_weight(weight)


def read_rank(text: str) -> int:
    """How many ranks of a LoRA to use (`dyn`): a whole number, 0 or more."""
    text = text.strip()
    try:
        rank = int(text) if len(text) <= MAX_NUMBER_LENGTH else -1
    except ValueError:
        rank = -1
    if not 0 <= rank <= MAX_STEP:
        raise UnreadableValue(f'"{printable(text, 20)}" is not a number of ranks (a whole number, 0 or more)')
    return rank


def read_edge(text: str) -> Edge:
    """`5` is a step, `0.2` (with a point) a part of the run."""
    text = text.strip()
    if re.fullmatch(r"[0-9]{1,7}", text):
        return Edge(float(text), in_steps=True)
    if re.fullmatch(r"[0-9]{0,7}\.[0-9]{0,9}", text) and text != ".":
        number = float(text)
        if number <= 1:
            return Edge(number, in_steps=False)
        raise UnreadableValue(
            f'"{printable(text)}" is not inside the run: with a point it is a part of it, between 0.0 and 1.0'
        )
    raise UnreadableValue(f'"{printable(text)}" is neither a step such as 5 nor a part of the run such as 0.2')


def read_window(text: str) -> Window:
    """`step=5-15`: from and to; each end is read like `start=` and `stop=`."""
    start, dash, stop = text.partition("-")
    if not dash:
        raise UnreadableValue(f'"{printable(text)}" is not a window; write it as 5-15 or 0.2-0.8')
    return Window(read_edge(start), read_edge(stop))


def read_blocks(text: str) -> Blocks:
    """12, 17, 20 or 26 numbers with commas between them, or a preset's name in any case."""
    name = text.strip()
    if name.upper() in PRESETS:
        return Blocks(preset=name.upper())
    pieces = name.split(",")
    if len(pieces) == 1:
        hint = nearest(name, PRESETS)
        advice = f'did you mean "{hint}"?' if hint else f"there are {', '.join(PRESETS)}"
        raise UnreadableValue(f'no block weight preset is called "{printable(name)}"; {advice}')
    if len(pieces) not in TABLES:
        lengths = ", ".join(str(length) for length in sorted(TABLES))
        raise UnreadableValue(f"{len(pieces)} block weights are given; there must be one of {lengths}")
    return Blocks(values=tuple(read_weight(piece) for piece in pieces))


def read_scope(text: str) -> str:
    """`for=`: all, picture or part."""
    scope = text.strip().lower()
    if scope not in SCOPES:
        raise UnreadableValue(f'"{printable(text)}" is not one of {", ".join(SCOPES)}')
    return scope


def read_flag(text: str) -> bool:
    """`live=`: 1 or 0."""
    if text.strip() not in ("0", "1"):
        raise UnreadableValue(f'"{printable(text)}" is neither 1 nor 0')
    return text.strip() == "1"


def read_gradient_steps(text: str) -> int:
    """`steps=`: gradient steps on a copy of the text encoder; 0 leaves it as it is."""
    text = text.strip()
    steps = int(text) if re.fullmatch(r"[0-9]{1,4}", text) else -1
    if not 0 <= steps <= MAX_GRADIENT_STEPS:
        raise UnreadableValue(f'"{printable(text, 20)}" is not a whole number from 0 to {MAX_GRADIENT_STEPS}')
    return steps


def read_gradient_lr(text: str) -> float:
    """`lr=`: the learning rate of those steps."""
    rate = read_number(text)
    if not 0 <= rate <= 1:
        raise UnreadableValue(f'"{printable(text, 20)}" is not a rate from 0 to 1')
    return rate


def read_region(text: str) -> Region:
    """A region's name, else a mask file's name."""
    region = named_region(text)
    if region is not None:
        return region
    name = text.strip()
    if not name:
        raise UnreadableValue(f"a region is missing; there are {', '.join(REGIONS)}, or name a mask file")
    pieces = re.split(r"[/\\]", name)
    if not pieces[0] or ".." in pieces or name.startswith("~"):
        raise UnreadableValue(f'"{printable(name)}" is a path; name a file from the folder of masks')
    if has_control_characters(name):
        raise UnreadableValue(f'"{printable(name)}" has control characters in it')
    return Region(name)
