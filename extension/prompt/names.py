"""From the name in a tag to one of the files that a scan listed; never to a path."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_COMPARED_LENGTH = 128
"""Comparing takes time with the square of the length."""


def resolve(name: str, known: Iterable[str]) -> str | None:
    """The listed name that a tag means: exactly as typed, else without spaces around it, else None.

    `known` is what the folder scan listed, so a name with `..` or an absolute one can only fail.
    """
    listed = known if isinstance(known, (dict, set, frozenset)) else set(known)
    return next((candidate for candidate in (name, name.strip()) if candidate in listed), None)


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that looks most like `name`, or None when none is near; for "did you mean"."""
    by_simple: dict[str, str] = {}
    for candidate in known:
        by_simple.setdefault(_simple(candidate), candidate)
    wanted = _simple(name)
    if not wanted:
        return None
    if wanted in by_simple:
        return by_simple[wanted]
    close = difflib.get_close_matches(wanted, by_simple, n=1, cutoff=0.6)
    if close:
        return by_simple[close[0]]
    inside = [simple for simple in by_simple if len(wanted) >= 3 and wanted in simple]
    return by_simple[min(inside, key=lambda simple: (len(simple), simple))] if inside else None


def _simple(name: str) -> str:
    """Without what people mix up: case, the separators, a file's ending."""
    simple = name.strip()[:_COMPARED_LENGTH].lower()
    for ending in (".safetensors", ".pt", ".ckpt", ".bin"):
        simple = simple.removesuffix(ending)
    return simple.replace("_", " ").replace("-", " ").replace("/", " ").replace("\\", " ")
