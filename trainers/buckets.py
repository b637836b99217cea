"""Aspect-ratio buckets: which size a picture is brought to, and how."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from trainers.spec import Job

Size = tuple[int, int]  # (width, height)


@dataclass(frozen=True)
class Geometry:
    """Sizes in pixels. `width` x `height` is the area pictures are brought to, or their exact size without buckets."""

    width: int
    height: int
    buckets: bool
    step: int
    minimum: int
    maximum: int
    upscale: bool
    factor: int = 8


@dataclass(frozen=True)
class Placement:
    """A picture is resized to `resized` (keeping its aspect ratio) and `bucket` is cut out of that."""

    bucket: Size
    resized: Size

    @property
    def slack(self) -> Size:
        """How far the cut can move to the right and down."""
        return self.resized[0] - self.bucket[0], self.resized[1] - self.bucket[1]

    @property
    def centre(self) -> Size:
        return self.slack[0] // 2, self.slack[1] // 2


def _down(value: float, step: int) -> int:
    return int(value) // step * step


OPTIONS = ("resolution", "buckets", "bucket_step", "bucket_min", "bucket_max", "upscale")
"""What of a job says how pictures are cut."""


def geometry(
    job: Job, default_resolution: int, factor: int = 8, overrides: Mapping[str, Any] | None = None
) -> Geometry:
    """The job's bucket options fitted to the resolution.

    The defaults suit 512 px and more. For a smaller `resolution` R they are narrowed, so that a model of 64 px gets
    buckets too: steps are at most R/8, the shortest side at most R/2 (both multiples of `factor`, the autoencoder's).
    """
    options = {**job, **(overrides or {})}
    size = options["resolution"] or default_resolution
    width, height = size if isinstance(size, (tuple, list)) else (size, size)
    width, height = max(factor, _down(width, factor)), max(factor, _down(height, factor))
    side = math.sqrt(width * height)
    step = max(factor, min(-(-options["bucket_step"] // factor) * factor, _down(side / 8, factor)))
    maximum = max(step, _down(options["bucket_max"], step))
    minimum = max(step, min(_down(options["bucket_min"], step), _down(side / 2, step), maximum))
    return Geometry(width, height, options["buckets"], step, minimum, maximum, options["upscale"], factor)


@lru_cache(maxsize=64)
def bucket_sizes(shape: Geometry) -> tuple[Size, ...]:
    """All buckets, by width: for each width the tallest size of at most the area; the square is always there."""
    if not shape.buckets:
        return ((shape.width, shape.height),)
    area = shape.width * shape.height
    side = min(_down(math.isqrt(area), shape.step), shape.maximum)
    sizes = {(side, side)}
    for width in range(shape.minimum, shape.maximum + 1, shape.step):
        height = min(_down(area / width, shape.step), shape.maximum)
        if height >= shape.minimum:
            sizes |= {(width, height), (height, width)}
    return tuple(sorted(sizes))


def place(size: Size, shape: Geometry) -> Placement | None:
    """The bucket with the nearest aspect ratio; None when `size` is too small and must not be enlarged."""
    width, height = size
    ratio = math.log(width / height)
    bucket = min(
        bucket_sizes(shape), key=lambda each: (abs(math.log(each[0] / each[1]) - ratio), -each[0] * each[1], each)
    )
    scale = max(bucket[0] / width, bucket[1] / height)
    if scale > 1 and not shape.upscale:
        return _place_unscaled(size, shape)
    resized = (max(bucket[0], round(width * scale)), max(bucket[1], round(height * scale)))
    return Placement(bucket, resized)


def _place_unscaled(size: Size, shape: Geometry) -> Placement | None:
    """A bucket of the picture's own size (reduced when its area is too large), its sides cut to whole steps."""
    width, height = size
    scale = min(1.0, math.sqrt(shape.width * shape.height / (width * height)))
    resized = (round(width * scale), round(height * scale))
    sides = []
    for side in resized:
        step = shape.step if side >= shape.step else shape.factor
        sides.append(min(_down(side, step), shape.maximum))
    if not shape.buckets:
        sides = [min(sides), min(sides)]
    return Placement((sides[0], sides[1]), resized) if min(sides) >= shape.factor else None


def ratio_error(size: Size, bucket: Size) -> float:
    """Difference of the aspect ratios (width / height), as kohya's metadata has it."""
    return abs(bucket[0] / bucket[1] - size[0] / size[1])
