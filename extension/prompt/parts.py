"""AND parts of a prompt, split as A1111 does: at the word AND in capitals, each with an optional `:weight`."""

from __future__ import annotations

import re
from bisect import bisect_right
from typing import NamedTuple

_AND = re.compile(r"\bAND\b")
_WEIGHT = re.compile(r"[-+]?(?:\d+\.?|\d*\.\d+)")
_LONGEST_WEIGHT = 40


class Part(NamedTuple):
    """One AND part: its text without the weight, the weight, and its span in the clean text."""

    text: str
    weight: float
    start: int
    end: int


def split_parts(clean_text: str) -> tuple[Part, ...]:
    """The AND parts of a text without tags; at least one."""
    parts = []
    start = 0
    for match in _AND.finditer(clean_text):
        parts.append(_part(clean_text, start, match.start()))
        start = match.end()
    parts.append(_part(clean_text, start, len(clean_text)))
    return tuple(parts)


def part_index(parts: tuple[Part, ...], position: int) -> int:
    """The part in which `position` of the clean text lies; inside the word AND it is the part before."""
    return max(bisect_right(parts, position, key=lambda part: part.start) - 1, 0)


def _part(clean_text: str, start: int, end: int) -> Part:
    text = clean_text[start:end].rstrip()
    before, colon, after = text.rpartition(":")
    number = after.strip()
    if colon and number and len(number) <= _LONGEST_WEIGHT and _WEIGHT.fullmatch(number):
        return Part(before.rstrip(), float(number), start, end)
    return Part(text, 1.0, start, end)
