"""How CLIP's tokenizer splits a text, for showing it: pieces of the text, and how many of the 75 places they take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

ROOM = 75
_WORD_END = "</w>"
Tokenize = Callable[[str], Sequence[str]]
"""A text to tokens in CLIP's own spelling: bytes as printable letters, `</w>` after the last token of a word."""


@lru_cache(maxsize=1)
def _bytes_of_letters() -> dict[str, int]:
    """The letters that stand for the 256 bytes in CLIP's vocabulary (OpenAI's `bytes_to_unicode`)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    rest = [byte for byte in range(256) if byte not in printable]
    letters = [*map(chr, printable), *(chr(256 + index) for index in range(len(rest)))]
    return dict(zip(letters, [*printable, *rest], strict=True))


def readable(token: str) -> tuple[str, bool]:
    """(the token as text, whether a word ends with it); bytes that are no whole character are shown as their number."""
    ends = token.endswith(_WORD_END)
    letters = token[: -len(_WORD_END)] if ends else token
    known = _bytes_of_letters()
    if not all(letter in known for letter in letters):
        return letters, ends
    content = bytes(known[letter] for letter in letters)
    try:
        return content.decode("utf-8"), ends
    except UnicodeDecodeError:
        return "".join(f"⟨{byte:02x}⟩" for byte in content), ends


def ribbon(text: str, tokenize: Tokenize) -> dict[str, Any]:
    """`{"tokens": [[piece, word ends]], "count": n, "room": 75}` of a text."""
    tokens = [readable(token) for token in tokenize(text)]
    return {"tokens": tokens, "count": len(tokens), "room": ROOM}


def tokenizer_of(found: Any) -> Tokenize | None:
    """A function from what a host has: transformers' tokenizer, or open_clip's; None for anything else."""
    if hasattr(found, "tokenize"):
        return found.tokenize
    if hasattr(found, "encode") and hasattr(found, "decoder"):
        return lambda text: [found.decoder[number] for number in found.encode(text)]
    return None
