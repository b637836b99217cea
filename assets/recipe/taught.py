"""Pictures that a demonstration teaches: a thing under a word of its own, and a folder of drawings with one look."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from .drawings import COLOURS, PLACES, SHAPES, Scene, background_words, pick, place_words, render, single_thing

SPACE = 6  # none of these drawings is among those that anything was trained or measured on


def scene_of(rng: np.random.Generator, shape: str, colour: str, background: str, pattern: str) -> Scene:
    """One thing of any size, at any place."""
    size = pick(rng, ("small", "large", "", ""))
    place = pick(rng, PLACES) if size != "large" and rng.random() < 0.6 else ""
    return Scene(shape, colour, background, pattern, size, place, (single_thing(rng, size, place),))


def save(folder: Path, number: int, picture: np.ndarray, words: str = "") -> None:
    """A picture, and the caption beside it where there is one."""
    Image.fromarray(picture).save(folder / f"{number:02d}.png")
    if words:
        (folder / f"{number:02d}.txt").write_text(words + "\n", encoding="utf-8")


def write_thing(folder: Path, shape: str, colour: str, word: str, count: int, part: int) -> None:
    """Writes `count` drawings of one thing, whose captions call it `word` and never say its shape or colour.

    Args:
        part: which drawings; two parts have none in common.
    """
    folder.mkdir(parents=True, exist_ok=True)
    grounds = [name for name in COLOURS if name != colour]
    for number in range(count):
        rng = np.random.default_rng([SPACE, part, number])
        pattern = pick(rng, ("striped", "dotted", "checked")) if rng.random() < 0.25 else "plain"
        scene = scene_of(rng, shape, colour, grounds[number % len(grounds)], pattern)
        words = ("a", scene.size, word, place_words(scene, rng), "on", background_words(scene, rng))
        save(folder, number + 1, render(scene, rng), " ".join(each for each in words if each))


def write_look(folder: Path, colours: tuple[str, ...], patterns: tuple[str, ...], count: int) -> None:
    """Writes `count` drawings of all kinds of things that have their colours and patterns in common; no captions."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        rng = np.random.default_rng([SPACE, 100, number])
        colour = pick(rng, colours)
        ground = pick(rng, [name for name in colours if name != colour])
        scene = scene_of(rng, pick(rng, SHAPES), colour, ground, pick(rng, patterns))
        save(folder, number + 1, render(scene, rng))
