"""Notices a second copy of Athanor among a WebUI's extensions: both would answer for the same tags and routes."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

_SIGN = Path("scripts") / "athanor.py"


def second_copies(extensions: Path, disabled: Collection[str] = ()) -> list[str]:
    """A sentence where a WebUI's folder of extensions holds Athanor more than once.

    Args:
        disabled: names of extensions that are switched off.
    """
    try:
        found = sorted(one.name for one in extensions.iterdir() if (one / _SIGN).is_file() and one.name not in disabled)
    except OSError:
        return []
    if len(found) < 2:
        return []
    names = " and ".join(f'"{name}"' for name in found)
    return [f"Athanor is there {len(found)} times ({names} in {extensions}); keep one of them and delete the others."]
