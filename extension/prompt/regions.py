"""Regions (`mask=`): part of the picture by name, or a mask file.

Names describe the picture as it is seen. Halves: left, right, top, bottom. Quarters: top-left and so on. Thirds stand
beside each other as columns (left-third, middle-third, right-third) or above each other as rows (top-third,
middle-row, bottom-third). `center` (or centre) is the middle half of the width and of the height.
"""

from __future__ import annotations

from dataclasses import dataclass

_THIRD, _TWO_THIRDS = 1 / 3, 2 / 3

REGIONS: dict[str, tuple[float, float, float, float]] = {
    "left": (0.0, 0.0, 0.5, 1.0),
    "right": (0.5, 0.0, 1.0, 1.0),
    "top": (0.0, 0.0, 1.0, 0.5),
    "bottom": (0.0, 0.5, 1.0, 1.0),
    "center": (0.25, 0.25, 0.75, 0.75),
    "top-left": (0.0, 0.0, 0.5, 0.5),
    "top-right": (0.5, 0.0, 1.0, 0.5),
    "bottom-left": (0.0, 0.5, 0.5, 1.0),
    "bottom-right": (0.5, 0.5, 1.0, 1.0),
    "left-third": (0.0, 0.0, _THIRD, 1.0),
    "middle-third": (_THIRD, 0.0, _TWO_THIRDS, 1.0),
    "right-third": (_TWO_THIRDS, 0.0, 1.0, 1.0),
    "top-third": (0.0, 0.0, 1.0, _THIRD),
    "middle-row": (0.0, _THIRD, 1.0, _TWO_THIRDS),
    "bottom-third": (0.0, _TWO_THIRDS, 1.0, 1.0),
}
"""Name -> (left, top, right, bottom) as fractions of the width and height."""

ALIASES = {
    "centre": "center",
    "middle": "center",
    "center-third": "middle-third",
    "centre-third": "middle-third",
    "middle-column": "middle-third",
}


@dataclass(frozen=True)
class Region:
    """Either a named box or the name of a mask file (resolved against the listed mask files, never as a path)."""

    name: str
    box: tuple[float, float, float, float] | None = None

    @property
    def mask_file(self) -> str | None:
        """The mask file's name, or None for a named region."""
        return self.name if self.box is None else None

    def cells(self, width: int, height: int) -> tuple[int, int, int, int]:
        """The box in whole pixels or latent cells (left, top, right, bottom), the ends not included.

        Neighbouring regions meet without gap or overlap. ValueError for a mask file.
        """
        if self.box is None:
            raise ValueError(f"{self.name} is a mask file, not a box")
        left, top, right, bottom = self.box
        return round(left * width), round(top * height), round(right * width), round(bottom * height)


def named_region(text: str) -> Region | None:
    """The region of this name in any case, with `_` or a space for `-`; None when no region is called so."""
    name = text.strip().lower().replace("_", "-").replace(" ", "-")
    name = ALIASES.get(name, name)
    return Region(name, REGIONS[name]) if name in REGIONS else None
