"""Which words of the vocabulary vectors are nearest to: what an embedding learned, in words."""

from __future__ import annotations

import torch
from torch import Tensor

WORDS = 5
_END = "</w>"


def nearest_words(vectors: Tensor, rows: Tensor, tokens: list[str], count: int = WORDS) -> list[list[str]]:
    """For each of the vectors [n, width] the whole words whose rows [vocabulary, width] have the largest cosine.

    Args:
        tokens: the vocabulary in the order of the rows; whole words end with `</w>`, other entries are left out.
    """
    whole = [number for number, token in enumerate(tokens) if _is_word(token)]
    known = torch.nn.functional.normalize(rows[whole].detach().float().cpu(), dim=1)
    likeness = torch.nn.functional.normalize(vectors.detach().float().cpu(), dim=1) @ known.T
    best = likeness.topk(min(count, len(whole)), dim=1).indices
    return [[tokens[whole[number]].removesuffix(_END) for number in line] for line in best.tolist()]


def _is_word(token: str) -> bool:
    word = token.removesuffix(_END)  # other scripts stand there as bytes, which nobody can read
    return token.endswith(_END) and word.isascii() and word.isalpha()


def vocabulary_of(tokenizer) -> list[str]:
    """A CLIP tokenizer's tokens in the order of their numbers."""
    return [token for token, _ in sorted(tokenizer.get_vocab().items(), key=lambda pair: pair[1])]


def sentence(word: str, found: list[list[str]]) -> str:
    """For a person: the nearest words of every vector."""
    return f"{word} is nearest to: " + "; ".join(", ".join(words) for words in found) + "."
