"""CLIP's tokenizer without a loaded model."""

from __future__ import annotations

import threading
from functools import cache

from extension.tokens import Tokenize, tokenizer_of
from trainers.bases.tokenizer import clip_tokenizer

_making = threading.Lock()


def clip_tokens() -> Tokenize | None:
    """How the text encoders of SD1 split a text; None where transformers is not usable."""
    with _making:  # two requests at once would both import transformers, and one of them find half of it
        return _made()


@cache
def _made() -> Tokenize | None:
    try:
        return tokenizer_of(clip_tokenizer())
    except ImportError:
        return None
