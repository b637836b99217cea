"""What a picture's infotext says about our tags, and reading it back."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from modules import shared

from extension.listing import Listing
from extension.wanted import file_hash
from trainers.errors import InputError

NOTES = "Athanor"
"""The infotext's entry for sentences about what did not go as asked."""

_SEPARATORS = str.maketrans("", "", ":,")
_TAG_START = re.compile(r"<(lora|lyco):([^:>]+)(?=[:>])")


def add_lora_hashes(p: Any, hashes: Mapping[str, str]) -> None:
    """`Lora hashes` as the host's own loader writes it; those of the hires pass are added to the first pass's."""
    if not getattr(shared.opts, "lora_add_hashes_to_infotext", True):
        return
    if not getattr(p, "is_hr_pass", False) or not isinstance(getattr(p, "lora_hashes", None), dict):
        p.lora_hashes = {}
    p.lora_hashes.update({name.translate(_SEPARATORS): value for name, value in hashes.items() if value})
    if p.lora_hashes:
        text = ", ".join(f"{name}: {value}" for name, value in p.lora_hashes.items())
        p.extra_generation_params["Lora hashes"] = text


def add_notes(p: Any, sentences: Iterable[str]) -> None:
    """Says sentences on the page, below the picture, and in its infotext."""
    if getattr(p, "comments", None) is None:
        return
    earlier = getattr(p, "athanor_notes", ())
    notes = tuple(dict.fromkeys([*earlier, *sentences]))
    for sentence in notes[len(earlier) :]:
        p.comment(sentence)
    p.athanor_notes = notes
    if notes:
        p.extra_generation_params[NOTES] = " ".join(notes)


def forget_notes(p: Any) -> None:
    """A new job of an object that was drawn with before begins without its sentences."""
    if getattr(p, "athanor_notes", ()):
        for sentence in p.athanor_notes:
            p.comments.pop(sentence, None)
        p.athanor_notes = ()
        p.extra_generation_params.pop(NOTES, None)


def read_hashes(text: str) -> dict[str, str]:
    """`name: hash, …` -> `{name: hash}`."""
    pairs = (entry.rpartition(":") for entry in text.split(",") if ":" in entry)
    return {name.strip(): value.strip() for name, _, value in pairs}


def with_known_names(prompt: str, hashes: Mapping[str, str], adapters: Listing, files: Any) -> str:
    """A pasted prompt in which files that have another name here are named as they are here.

    Only names that are not here are looked up by their hash.
    """
    by_hash: dict[str, str] = {}

    def replacement(match: re.Match[str]) -> str:
        kind, name = match.groups()
        wanted = hashes.get(name.translate(_SEPARATORS).strip())
        if wanted is None or adapters.find(name) is not None:
            return match.group(0)
        if not by_hash:
            by_hash.update(_names_by_hash(adapters, files))
        found = by_hash.get(wanted[:10])
        return match.group(0) if found is None else f"<{kind}:{found}"

    return _TAG_START.sub(replacement, prompt)


def _names_by_hash(adapters: Listing, files: Any) -> dict[str, str]:
    found = {"": ""}
    for name, path in adapters.items():
        try:
            found[file_hash(files.get(path))[:10]] = name
        except (InputError, OSError):
            continue  # a file that cannot be read has no name to offer
    return found


def pasted(params: dict[str, Any], adapters: Listing, files: Any) -> None:
    """The host has taken an infotext apart: the tags of both prompts lead to the files that are here."""
    params.pop(NOTES, None)
    hashes = read_hashes(params.get("Lora hashes") or "")
    if not hashes:
        return
    adapters.rescan()
    for key in ("Prompt", "Negative prompt", "Hires prompt", "Hires negative prompt"):
        if isinstance(params.get(key), str):
            params[key] = with_known_names(params[key], hashes, adapters, files)
