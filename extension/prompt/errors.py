"""What a person is told about a tag that cannot be read, and how prompt text is shown in such a sentence."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

SHOWN_LENGTH = 80
"""Prompt text quoted in a sentence is cut at this many characters."""

_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


@dataclass(frozen=True)
class TagError:
    """One clear sentence about one tag.

    Attributes:
        message: the sentence; safe to show (control and bidirectional characters are spelled out).
        start, end: the piece of the prompt that is meant, as indices into the text that was parsed.
        text: the whole tag as it was typed.
        tag_used: True when the tag still acts (an option was ignored), False when it does not act at all.
    """

    message: str
    start: int
    end: int
    text: str
    tag_used: bool = False

    def __str__(self) -> str:
        return self.message


class UnreadableValue(ValueError):
    """Raised by the readers of single values: what is wrong, without the tag it stands in."""


def printable(text: str, limit: int = SHOWN_LENGTH) -> str:
    """`text` on one line, cut to `limit` characters, with everything that could deceive the eye spelled out."""
    shown = "".join(_spelled(character) for character in text[:limit])
    return shown + "…" if len(text) > limit else shown


def _spelled(character: str) -> str:
    if character in _BIDI or unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp"):
        return f"\\u{ord(character):04x}"
    return character


def has_control_characters(text: str) -> bool:
    """True for line breaks, NUL and the like: no file that a WebUI lists has them in its name."""
    return any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in text)
