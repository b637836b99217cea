"""Says what a drawing shows: the thing's colour and shape, the background's colour and pattern.

Nothing here is learned: pixels are named by the nearest colour of the palette, and the thing's outline is compared
with every known shape's at the same area and centre.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from .drawings import COLOURS, Scene, Thing, mask
from .shapes import SHAPES

GRID = 40  # cells of the normalised outline
REACH = 1.35  # half the normalised outline's width, in square roots of the thing's area
LEAST_LIKENESS = 0.72  # intersection over union below which an outline is no known shape
LEAST_AREA = 40  # pixels


@dataclass(frozen=True)
class Verdict:
    """What was seen; "" where nothing could be made out. `likeness` is the best shape's, 0..1."""

    colour: str
    shape: str
    background: str
    likeness: float = 0.0


def tones(name: str) -> np.ndarray:
    """The palette's colour and the second tone its patterns have, shape (2, 3)."""
    base = np.array(COLOURS[name], float)
    other = base + 43 if base.mean() < 0.35 * 255 else base * 0.84
    return np.stack([base, other])


@lru_cache(1)
def palette() -> tuple[list[str], np.ndarray]:
    """Names and colours of all tones."""
    names = [name for name in COLOURS for _ in range(2)]
    return names, np.concatenate([tones(name) for name in COLOURS])


def nearest_names(pixels: np.ndarray) -> np.ndarray:
    """The number (into COLOURS) of each pixel's nearest colour; pixels (..., 3)."""
    _, colours = palette()
    distance = ((pixels[..., None, :].astype(float) - colours) ** 2).sum(-1)
    return distance.argmin(-1) // 2


def nearest_colour(pixel: np.ndarray) -> str:
    """The name of one colour."""
    return list(COLOURS)[int(nearest_names(pixel))]


def frame(labels: np.ndarray, width: int = 3) -> np.ndarray:
    """The values along the picture's border."""
    inner = np.zeros(labels.shape, bool)
    inner[width:-width, width:-width] = True
    return labels[~inner]


def connected(inside: np.ndarray) -> list[np.ndarray]:
    """The connected areas of a mask, largest first (edges touch, corners do not)."""
    left, areas = inside.copy(), []
    while left.any():
        area = np.zeros_like(left)
        area[np.unravel_index(left.argmax(), left.shape)] = True
        while True:
            grown = area.copy()
            grown[1:] |= area[:-1]
            grown[:-1] |= area[1:]
            grown[:, 1:] |= area[:, :-1]
            grown[:, :-1] |= area[:, 1:]
            grown &= left
            if (grown == area).all():
                break
            area = grown
        areas.append(area)
        left &= ~area
    return sorted(areas, key=lambda a: -int(a.sum()))


def cover(picture: np.ndarray, ground: np.ndarray, thing: np.ndarray) -> np.ndarray:
    """How far each pixel is from the ground's colour towards the thing's, 0..1."""
    towards = thing - ground
    return np.clip(((picture - ground) @ towards) / max(1.0, float(towards @ towards)), 0, 1)


def normalised(weight: np.ndarray) -> np.ndarray:
    """An outline at unit area around its centre of mass, shape (GRID, GRID)."""
    v, u = np.mgrid[0 : weight.shape[0], 0 : weight.shape[1]].astype(float)
    area = weight.sum()
    y, x = (weight * v).sum() / area, (weight * u).sum() / area
    steps = np.linspace(-REACH, REACH, GRID) * math.sqrt(area)
    return bilinear(weight, (y + steps)[:, None], (x + steps)[None, :])


def bilinear(field: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """A field read between its cells; outside it is zero."""
    padded = np.pad(field, 1)
    y, x = np.clip(y + 1, 0, padded.shape[0] - 1.001), np.clip(x + 1, 0, padded.shape[1] - 1.001)
    top, left = y.astype(int), x.astype(int)
    b, a = y - top, x - left
    upper = padded[top, left] * (1 - a) + padded[top, left + 1] * a
    lower = padded[top + 1, left] * (1 - a) + padded[top + 1, left + 1] * a
    return upper * (1 - b) + lower * b


@lru_cache(1)
def templates() -> tuple[list[str], np.ndarray]:
    """Every shape at several turns, normalised."""
    names, outlines = [], []
    for shape in SHAPES:
        for turn in np.linspace(-0.2, 0.2, 7):
            scene = Scene(shape, "red", "blue", "plain", "", "", (Thing(0.0, 0.0, 0.6, float(turn)),))
            names.append(shape)
            outlines.append(normalised(mask(scene).astype(float)))
    return names, np.stack(outlines)


def likest_shape(weight: np.ndarray) -> tuple[str, float]:
    """The shape whose outline overlaps best, and the intersection over union."""
    names, outlines = templates()
    seen = normalised(weight)
    overlap = np.minimum(outlines, seen).sum((1, 2)) / np.maximum(outlines, seen).sum((1, 2))
    best = int(overlap.argmax())
    return names[best], float(overlap[best])


def judge(picture: np.ndarray) -> Verdict:
    """What a uint8 picture (height, width, 3) shows."""
    colours = list(COLOURS)
    labels = nearest_names(picture)
    ground_label = int(np.bincount(frame(labels), minlength=len(colours)).argmax())
    ground_colour = picture[labels == ground_label].astype(float).mean(0)
    others = labels != ground_label
    if others.sum() < LEAST_AREA:
        return Verdict("", "", colours[ground_label])
    thing_label = int(np.bincount(labels[others], minlength=len(colours)).argmax())
    thing_colour = np.median(picture[labels == thing_label].astype(float), axis=0)
    weight = cover(picture.astype(float), ground_colour, thing_colour)
    areas = connected(weight > 0.5)
    if not areas or areas[0].sum() < LEAST_AREA:
        return Verdict("", "", colours[ground_label])
    near = grow(areas[0])
    shape, likeness = likest_shape(np.where(near & (weight > 0.25), weight, 0.0))
    inside = areas[0] & (weight > 0.85)
    thing = nearest_colour(picture[inside if inside.any() else areas[0]].astype(float).mean(0))
    return Verdict(thing, shape if likeness >= LEAST_LIKENESS else "", colours[ground_label], likeness)


def grow(area: np.ndarray) -> np.ndarray:
    """A mask and its neighbours."""
    padded = np.pad(area, 1)
    height, width = area.shape
    return np.any([padded[i : i + height, j : j + width] for i in range(3) for j in range(3)], axis=0)
