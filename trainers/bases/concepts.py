"""Words that stand for vectors of their own: how a prompt's tokens are led to them, and where they enter the encoder.

As in A1111, the word is found by its tokens, in any case, the longest first, and its vectors are never torn apart by
the end of a chunk.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Concept:
    """A word and the token numbers that stand for its vectors.

    Attributes:
        name: the word as it is written.
        words: the tokens that the word itself has.
        ids: one number per vector, none of them in the tokenizer's vocabulary.
    """

    name: str
    words: tuple[int, ...]
    ids: tuple[int, ...]


def replace_words(tokens: Sequence[int], concepts: Iterable[Concept]) -> list[int]:
    """`tokens` with every concept's word replaced by its own numbers."""
    longest_first = sorted(concepts, key=lambda concept: -len(concept.words))
    result: list[int] = []
    position = 0
    while position < len(tokens):
        found = next((c for c in longest_first if tuple(tokens[position : position + len(c.words)]) == c.words), None)
        result += found.ids if found else (tokens[position],)
        position += len(found.words) if found else 1
    return result


def groups(concepts: Iterable[Concept]) -> dict[int, int]:
    """{first number of a concept: how many belong together}."""
    return {concept.ids[0]: len(concept.ids) for concept in concepts}


class ConceptEmbedding(nn.Module):
    """A token embedding with rows of its own beyond the vocabulary; the vocabulary's rows stay the original module's.

    Args:
        original: the encoder's own embedding [vocabulary, width], left as it is.
        vectors: [n, width] float32, the new rows.
    """

    def __init__(self, original: nn.Embedding, vectors: torch.Tensor) -> None:
        super().__init__()
        self.original = original
        self.vectors = nn.Parameter(vectors)

    @property
    def weight(self) -> torch.Tensor:
        """The vocabulary's rows, for code that asks for the embedding's format or device."""
        return self.original.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """[…] token numbers -> […, width]."""
        first = self.original.num_embeddings
        new = ids >= first
        rows = self.original(torch.where(new, 0, ids))
        own = self.vectors.to(rows.dtype)[(ids - first).clamp_min(0)]
        return torch.where(new[..., None], own, rows)


def embeddings_of(text_encoder: nn.Module) -> nn.Module:
    """The module that holds a CLIP text model's `token_embedding`."""
    return getattr(text_encoder, "text_model", text_encoder).embeddings
