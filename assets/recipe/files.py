"""Small file helpers of the training scripts: atomic checkpoints, log lines, picture sheets."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image


def save_atomically(state: dict[str, Any], path: Path) -> None:
    """Write a checkpoint beside its place and move it there, so that a kill never leaves half of one."""
    part = path.with_suffix(".part")
    torch.save(state, part)
    os.replace(part, path)


def load_if_there(path: Path) -> dict[str, Any] | None:
    """The checkpoint, or None."""
    return torch.load(path, map_location="cpu", weights_only=True) if path.exists() else None


def log_line(path: Path, **values: float | int | str) -> None:
    """Append one JSON line and print it."""
    rounded = {key: round(v, 5) if isinstance(v, float) else v for key, v in values.items()}
    line = json.dumps(rounded)
    print(line, flush=True)
    with path.open("a") as stream:
        stream.write(line + "\n")


def sheet(pictures: np.ndarray, columns: int) -> Image.Image:
    """A contact sheet of uint8 pictures (count, height, width, 3); count is a multiple of `columns`."""
    count, height, width, _ = pictures.shape
    rows = pictures.reshape(count // columns, columns, height, width, 3).swapaxes(1, 2)
    return Image.fromarray(rows.reshape(count // columns * height, columns * width, 3))
