"""CLIP's tokenizer without a loaded model."""

from __future__ import annotations

from functools import cache

from extension.tokens import Tokenize, tokenizer_of
from trainers.bases.tokenizer import clip_tokenizer


@cache
def clip_tokens() -> Tokenize | None:
    """How the text encoders of SD1 split a text."""
    return tokenizer_of(clip_tokenizer())
