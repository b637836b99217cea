"""Weights inside a prompt, as A1111 reads them: `(a)`, `(a:1.2)`, `[a]`, escapes, and BREAK."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

UP, DOWN = 1.1, 1 / 1.1
LARGEST = 1e4
"""A larger factor is infinite in half precision; deep nesting must not get there."""

_TOKEN = re.compile(r"\\[()\[\]\\]|\\|[()\[\]]|:\s*([+-]?[.\d]{1,40})\s*\)|[^\\()\[\]:]+|:")
_BREAK = re.compile(r"\s*\bBREAK\b\s*")


class Piece(NamedTuple):
    """Text of one weight; with `breaks` it stands for the word BREAK, which ends a chunk."""

    text: str
    weight: float = 1.0
    breaks: bool = False


class _Reader:
    """Collects pieces; an open bracket remembers the first piece inside it."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.weights: list[float] = []
        self.breaks: set[int] = set()
        self.round: list[int] = []
        self.square: list[int] = []

    def put(self, text: str) -> None:
        self.texts.append(text)
        self.weights.append(1.0)

    def put_broken(self, text: str) -> None:
        """Text in which the word BREAK may stand."""
        for number, part in enumerate(_BREAK.split(text)):
            if number:
                self.breaks.add(len(self.texts))
                self.put("")
            self.put(part)

    def multiply(self, start: int, factor: float) -> None:
        for position in range(start, len(self.weights)):
            self.weights[position] = max(-LARGEST, min(LARGEST, self.weights[position] * factor))

    def close(self) -> None:
        """Brackets that are left open reach to the end."""
        for start in self.round:
            self.multiply(start, UP)
        for start in self.square:
            self.multiply(start, DOWN)

    def pieces(self) -> list[Piece]:
        """Neighbours of the same weight are joined."""
        joined: list[Piece] = []
        for number, (text, weight) in enumerate(zip(self.texts, self.weights, strict=True)):
            if number in self.breaks:
                joined.append(Piece("", 1.0, True))
            elif joined and not joined[-1].breaks and joined[-1].weight == weight:
                joined[-1] = Piece(joined[-1].text + text, weight)
            elif text or not joined:
                joined.append(Piece(text, weight))
        return joined or [Piece("")]


def _number(text: str | None) -> float | None:
    try:
        value = float(text) if text is not None else None
    except ValueError:
        return None
    return value if value is not None and math.isfinite(value) else None


def read_attention(text: str) -> list[Piece]:
    """The pieces of a prompt in order; at least one. Never raises: what is no valid syntax is text."""
    reader = _Reader()
    for match in _TOKEN.finditer(text):
        token = match.group(0)
        weight = _number(match.group(1))
        if token[0] == "\\":
            reader.put(token[1:])  # a backslash that escapes nothing is dropped
        elif token == "(":
            reader.round.append(len(reader.texts))
        elif token == "[":
            reader.square.append(len(reader.texts))
        elif weight is not None and reader.round:
            reader.multiply(reader.round.pop(), weight)
        elif token == ")" and reader.round:
            reader.multiply(reader.round.pop(), UP)
        elif token == "]" and reader.square:
            reader.multiply(reader.square.pop(), DOWN)
        else:
            reader.put_broken(token)
    reader.close()
    return reader.pieces()
