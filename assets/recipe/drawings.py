"""The drawings the base is taught: simple things in colours, sizes, places and numbers, with captions.

Everything here is a pure function of a seed: `draw(space, index)` is the same picture and caption on every machine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from .shapes import SHAPES, place

SIZE = 64
OVERSAMPLE = 4

# Which drawings a number belongs to. Held-out prompts and the unrelated pictures are never trained on.
TRAIN, HELD_OUT, UNRELATED, RICH = 1, 2, 3, 4

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 34, 38),
    "orange": (247, 136, 22),
    "yellow": (250, 222, 48),
    "green": (42, 158, 62),
    "blue": (38, 84, 212),
    "purple": (122, 42, 160),
    "pink": (250, 156, 196),
    "white": (245, 245, 245),
    "black": (22, 22, 24),
}
PATTERNS = ("plain", "striped", "dotted", "checked")
NUMBERS = ("one", "two", "three")
PLACES = {
    "left": (-0.5, 0.0),
    "right": (0.5, 0.0),
    "top": (0.0, -0.5),
    "bottom": (0.0, 0.5),
    "middle": (0.0, 0.0),
}


@dataclass(frozen=True)
class Thing:
    """One shape on the canvas; lengths are shares of half the canvas, the angle is in radians."""

    x: float
    y: float
    radius: float
    turn: float


@dataclass(frozen=True)
class Scene:
    """What a drawing shows. `size` and `place` are empty where the drawing has no outstanding one."""

    shape: str
    colour: str
    background: str
    pattern: str
    size: str
    place: str
    things: tuple[Thing, ...]


def pick(rng: np.random.Generator, options) -> str:
    """One of the options; several times faster than `rng.choice`."""
    options = tuple(options)
    return options[int(rng.integers(len(options)))]


def is_held_out(shape: str, colour: str, background: str) -> bool:
    """Whether this combination is kept from training: one in eight, so that prompts can ask for something new."""
    numbers = list(SHAPES).index(shape), list(COLOURS).index(colour), list(COLOURS).index(background)
    return (3 * numbers[0] + numbers[1] + 5 * numbers[2]) % 8 == 0


def sample_subject(rng: np.random.Generator) -> tuple[str, str, str]:
    """A shape, its colour and another colour for the background."""
    shape, colour = pick(rng, SHAPES), pick(rng, COLOURS)
    return shape, colour, pick(rng, [name for name in COLOURS if name != colour])


def sample_scene(rng: np.random.Generator, single: bool = False, held_out: bool | None = None) -> Scene:
    """Choose what to draw.

    Args:
        rng: where the choices come from.
        single: leave out the drawings of two and three things.
        held_out: only combinations that are held out (True) or trained on (False); None takes both.
    """
    shape, colour, background = sample_subject(rng)
    while held_out is not None and is_held_out(shape, colour, background) != held_out:
        shape, colour, background = sample_subject(rng)
    pattern = pick(rng, PATTERNS) if rng.random() < 0.45 else "plain"
    many = 1 if single or rng.random() < 0.82 else int(rng.integers(2, 4))
    size = pick(rng, ("small", "large", "")) if many == 1 else ""
    place = pick(rng, PLACES) if many == 1 and size != "large" and rng.random() < 0.7 else ""
    things = group(rng, many) if many > 1 else (single_thing(rng, size, place),)
    return Scene(shape, colour, background, pattern, size, place, things)


def single_thing(rng: np.random.Generator, size: str, place: str) -> Thing:
    """One thing of the named size at the named place, with a little play in both."""
    low, high = {"small": (0.36, 0.43), "large": (0.70, 0.82), "": (0.50, 0.62)}[size]
    radius = rng.uniform(low, high)
    middle = PLACES[place or "middle"]
    play = 0.05 if place else 0.5 * (0.95 - radius) * (size != "large")
    x, y = (float(np.clip(m + rng.uniform(-play, play), radius - 1, 1 - radius)) for m in middle)
    return Thing(x, y, radius, rng.uniform(-0.16, 0.16))


def group(rng: np.random.Generator, many: int) -> tuple[Thing, ...]:
    """Two or three things side by side, or one above the other, none touching."""
    step = 2 / many
    radius = step / 2 * rng.uniform(0.72, 0.86)
    upright = rng.random() < 0.25
    drift = rng.uniform(-0.3, 0.3)
    things = []
    for i in range(many):
        along, across = -1 + step * (i + 0.5), drift + rng.uniform(-0.06, 0.06)
        x, y = (across, along) if upright else (along, across)
        things.append(Thing(x, y, radius, rng.uniform(-0.14, 0.14)))
    return tuple(things)


def thing_words(scene: Scene, rng: np.random.Generator, with_colour: bool) -> str:
    """ "a small red star", "three red stars", "red star"."""
    many = len(scene.things)
    colour = scene.colour if with_colour else ""
    if many > 1:
        plural = "crosses" if scene.shape == "cross" else scene.shape + "s"
        return " ".join(word for word in (NUMBERS[many - 1], colour, plural) if word)
    size = {"small": ("small", "little", "tiny"), "large": ("large", "big", "huge")}.get(scene.size)
    adjective = pick(rng, size) if size and rng.random() < 0.75 else ""
    first = next(word for word in (adjective, colour, scene.shape) if word)
    article = pick(rng, ("an" if first[0] in "aeiou" else "a", "one", "the", ""))
    if rng.random() < 0.6:
        article = "an" if first[0] in "aeiou" else "a"
    return " ".join(word for word in (article, adjective, colour, scene.shape) if word)


def background_words(scene: Scene, rng: np.random.Generator) -> str:
    """ "a blue background", "a striped blue background", "blue stripes"."""
    article = "an" if scene.background[0] in "aeiou" else "a"
    if scene.pattern == "plain":
        plain = (
            f"{article} {scene.background} background",
            f"{scene.background} background",
            f"plain {scene.background}",
        )
        return plain[0] if rng.random() < 0.6 else pick(rng, plain[1:])
    noun = {"striped": "stripes", "dotted": "dots", "checked": "checks"}[scene.pattern]
    if rng.random() < 0.6:
        return f"a {scene.pattern} {scene.background} background"
    return pick(rng, (f"{scene.background} {noun}", f"{article} {scene.background} background with {noun}"))


def place_words(scene: Scene, rng: np.random.Generator) -> str:
    """ "on the left", "in the middle", or nothing."""
    if not scene.place or rng.random() < 0.2:
        return ""
    if scene.place in ("left", "right"):
        return pick(rng, (f"on the {scene.place}", f"{scene.place} side"))
    if scene.place == "middle":
        return pick(rng, ("in the middle", "in the center"))
    return pick(rng, (f"at the {scene.place}", f"{scene.place}"))


def caption(scene: Scene, rng: np.random.Generator, full: bool = False) -> str:
    """Words for a scene; `full` always names the thing, its colour and the background."""
    part = 1.0 if full else rng.random()
    thing = thing_words(scene, rng, with_colour=part > 0.05)
    where = place_words(scene, rng)
    if 0.05 < part < 0.13:
        return " ".join(word for word in (thing, where) if word)
    ground = background_words(scene, rng)
    opening = pick(rng, ("a drawing of ", "a picture of ", "a photo of ")) if rng.random() < 0.25 else ""
    form = rng.random()
    if form < 0.6:
        return " ".join(word for word in (opening + thing, where, "on", ground) if word)
    if form < 0.85:
        return ", ".join(word for word in (opening + thing, where, ground) if word)
    return ", ".join(word for word in (ground, thing, where) if word)


def mask(scene: Scene, size: int = SIZE) -> np.ndarray:
    """How much of each pixel the things cover, 0..1, shape (size, size)."""
    big = size * OVERSAMPLE
    canvas = Image.new("L", (big, big))
    pen = ImageDraw.Draw(canvas)
    for thing in scene.things:
        for hole, outline in enumerate(SHAPES[scene.shape]()):
            points = place(outline, thing.x, thing.y, thing.radius, thing.turn)
            pen.polygon([tuple(p) for p in ((points + 1) * (big / 2)).tolist()], fill=0 if hole else 255)
    return np.asarray(canvas.reduce(OVERSAMPLE), np.float32) / 255


def pattern_wave(rng: np.random.Generator, pattern: str, size: int = SIZE) -> np.ndarray:
    """A field of -1..1 that says which of the two tones a background has, edges softened over a pixel or so."""
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) * (2 * math.pi / size)
    waves = float(rng.integers(3, 5))
    a, b = rng.uniform(0, 2 * math.pi, 2)
    if pattern == "striped":
        upright = rng.random() < 0.5
        field = np.sin(waves * (x if upright else y) + a)
    elif pattern == "checked":
        field = np.sin(waves * x + a) * np.sin(waves * y + b)
    else:
        field = np.sin(waves * x + a) + np.sin(waves * y + b) - 0.9
    return np.clip(field * 4, -1, 1)


def tint(rng: np.random.Generator, name: str) -> np.ndarray:
    """A colour of this name, 0..1, with a little play."""
    return np.clip((np.array(COLOURS[name], np.float32) + rng.normal(0, 3, 3)) / 255, 0, 1).astype(np.float32)


def background(rng: np.random.Generator, name: str, pattern: str, size: int = SIZE) -> np.ndarray:
    """A plain or patterned ground of two close tones, shape (size, size, 3), 0..1."""
    base = tint(rng, name)
    if pattern == "plain":
        return np.broadcast_to(base, (size, size, 3))
    other = base + 0.17 if base.mean() < 0.35 else base * 0.84
    share = (pattern_wave(rng, pattern, size)[..., None] + 1) / 2
    return base * (1 - share) + other * share


def render(scene: Scene, rng: np.random.Generator, size: int = SIZE) -> np.ndarray:
    """The picture of a scene, uint8 of shape (size, size, 3)."""
    ground = background(rng, scene.background, scene.pattern, size)
    cover = mask(scene, size)[..., None]
    picture = ground * (1 - cover) + tint(rng, scene.colour) * cover
    return np.clip(picture * 255 + 0.5, 0, 255).astype(np.uint8)


def draw(space: int, index: int, single: bool = False, full: bool = False) -> tuple[np.ndarray, str, Scene]:
    """Drawing number `index` of a seed space: picture, caption and what it shows."""
    rng = np.random.default_rng([space, index])
    scene = sample_scene(rng, single, {TRAIN: False, HELD_OUT: True}.get(space))
    return render(scene, rng), caption(scene, rng, full), scene
