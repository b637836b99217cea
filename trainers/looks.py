"""What a picture looks like in a few numbers: for finding copies, soft pictures and the same background everywhere.

Pillow and numpy only: the host's process imports this module too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

SIDE = 768
"""Pictures are reduced to this longest side before their sharpness is measured: about what a model is shown."""

HASH_DISTANCE = 6
"""Two pictures are nearly the same where at most this many bits of the hash differ."""

COLOUR_DISTANCE = 18.0
"""... and no cell of a 4 x 4 grid differs in colour by more than this, on average (0 to 255)."""

_HASH_SIDE, _LOW, _HASH_BYTES = 32, 9, 10
_BITS = np.array([bin(byte).count("1") for byte in range(256)], dtype=np.uint8)
_BORDER = 0.05
_SAME_COLOUR = 30.0


@dataclass(frozen=True)
class Looks:
    """A picture in numbers.

    Attributes:
        hash: 80 bits of its lowest spatial frequencies (a "pHash"), as an integer.
        grid: mean colours of a 4 x 4 grid, 48 numbers from 0 to 255.
        sharpness: squared slope of its steepest edges, relative to its contrast; from 0 (soft) to about 1.
        border: median colour of the outer edge, (red, green, blue).
        border_share: share of the edge that has about this colour; 1 for a plain background.
    """

    hash: int
    grid: tuple[int, ...]
    sharpness: float
    border: tuple[int, int, int]
    border_share: float

    def as_list(self) -> list[object]:
        """For JSON; `from_list` is the way back."""
        return [f"{self.hash:x}", list(self.grid), self.sharpness, list(self.border), self.border_share]

    @staticmethod
    def from_list(stored: Sequence) -> Looks:
        hashed, grid, sharpness, border, share = stored
        return Looks(int(hashed, 16), tuple(grid), float(sharpness), tuple(border), float(share))


def is_deep(image: Image.Image) -> bool:
    """Whether it is greyscale of more than 8 bits, as scanners and renderers write."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def eight_bit(image: Image.Image) -> Image.Image:
    """16-bit, 32-bit and float greyscale to "L"; Pillow's own conversion clips instead of scaling."""
    values = np.nan_to_num(np.asarray(image).astype(np.float64), posinf=0.0, neginf=0.0)
    top = float(values.max(initial=0.0))
    if image.mode == "F" and top <= 1.0:
        scale = 255.0
    elif image.mode == "F" and top <= 255.0:
        scale = 1.0
    elif top <= 65535.0:
        scale = 1.0 / 257.0
    else:
        scale = 255.0 / top
    return Image.fromarray(np.clip(np.rint(values * scale), 0, 255).astype(np.uint8))


def _cosines(size: int) -> np.ndarray:
    """The first `_LOW` rows of the discrete cosine transform (type II) over `size` samples."""
    positions = np.arange(size) + 0.5
    return np.cos(np.pi / size * np.arange(_LOW)[:, None] * positions)


_BASIS = _cosines(_HASH_SIDE)


def perceptual_hash(picture: Image.Image) -> int:
    """80 bits: which of the 9 x 9 lowest frequencies (without the mean) are above their median.

    Stays almost the same when a picture is resized, compressed again or made lighter (Zauner 2010, "Implementation and
    benchmarking of perceptual image hash functions").
    """
    grey = np.asarray(picture.convert("L").resize((_HASH_SIDE, _HASH_SIDE), Image.Resampling.BOX), dtype=np.float64)
    low = (_BASIS @ grey @ _BASIS.T).ravel()[1:]
    # A frequency that is hardly there must not be a bit that tosses a coin.
    bits = low > np.median(low) + 1e-6 * np.abs(low).max(initial=0.0)
    return int("".join("1" if bit else "0" for bit in bits), 2)


def sharpness(grey: np.ndarray) -> float:
    """Squared slope of the steepest thousandth of [H, W] brightness (8 bit), in contrasts per pixel.

    A step from one pixel to the next gives 0.25 to 1; the same step blurred with a deviation of s pixels 1 / (6 s^2).
    Divided by the contrast, so that faint pictures are not called soft; 0 where there is hardly any contrast.
    """
    values = grey.astype(np.int16)
    slopes = np.bincount(np.abs(np.diff(values, axis=1)).ravel(), minlength=256)
    slopes += np.bincount(np.abs(np.diff(values, axis=0)).ravel(), minlength=256)
    brightness = np.bincount(grey.ravel(), minlength=256)
    contrast = _percentile(brightness, 0.99) - _percentile(brightness, 0.01)
    if contrast < 8:
        return 0.0
    return min(1.0, _percentile(slopes, 0.999) / contrast) ** 2


def _percentile(counts: np.ndarray, share: float) -> int:
    """The value below which `share` of all lie, from how often each value is there."""
    return int(np.searchsorted(np.cumsum(counts), share * counts.sum()))


def _border(colours: np.ndarray) -> tuple[tuple[int, int, int], float]:
    """Median colour of the outer twentieth of [H, W, 3], and the share of it that is near that colour."""
    height, width = colours.shape[:2]
    rim = max(1, round(min(height, width) * _BORDER))
    edge = np.ones((height, width), dtype=bool)
    edge[rim : height - rim, rim : width - rim] = False
    around = colours[edge].astype(np.float64)
    median = np.median(around, axis=0)
    share = float((np.linalg.norm(around - median, axis=1) < _SAME_COLOUR).mean())
    red, green, blue = (int(value) for value in median)
    return (red, green, blue), round(share, 3)


def look_at(picture: Image.Image) -> Looks:
    """The numbers of an RGB picture."""
    reduced = picture.convert("RGB")
    reduced.thumbnail((SIDE, SIDE), Image.Resampling.BILINEAR)
    colours = np.asarray(reduced)
    border, share = _border(colours)
    grid = np.asarray(reduced.resize((4, 4), Image.Resampling.BOX)).ravel()
    return Looks(
        hash=perceptual_hash(reduced),
        grid=tuple(int(value) for value in grid),
        sharpness=round(sharpness(np.asarray(reduced.convert("L"))), 5),
        border=border,
        border_share=share,
    )


def are_alike(one: Looks, other: Looks) -> bool:
    """Whether two pictures are nearly the same: the same forms in the same colours."""
    if bin(one.hash ^ other.hash).count("1") > HASH_DISTANCE:
        return False
    return float(np.abs(np.subtract(one.grid, other.grid)).mean()) <= COLOUR_DISTANCE


def groups_of_alike(looks: Sequence[Looks]) -> list[list[int]]:
    """Positions of pictures that are nearly the same as the first of their group; only groups of two and more."""
    hashes = np.array([list(each.hash.to_bytes(_HASH_BYTES, "big")) for each in looks], dtype=np.uint8)
    hashes = hashes.reshape(-1, _HASH_BYTES)
    first_of_group = np.empty_like(hashes)
    leaders: list[int] = []
    groups: dict[int, list[int]] = {}
    for number, each in enumerate(looks):
        bits = _BITS[first_of_group[: len(leaders)] ^ hashes[number]].sum(axis=1)
        near = (leaders[place] for place in np.flatnonzero(bits <= HASH_DISTANCE))
        leader = next((first for first in near if are_alike(looks[first], each)), None)
        if leader is None:
            first_of_group[len(leaders)] = hashes[number]
            leaders.append(number)
        else:
            groups.setdefault(leader, [leader]).append(number)
    return list(groups.values())


def far_softer(looks: Sequence[Looks], share: float = 0.25) -> list[int]:
    """Positions of pictures whose sharpness is under this share of the median; plain ones have none to compare."""
    measured = [number for number, each in enumerate(looks) if each.sharpness > 0]
    if len(measured) < 3:
        return []
    limit = share * float(np.median([looks[number].sharpness for number in measured]))
    return [number for number in measured if looks[number].sharpness < limit]


def same_border(looks: Sequence[Looks], plain: float = 0.7) -> list[int]:
    """Positions of the most pictures that share one plain colour around their edge."""
    candidates = [number for number, each in enumerate(looks) if each.border_share >= plain]
    if not candidates:
        return []
    colours = np.array([looks[number].border for number in candidates], dtype=np.float64)
    best: np.ndarray = np.zeros(0, dtype=int)
    for colour in colours:
        near = np.flatnonzero(np.linalg.norm(colours - colour, axis=1) < _SAME_COLOUR)
        best = near if len(near) > len(best) else best
    return [candidates[number] for number in best]
