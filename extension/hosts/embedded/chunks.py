"""From a prompt to chunks of 75 tokens, as A1111 cuts them, with a weight for every token and embeddings in place."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from extension.hosts.embedded.attention import read_attention
from extension.injection.embeddings import Embedding
from trainers.bases.text import BACKTRACK, BEGIN_ID, CHUNK, COMMA_ID, END_ID

MARK_OPEN, MARK_CLOSE = "\ue000", "\ue001"
"""Around a number they stand for one `<ti:…>` tag in a text; typed ones are taken out before."""
_MARK = re.compile(f"{MARK_OPEN}(\\d{{1,6}}){MARK_CLOSE}")

Encode = Callable[[str], Sequence[int]]


@dataclass(frozen=True)
class Placed:
    """An embedding inside a chunk, and the position of its first token (begin counted)."""

    position: int
    embedding: Embedding

    def vectors(self, encoder: str) -> Tensor:
        """What stands there instead of the tokens, [n, width]."""
        return self.embedding.vectors[encoder]


@dataclass
class Chunk:
    """Up to 75 tokens."""

    tokens: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    placed: list[Placed] = field(default_factory=list)

    def ids(self, pads_with_end: bool) -> list[int]:
        """77 ids: begin, the tokens, end, and the padding."""
        padding = END_ID if pads_with_end else 0
        return [BEGIN_ID, *self.tokens, END_ID, *[padding] * (CHUNK - len(self.tokens))]

    def multipliers(self) -> list[float]:
        """77 weights; what is not a token of the prompt has 1."""
        return [1.0, *self.weights, 1.0, *[1.0] * (CHUNK - len(self.weights))]


class Words:
    """Embeddings by the tokens of their names."""

    def __init__(self, encode: Encode, embeddings: Sequence[Embedding]) -> None:
        self._by_first: dict[int, list[tuple[tuple[int, ...], Embedding]]] = {}
        for embedding in embeddings:
            ids = tuple(encode(embedding.name))
            if ids:
                self._by_first.setdefault(ids[0], []).append((ids, embedding))
        for found in self._by_first.values():
            found.sort(key=lambda entry: len(entry[0]), reverse=True)

    def at(self, tokens: Sequence[int], position: int) -> tuple[Embedding | None, int]:
        """The embedding whose name begins at `position` (the longest), and how many tokens the name takes."""
        for ids, embedding in self._by_first.get(tokens[position], ()):
            if tuple(tokens[position : position + len(ids)]) == ids:
                return embedding, len(ids)
        return None, 1


class _Cutter:
    """Puts tokens into chunks; where a chunk is full, what follows its last near comma moves on."""

    def __init__(self) -> None:
        self.done: list[Chunk] = []
        self.chunk = Chunk()
        self.comma = -1

    def next(self) -> None:
        self.done.append(self.chunk)
        self.chunk, self.comma = Chunk(), -1

    def token(self, token: int, weight: float) -> None:
        if token == COMMA_ID:
            self.comma = len(self.chunk.tokens)
        else:
            self._move_on()
        if len(self.chunk.tokens) == CHUNK:
            self.next()
        self.chunk.tokens.append(token)
        self.chunk.weights.append(weight)

    def embedding(self, embedding: Embedding, weight: float) -> None:
        self._move_on()
        if len(self.chunk.tokens) + embedding.count > CHUNK:
            self.next()
        self.chunk.placed.append(Placed(len(self.chunk.tokens) + 1, embedding))
        self.chunk.tokens += [0] * embedding.count
        self.chunk.weights += [weight] * embedding.count

    def _move_on(self) -> None:
        chunk, cut = self.chunk, self.comma + 1
        if len(chunk.tokens) < CHUNK or self.comma < 0 or CHUNK - self.comma > BACKTRACK:
            return
        kept = [one for one in chunk.placed if one.position <= cut]
        moved = [Placed(one.position - cut, one.embedding) for one in chunk.placed if one.position > cut]
        rest = Chunk(chunk.tokens[cut:], chunk.weights[cut:], moved)
        self.chunk = Chunk(chunk.tokens[:cut], chunk.weights[:cut], kept)
        self.next()
        self.chunk = rest


def cut_prompt(
    text: str, encode: Encode, words: Words, marked: Mapping[int, tuple[Embedding, float]] | None = None
) -> list[Chunk]:
    """The chunks of a prompt; at least one.

    Args:
        encode: text -> token ids, without begin and end.
        words: embeddings that plain names mean.
        marked: embedding and strength behind each mark (see `MARK_OPEN`).
    """
    cutter = _Cutter()
    for piece in read_attention(text):
        if piece.breaks:
            cutter.next()
            continue
        for number, part in enumerate(_MARK.split(piece.text)):
            if number % 2:
                found = (marked or {}).get(int(part))
                if found is not None and found[1] != 0:
                    # As emphasis does, and as in the other hosts: `<ti:a:1.2>` is `(a:1.2)`.
                    cutter.embedding(found[0], piece.weight * found[1])
                continue
            tokens = encode(part) if part.strip() else []
            position = 0
            while position < len(tokens):
                embedding, taken = words.at(tokens, position)
                if embedding is None:
                    cutter.token(tokens[position], piece.weight)
                else:
                    cutter.embedding(embedding, piece.weight)
                position += taken
    if cutter.chunk.tokens or not cutter.done:
        cutter.next()
    return cutter.done
