"""Finds tags in prompt text in one pass from left to right, and cuts them at their colons.

What counts as a tag is what A1111's `<(\\w+):([^>]+)>` takes, for the kinds we know: from `<kind:` to the next `>`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

TAG, ESCAPED, EMPTY, UNCLOSED, MISSPELT = "tag", "escaped", "empty", "unclosed", "misspelt"


class Mark(NamedTuple):
    """A place in the text.

    Attributes:
        what: TAG; ESCAPED (`\\<lora:x>`, the backslash is inside the span); EMPTY (`<lora:>`); UNCLOSED (no `>`
            follows anywhere; only the first of a text is reported); MISSPELT (`<LoRA:x>`: the host knows no such kind).
        kind: the word before the colon.
        start, end: its span in the text.
    """

    what: str
    kind: str
    start: int
    end: int


class Item(NamedTuple):
    """A piece of a tag between colons and its span in the text."""

    text: str
    start: int
    end: int


def scan(text: str, kinds: frozenset[str]) -> Iterator[Mark]:
    """Marks in the order of the text, none overlapping another. Takes time proportional to the text's length."""
    longest = max(map(len, kinds), default=0)
    position = close = 0
    while (start := text.find("<", position)) >= 0:
        position = start + 1
        kind = _kind_at(text, start, kinds, longest)
        if kind is None:
            continue
        body = start + len(kind) + 2
        if 0 <= close < body:
            close = text.find(">", body)
        escaped = _is_escaped(text, start)
        if close < 0:
            if escaped or kind not in kinds:
                continue
            yield Mark(UNCLOSED, kind, start, len(text))
            return
        if kind not in kinds:
            if not escaped and close > body:
                yield Mark(MISSPELT, kind, start, close + 1)
            continue
        if close == body:
            if not escaped:
                yield Mark(EMPTY, kind, start, close + 1)
        elif escaped:
            yield Mark(ESCAPED, kind, start - 1, close + 1)
        else:
            yield Mark(TAG, kind, start, close + 1)
        position = close + 1


def split_items(text: str, mark: Mark) -> list[Item]:
    """What stands between the colons of a TAG after its kind; at least one item."""
    items = []
    start = mark.start + len(mark.kind) + 2
    for piece in text[start : mark.end - 1].split(":"):
        items.append(Item(piece, start, start + len(piece)))
        start += len(piece) + 1
    return items


def _kind_at(text: str, start: int, kinds: frozenset[str], longest: int) -> str | None:
    """The word between `<` at `start` and a colon, when it is a known kind in any case."""
    colon = text.find(":", start + 1, start + longest + 2)
    if colon < 0:
        return None
    word = text[start + 1 : colon]
    return word if word.lower() in kinds else None


def _is_escaped(text: str, start: int) -> bool:
    """Whether an odd number of backslashes stands before `start` (two are one backslash, as in A1111)."""
    before = start
    while before > 0 and text[before - 1] == "\\":
        before -= 1
    return (start - before) % 2 == 1
