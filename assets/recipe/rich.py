"""Richer drawings for the autoencoder alone, so that lines, arcs and textures survive it.

The base is never taught to name these. There are discs under dark arcs and scattered patches, but no balls.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw

from .drawings import COLOURS, OVERSAMPLE, PATTERNS, RICH, SIZE, background, pick, render, sample_scene
from .shapes import SHAPES, place, regular

BIG = SIZE * OVERSAMPLE


def any_colour(rng: np.random.Generator, named: float = 0.6) -> tuple[int, int, int]:
    """This share of the time near a named colour, else any at all."""
    if rng.random() < named:
        base = np.array(COLOURS[pick(rng, COLOURS)]) + rng.normal(0, 12, 3)
    else:
        base = rng.uniform(0, 255, 3)
    return tuple(int(v) for v in np.clip(base, 0, 255))


def dark(rng: np.random.Generator) -> tuple[int, int, int]:
    """Nearly black, as outlines and seams are."""
    return tuple(int(v) for v in np.clip(rng.uniform(10, 55) + rng.normal(0, 6, 3), 0, 255))


def gradient(rng: np.random.Generator) -> np.ndarray:
    """A ground that runs from one colour to another in some direction."""
    angle = rng.uniform(0, 2 * math.pi)
    y, x = np.mgrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j]
    share = np.clip(0.5 + 0.5 * (x * math.cos(angle) + y * math.sin(angle)), 0, 1)[..., None]
    return (np.array(any_colour(rng)) * (1 - share) + np.array(any_colour(rng)) * share) / 255


def ground(rng: np.random.Generator, graded: float = 0.2) -> Image.Image:
    """A plain, patterned or (this share of the time) graded background at the drawing size."""
    if rng.random() < graded:
        field = gradient(rng)
    else:
        pattern = pick(rng, PATTERNS) if rng.random() < 0.4 else "plain"
        field = background(rng, pick(rng, COLOURS), pattern)
    small = Image.fromarray(np.clip(field * 255, 0, 255).astype(np.uint8))
    return small.resize((BIG, BIG), Image.Resampling.NEAREST)


def dots(points: np.ndarray) -> list[tuple[float, float]]:
    """An outline as the pen wants it."""
    return [tuple(p) for p in points.tolist()]


def curve(rng: np.random.Generator, x: float, y: float, reach: float) -> np.ndarray:
    """A bent line through the neighbourhood of a point: a piece of an ellipse's edge."""
    t = np.linspace(0, rng.uniform(1.2, 6.3), 40) + rng.uniform(0, 6.3)
    a, b = reach * rng.uniform(0.3, 1.4), reach * rng.uniform(0.1, 1.2)
    points = np.stack([a * np.cos(t), b * np.sin(t)], axis=1)
    shift = rng.uniform(-0.7, 0.7, 2) * reach
    return place(points, x + shift[0], y + shift[1], 1.0, rng.uniform(0, 6.3))


def straight(rng: np.random.Generator, x: float, y: float, reach: float) -> np.ndarray:
    """A straight line near a point."""
    angle, off = rng.uniform(0, math.pi), rng.uniform(-0.5, 0.5) * reach
    along = np.array([math.cos(angle), math.sin(angle)])
    across = np.array([-along[1], along[0]])
    middle = np.array([x, y]) + off * across
    return np.stack([middle - along * 2 * reach, middle + along * 2 * reach])


def shade(layer: Image.Image, rng: np.random.Generator, x: float, y: float, reach: float) -> Image.Image:
    """Light from one side, as on something round."""
    v, u = np.mgrid[0:BIG:4, 0:BIG:4].astype(np.float32)
    angle = rng.uniform(0, 6.3)
    lx, ly = x + math.cos(angle) * reach * 0.5, y + math.sin(angle) * reach * 0.5
    far = np.hypot(u - lx, v - ly) / (1.6 * reach)
    factor = np.clip(1.08 - rng.uniform(0.1, 0.45) * far**1.5, 0, 1.1)[..., None]
    factor = factor.repeat(4, 0).repeat(4, 1)
    return Image.fromarray(np.clip(np.asarray(layer, np.float32) * factor, 0, 255).astype(np.uint8))


def marked_disc(picture: Image.Image, rng: np.random.Generator) -> None:
    """A disc, often shaded, with thin dark lines or patches that end at its edge."""
    reach = rng.uniform(0.3, 0.85) * BIG / 2
    x, y = rng.uniform(reach * 0.8, BIG - reach * 0.8, 2)
    layer = Image.new("RGB", (BIG, BIG), any_colour(rng))
    pen = ImageDraw.Draw(layer)
    ink = dark(rng) if rng.random() < 0.8 else any_colour(rng)
    width = int(rng.uniform(1.6, 4.0) * OVERSAMPLE)
    kind = rng.random()
    if kind < 0.55:
        for _ in range(int(rng.integers(1, 6))):
            form = curve if rng.random() < 0.7 else straight
            pen.line(dots(form(rng, x, y, reach)), fill=ink, width=width, joint="curve")
    else:
        for _ in range(int(rng.integers(2, 9))):
            px, py = np.array([x, y]) + rng.normal(0, 0.5, 2) * reach
            patch = regular(int(rng.integers(3, 8)), rng.uniform(0.12, 0.36) * reach, rng.uniform(0, 6.3))
            squeeze = np.array([1.0, rng.uniform(0.45, 1.0)])
            pen.polygon(dots(place(patch * squeeze, px, py, 1.0, rng.uniform(0, 6.3))), fill=ink)
    if rng.random() < 0.6:
        layer = shade(layer, rng, x, y, reach)
    stencil = Image.new("L", (BIG, BIG))
    ImageDraw.Draw(stencil).ellipse((x - reach, y - reach, x + reach, y + reach), fill=255)
    picture.paste(layer, (0, 0), stencil)
    if rng.random() < 0.3:
        edge = (x - reach, y - reach, x + reach, y + reach)
        ImageDraw.Draw(picture).ellipse(edge, outline=ink, width=width)


def loose_shape(picture: Image.Image, rng: np.random.Generator) -> None:
    """A shape, polygon or star of any colour, place and turn."""
    reach = rng.uniform(0.12, 0.6) * BIG / 2
    x, y = rng.uniform(0, BIG, 2)
    outline = SHAPES[pick(rng, SHAPES)]()[0] if rng.random() < 0.5 else regular(int(rng.integers(3, 9)))
    points = dots(place(outline, x, y, reach, rng.uniform(0, 6.3)))
    pen = ImageDraw.Draw(picture)
    if rng.random() < 0.75:
        pen.polygon(points, fill=any_colour(rng))
    if rng.random() < 0.4:
        pen.line([*points, points[0]], fill=dark(rng), width=int(rng.uniform(1.2, 3.5) * OVERSAMPLE), joint="curve")


def loose_line(picture: Image.Image, rng: np.random.Generator) -> None:
    """A line or curve anywhere."""
    x, y = rng.uniform(0, BIG, 2)
    form = curve if rng.random() < 0.6 else straight
    points = dots(form(rng, x, y, rng.uniform(0.2, 0.8) * BIG / 2))
    ink = dark(rng) if rng.random() < 0.5 else any_colour(rng)
    ImageDraw.Draw(picture).line(points, fill=ink, width=int(rng.uniform(1.2, 4.5) * OVERSAMPLE), joint="curve")


def texture(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Soft mottling, from noise drawn small and enlarged."""
    cells = int(rng.integers(3, 13))
    noise = rng.normal(0, 1, (cells, cells, 3)) * rng.uniform(2, 14)
    if rng.random() < 0.6:
        noise[...] = noise[..., :1]
    field = [np.asarray(Image.fromarray(noise[..., c].astype(np.float32)).resize((SIZE, SIZE), 3)) for c in range(3)]
    return picture + np.stack(field, axis=-1)


def draw_rich(index: int, space: int = RICH) -> np.ndarray:
    """Rich drawing number `index`, uint8 (64, 64, 3)."""
    rng = np.random.default_rng([space, index, 7])
    picture = ground(rng)
    kind = rng.random()
    for _ in range(int(rng.integers(0, 4)) if kind < 0.5 else int(rng.integers(1, 6))):
        (loose_shape if rng.random() < 0.6 else loose_line)(picture, rng)
    if kind < 0.65:
        for _ in range(1 + (rng.random() < 0.15)):
            marked_disc(picture, rng)
    small = np.asarray(picture.reduce(OVERSAMPLE), np.float32)
    if rng.random() < 0.2:
        small = texture(small, rng)
    return np.clip(small + 0.5, 0, 255).astype(np.uint8)


def directions(rng: np.random.Generator, count: int) -> np.ndarray:
    """Points spread over the unit sphere: a spiral, turned at random and shaken a little."""
    height = 1 - (2 * np.arange(count) + 1) / count
    angle = math.pi * (3 - math.sqrt(5)) * np.arange(count)
    flat = np.sqrt(1 - height**2)
    points = np.stack([flat * np.cos(angle), flat * np.sin(angle), height], axis=1)
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    points = points @ turn + rng.normal(0, 0.12, points.shape)
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def rings_on(surface: np.ndarray, rng: np.random.Generator, width: float) -> np.ndarray:
    """Where a few lines run over a round surface: cuts of the sphere with random planes."""
    normals = directions(rng, int(rng.integers(2, 6)))
    offsets = np.where(rng.random(len(normals)) < 0.5, 0.0, rng.uniform(-0.65, 0.65, len(normals)))
    return (np.abs(surface @ normals.T - offsets) < width * np.sqrt(1 - offsets**2)).any(-1)


def patches_on(surface: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Where patches with four to seven corners lie on a round surface."""
    middles = directions(rng, int(rng.integers(6, 19)))
    reach, corners = rng.uniform(0.55, 1.05) / math.sqrt(len(middles)) * 1.5, int(rng.integers(4, 8))
    inside = np.zeros(surface.shape[:-1], bool)
    for middle in middles:
        first = np.cross(middle, rng.normal(size=3))
        first /= np.linalg.norm(first)
        second = np.cross(middle, first)
        front = surface @ middle
        angle = np.arange(corners) * (2 * math.pi / corners)
        sides = np.outer(np.cos(angle), first) + np.outer(np.sin(angle), second)
        inside |= (front > 0) & ((surface @ sides.T).max(-1) < reach * 0.85 * front)
    return inside


def marked_sphere(picture: np.ndarray, rng: np.random.Generator, fine: int = 2) -> np.ndarray:
    """Something round, lit from one side, with dark lines or patches that follow its surface; float (64, 64, 3)."""
    radius = rng.uniform(0.55, 0.9)
    x, y = rng.uniform(-1, 1, 2) * max(0.05, 0.97 - radius)
    v, u = np.mgrid[-1 : 1 : SIZE * fine * 1j, -1 : 1 : SIZE * fine * 1j].astype(np.float32)
    u, v = (u - x) / radius, (v - y) / radius
    depth = 1 - u * u - v * v
    surface = np.stack([u, v, np.sqrt(np.clip(depth, 0, None))], axis=-1).astype(np.float32)
    marks = patches_on(surface, rng) if rng.random() < 0.62 else rings_on(surface, rng, rng.uniform(0.05, 0.1))
    skin, ink = any_colour(rng, 0.85), dark(rng) if rng.random() < 0.9 else any_colour(rng)
    light = rng.normal(size=3) + np.array([0, 0, 1.5])
    shadow = rng.uniform(0, 0.4)
    brightness = 1.05 - shadow + shadow * np.clip(surface @ (light / np.linalg.norm(light)), -0.3, 1)
    painted = np.where(marks[..., None], ink, skin) * brightness[..., None]
    layers = np.concatenate([painted, np.ones_like(depth)[..., None]], -1) * (depth > 0)[..., None]
    small = layers.reshape(SIZE, fine, SIZE, fine, 4).mean((1, 3))
    return picture * (1 - small[..., 3:]) + small[..., :3]


def soften(picture: np.ndarray, side: float) -> np.ndarray:
    """A slight blur along both axes: neighbours count `side`, the middle the rest; the border keeps its colour."""
    for axis in (0, 1):
        wide = np.concatenate([picture.take([0], axis), picture, picture.take([-1], axis)], axis)
        before, after = wide.take(range(SIZE), axis), wide.take(range(2, SIZE + 2), axis)
        picture = picture * (1 - 2 * side) + (before + after) * side
    return picture


def draw_sphere(rng: np.random.Generator) -> np.ndarray:
    """A marked sphere before a plain, patterned or graded ground, often with soft edges as in a photograph."""
    behind = np.asarray(ground(rng, 0.08).resize((SIZE, SIZE), Image.Resampling.NEAREST), np.float32)
    picture = marked_sphere(behind, rng)
    if rng.random() < 0.6:
        picture = soften(picture, rng.uniform(0.05, 0.17))
    return np.clip(picture + 0.5, 0, 255).astype(np.uint8)


def autoencoder_picture(index: int, space: int = RICH) -> np.ndarray:
    """What the autoencoder sees: the base's own drawings, richer ones, and round things with marks."""
    rng = np.random.default_rng([space, index, 8])
    kind = rng.random()
    if kind < 0.25:
        return render(sample_scene(rng), rng)
    return draw_sphere(rng) if kind < 0.88 else draw_rich(index, space)
