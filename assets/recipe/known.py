"""Drawings of the kind the base knows, to train beside something new so that the old is kept.

They are of the training's kind but not from it, and none of them is among the unrelated pictures that are measured on.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from .drawings import draw

SPACE = 5


def write_known(folder: Path, count: int) -> None:
    """Writes `count` drawings with captions into `folder`; the same ones every time."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        picture, words, _ = draw(SPACE, number)
        Image.fromarray(picture).save(folder / f"{number + 1:03d}.png")
        (folder / f"{number + 1:03d}.txt").write_text(words + "\n", encoding="utf-8")
