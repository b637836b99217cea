"""Notices a second copy of Athanor among a WebUI's extensions: both would answer for the same tags and routes."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

_SIGN = Path("scripts") / "athanor.py"


def copies(extensions: Path) -> list[Path]:
    """The folders among a WebUI's extensions that hold Athanor, whatever they are called."""
    try:
        return sorted(one for one in extensions.iterdir() if (one / _SIGN).is_file())
    except OSError:
        return []


def second_copies(extensions: Path, disabled: Collection[str] = ()) -> list[str]:
    """A sentence where a WebUI's folder of extensions holds Athanor more than once.

    Args:
        disabled: names of extensions that are switched off.
    """
    found = [one.name for one in copies(extensions) if one.name not in disabled]
    if len(found) < 2:
        return []
    names = " and ".join(f'"{name}"' for name in found)
    return [f"Athanor is there {len(found)} times ({names} in {extensions}); keep one of them and delete the others."]
