"""Small pictures, jobs and a stand-in autoencoder for the tests of the data part."""

from __future__ import annotations

import io
from pathlib import Path

import torch
from PIL import Image, ImageDraw

from trainers import spec


def job_for(data: Path, **options) -> spec.Job:
    base = {"name": "x", "base": "base.safetensors", "data": str(data), "steps": 1, "resolution": 64}
    return spec.parse({**base, "train_text_encoder": False, **options})


def picture(size=(64, 64), colour=(200, 80, 40), mode="RGB", mark=True) -> Image.Image:
    """A picture whose top left corner is marked in blue, so that turning and mirroring show."""
    image = Image.new("RGB", size, colour)
    if mark:
        ImageDraw.Draw(image).rectangle((0, 0, size[0] // 4, size[1] // 4), fill=(0, 0, 255))
    return image.convert(mode)


def put(path: Path, caption: str | bytes | None = None, image: Image.Image | bytes | None = None, **save) -> Path:
    """Write a picture (and its caption as .txt) and return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(image, bytes):
        path.write_bytes(image)
    else:
        (image or picture()).save(path, **save)
    if caption is not None:
        text = caption.encode("utf-8") if isinstance(caption, str) else caption
        path.with_suffix(".txt").write_bytes(text)
    return path


def encoded(image: Image.Image, kind: str = "PNG", **save) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **save)
    return file.getvalue()


class Encoder:
    """Stands for the autoencoder: moments [B, 8, h, w] whose mean is the area mean of the colours; counts its calls."""

    def __init__(self) -> None:
        self.calls = 0
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        self.calls += len(pixels)
        self.shapes.append(tuple(pixels.shape))
        assert pixels.min() >= -1 and pixels.max() <= 1
        cells = torch.nn.functional.avg_pool2d(pixels, 8)
        mean = torch.cat([cells, cells[:, :1]], dim=1)
        return torch.cat([mean, torch.full_like(mean, -4.0)], dim=1)
