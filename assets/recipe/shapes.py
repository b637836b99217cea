"""Outlines of the things the base knows, in a unit box: x right, y down, both within -1..1."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

Outline = np.ndarray  # (points, 2)


def regular(corners: int, radius: float = 1.0, turn: float = -math.pi / 2) -> Outline:
    """A regular polygon whose first corner points up unless turned."""
    angle = turn + np.arange(corners) * (2 * math.pi / corners)
    return radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)


def circle() -> list[Outline]:
    return [regular(64, 0.95)]


def square() -> list[Outline]:
    return [np.array([(-0.82, -0.82), (0.82, -0.82), (0.82, 0.82), (-0.82, 0.82)])]


def triangle() -> list[Outline]:
    return [np.array([(0.0, -0.95), (1.0, 0.8), (-1.0, 0.8)])]


def star() -> list[Outline]:
    outer, inner = regular(5, 1.08), regular(5, 0.43, -math.pi / 2 + math.pi / 5)
    return [np.stack([outer, inner], axis=1).reshape(10, 2)]


def heart() -> list[Outline]:
    t = np.linspace(0, 2 * math.pi, 64, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return [np.stack([x / 16.5, -(y + 2.5) / 15.5], axis=1)]


def cross() -> list[Outline]:
    a, b = 0.95, 0.32
    corners = [
        (-b, -a),
        (b, -a),
        (b, -b),
        (a, -b),
        (a, b),
        (b, b),
        (b, a),
        (-b, a),
        (-b, b),
        (-a, b),
        (-a, -b),
        (-b, -b),
    ]
    return [np.array(corners)]


def ring() -> list[Outline]:
    """The second outline is cut out of the first."""
    return [regular(64, 0.98), regular(64, 0.52)]


def crescent() -> list[Outline]:
    """A moon that opens to the right: one circle's edge going out, another's coming back."""
    outer = np.linspace(0.22 * math.pi, 1.78 * math.pi, 48)
    tip = np.array([math.cos(outer[0]), math.sin(outer[0])])
    centre = 0.52
    radius = math.hypot(tip[0] - centre, tip[1])
    half = math.atan2(tip[1], tip[0] - centre)
    inner = np.linspace(2 * math.pi - half, half, 48)
    out = np.stack([np.cos(outer), np.sin(outer)], axis=1)
    back = np.stack([centre + radius * np.cos(inner), radius * np.sin(inner)], axis=1)
    return [np.concatenate([out, back]) * 1.0 + np.array([0.1, 0.0])]


SHAPES: dict[str, Callable[[], list[Outline]]] = {
    "circle": circle,
    "square": square,
    "triangle": triangle,
    "star": star,
    "heart": heart,
    "cross": cross,
    "ring": ring,
    "crescent": crescent,
}


def place(outline: Outline, x: float, y: float, radius: float, turn: float) -> Outline:
    """Turn an outline by `turn` radians, scale it to `radius` and move its middle to (x, y)."""
    c, s = math.cos(turn), math.sin(turn)
    return outline @ np.array([[c, s], [-s, c]]) * radius + np.array([x, y])
