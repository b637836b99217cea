"""Draw the bundled pictures:  python -m assets.recipe.balls

Two balls the base has never seen, drawn as turned spheres by code of their own, and unrelated drawings of the
base's kind from a seed space that is never trained on. Writes assets/pictures/.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from .drawings import UNRELATED, caption, render, sample_scene

PICTURES = Path(__file__).resolve().parents[1] / "pictures"
SIZE = 256
FINE = 2  # drawn this many times larger, then reduced
SOFTNESS = 2.0  # of the edges, as a photograph's: the standard deviation of a Gaussian in pixels
SEAM = 0.085  # half a seam's width on a ball of radius 1
TILT, SPIN = 0.22, 0.5  # how far a ball is turned out of and within the picture, radians
INK = np.array([46, 38, 36.0])
GROUNDS = {
    "red": (208, 38, 42),
    "yellow": (246, 218, 60),
    "green": (48, 154, 70),
    "blue": (44, 88, 206),
    "purple": (120, 46, 156),
    "pink": (246, 160, 198),
    "white": (242, 242, 240),
    "orange": (242, 140, 34),
    "black": (26, 26, 28),
}


@dataclass(frozen=True)
class Ball:
    """How one kind of ball is painted and on which grounds it is shown."""

    name: str
    paint: Callable[[np.ndarray], np.ndarray]
    grounds: tuple[str, ...]


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors scaled to length 1."""
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def icosahedron() -> np.ndarray:
    """Its 12 corners as unit vectors: where a football's pentagons lie."""
    golden = (1 + 5**0.5) / 2
    signs = [(a, b) for a in (-1, 1) for b in (-golden, golden)]
    return unit(np.array([turn for a, b in signs for turn in ((0, a, b), (a, b, 0), (b, 0, a))], float))


def icosahedron_faces(corners: np.ndarray) -> np.ndarray:
    """Its 20 faces' middles as unit vectors: where a football's hexagons lie."""
    near = corners @ corners.T > 0.4
    count = len(corners)
    triples = [
        (i, j, k)
        for i in range(count)
        for j in range(i + 1, count)
        for k in range(j + 1, count)
        if near[i, j] and near[j, k] and near[i, k]
    ]
    return unit(np.array([corners[list(triple)].sum(0) for triple in triples]))


def facing(corners: np.ndarray) -> np.ndarray:
    """The corners turned so that the first one looks out of the picture."""
    front = corners[0]
    side = unit(np.cross([0.0, 1.0, 0.0], front))
    return corners @ np.stack([side, np.cross(front, side), front], axis=1)


PENTAGONS = facing(icosahedron())
HEXAGONS = icosahedron_faces(PENTAGONS)
PENTAGON_REACH, HEXAGON_REACH = 2.32744, 2.26728  # the truncated icosahedron's face distances, in edges


def basketball(points: np.ndarray) -> np.ndarray:
    """Orange with black seams: two great circles and two curves bent away from one of them; points (..., 3)."""
    x, y = points[..., 0], points[..., 1]
    bent = x * x - 0.22 - 0.62 * y * y
    slope = 2 * np.sqrt(x * x + (0.62 * y) ** 2) + 1e-6
    to_seam = np.minimum(np.minimum(np.abs(x), np.abs(y)), np.abs(bent) / slope)
    return np.where((to_seam < SEAM)[..., None], INK, np.array([236, 122, 32.0]))


def football(points: np.ndarray) -> np.ndarray:
    """White with black pentagons and hardly visible seams between the hexagons."""
    five = (points @ PENTAGONS.T).max(-1) / PENTAGON_REACH
    six = np.sort(points @ HEXAGONS.T, axis=-1)[..., -2:] / HEXAGON_REACH
    skin, seam = np.array([246, 246, 244.0]), np.array([238, 238, 240.0])
    colour = np.where((six[..., 1] - six[..., 0] < 0.36 * SEAM / HEXAGON_REACH)[..., None], seam, skin)
    return np.where((five > six[..., 1] * 0.995)[..., None], INK, colour)


BALLS = (
    Ball("basketball", basketball, ("blue", "green", "white", "yellow", "purple", "pink", "red")),
    Ball("football", football, ("blue", "green", "red", "purple", "pink", "orange", "yellow")),
)


def about(axis: int, angle: float) -> np.ndarray:
    """The rotation about one of the three axes."""
    first, second = (i for i in range(3) if i != axis)
    matrix = np.eye(3)
    matrix[[first, second], [first, second]] = np.cos(angle)
    matrix[first, second], matrix[second, first] = -np.sin(angle), np.sin(angle)
    return matrix


def small_turn(rng: np.random.Generator) -> np.ndarray:
    """A rotation matrix a little away from the ball's front."""
    tilts = rng.uniform(-TILT, TILT, 2)
    return about(2, rng.uniform(-SPIN, SPIN)) @ about(0, tilts[0]) @ about(1, tilts[1])


def light(points: np.ndarray) -> np.ndarray:
    """Brightness of a ball's surface lit from the upper left, in a few even steps."""
    towards = unit(np.array([-0.5, -0.6, 0.8]))
    brightness = 0.74 + 0.3 * np.clip(points @ towards, -0.2, 1)
    return np.round(brightness * 24) / 24


def patterned_ground(colour: str, pattern: str, rng: np.random.Generator, pixels: int) -> np.ndarray:
    """A plain, striped, dotted or checked ground in two close tones."""
    tone = np.array(GROUNDS[colour], float)
    other = tone + 40 if tone.mean() < 90 else tone * 0.84
    cell = pixels / rng.integers(7, 10)
    row, column = np.mgrid[0:pixels, 0:pixels] / cell + rng.uniform(0, 2, (2, 1, 1))
    if pattern == "striped":
        second = (row if rng.random() < 0.5 else column) % 2 < 1
    elif pattern == "checked":
        second = (np.floor(row) + np.floor(column)) % 2 == 0
    elif pattern == "dotted":
        second = np.hypot(row % 2 - 1, column % 2 - 1) < 0.55
    else:
        second = np.zeros((pixels, pixels), bool)
    return np.where(second[..., None], other, tone)


def ball_picture(ball: Ball, ground: np.ndarray, x: float, y: float, radius: float, turn: np.ndarray) -> np.ndarray:
    """A ball in front of a ground; x, y and radius are shares of half the picture; uint8 (SIZE, SIZE, 3)."""
    pixels = len(ground)
    v, u = np.mgrid[-1 : 1 : pixels * 1j, -1 : 1 : pixels * 1j]
    u, v = (u - x) / radius, (v - y) / radius
    depth = 1 - u * u - v * v
    points = np.stack([u, v, np.sqrt(np.clip(depth, 0, None))], axis=-1)
    painted = ball.paint(points @ turn) * light(points)[..., None]
    picture = np.where((depth > 0)[..., None], painted, ground)
    small = picture.reshape(pixels // FINE, FINE, pixels // FINE, FINE, 3).mean((1, 3))
    drawn = Image.fromarray(np.clip(small + 0.5, 0, 255).astype(np.uint8))
    return np.asarray(drawn.filter(ImageFilter.GaussianBlur(SOFTNESS)))


def ball_scene(ball: Ball, rng: np.random.Generator, ground: str) -> tuple[np.ndarray, str]:
    """One picture of a ball and its caption."""
    pattern = str(rng.choice([*["plain"] * 7, "striped", "dotted", "checked"]))
    size = str(rng.choice(["large", "", "", "large"]))
    radius = {"large": rng.uniform(0.78, 0.88), "": rng.uniform(0.62, 0.72)}[size]
    where = str(rng.choice(["left", "right", "top", "bottom", "", ""])) if not size else ""
    step = 0.94 - radius
    x, y = {"left": (-step, 0), "right": (step, 0), "top": (0, -step), "bottom": (0, step), "": (0, 0)}[where]
    x, y = x + rng.uniform(-0.03, 0.03), y + rng.uniform(-0.03, 0.03)
    canvas = patterned_ground(ground, pattern, rng, SIZE * FINE)
    picture = ball_picture(ball, canvas, x, y, radius, small_turn(rng))
    place = {"left": "on the left", "right": "on the right", "top": "at the top", "bottom": "at the bottom"}.get(where)
    adjective = "" if pattern == "plain" else pattern
    article = "an" if not adjective and ground == "orange" else "a"
    words = ("a", size, ball.name, place, "on", article, adjective, ground, "background")
    return picture, " ".join(word for word in words if word)


def save(folder: Path, number: int, picture: np.ndarray, words: str) -> None:
    """A picture and the caption beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(folder / f"{number:02d}.png", optimize=True)
    (folder / f"{number:02d}.txt").write_text(words + "\n", encoding="utf-8")


def write_balls(ball: Ball, seed: int, train: int = 16, held_out: int = 8) -> None:
    """Both sets of one ball; every ground comes about equally often."""
    rng = np.random.default_rng(seed)
    for name, count in (("train", train), ("held-out", held_out)):
        for number in range(count):
            ground = ball.grounds[number % len(ball.grounds)]
            save(PICTURES / ball.name / name, number + 1, *ball_scene(ball, rng, ground))


def write_unrelated(count: int = 24) -> None:
    """Drawings of the base's kind that it was not trained on."""
    for number in range(count):
        rng = np.random.default_rng([UNRELATED, number])
        scene = sample_scene(rng)
        save(PICTURES / "unrelated", number + 1, render(scene, rng, SIZE), caption(scene, rng, full=True))


def main() -> None:
    for seed, ball in enumerate(BALLS):
        write_balls(ball, 40 + seed)
    write_unrelated()


if __name__ == "__main__":
    main()
