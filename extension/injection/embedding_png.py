"""Embeddings that A1111 stores inside a picture: as text in a PNG, or in the lowest bits of two strips beside it.

The strips hold a zlib stream of JSON: the left one the low half of each byte, the right one the high half, both hidden
behind a fixed pseudorandom pattern; a column whose low bits are all 0 stands between a strip and the picture.
"""

from __future__ import annotations

import base64
import binascii
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from trainers.errors import InputError

TEXT_KEY = "sd-ti-embedding"
_ZLIB_START = 0x78
_MAX_PIXELS = 32_000_000
_MAX_TEXT = 64 * 1024 * 1024


def _pattern(count: int) -> np.ndarray:
    """Low halves of a linear congruential generator's numbers (x = 1664525 x + 1013904223 mod 2^32, mod 255)."""
    state, out = 0, np.empty(count, dtype=np.uint8)
    for index in range(count):
        state = (state * 1664525 + 1013904223) & 0xFFFFFFFF
        out[index] = state % 255 & 0x0F
    return out


def _plain(strip: np.ndarray) -> np.ndarray:
    return strip.reshape(-1) ^ _pattern(strip.size)


def _strips(pixels: np.ndarray) -> bytes | None:
    """The bytes in the two strips, or None where the picture has none."""
    lit = (pixels > 0).all(axis=2)
    if not lit.any():
        return None
    rows, columns = np.flatnonzero(lit.any(axis=1)), np.flatnonzero(lit.any(axis=0))
    low_bits = pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] & 0x0F
    borders = np.flatnonzero(low_bits.sum(axis=(0, 2)) == 0)
    if len(borders) < 2:
        return None
    left, right = low_bits[:, : borders[0]], low_bits[:, borders[-1] + 1 :]
    if left.shape != right.shape or left.size == 0:
        return None
    first = _pattern(1)[0]
    if (int(right.flat[0] ^ first) << 4 | int(left.flat[0] ^ first)) != _ZLIB_START:
        return None  # an ordinary picture: the pattern of a large one takes a second to make
    return ((_plain(right) << 4) | _plain(left)).tobytes()


def _tensors(value: Any) -> Any:
    """JSON in which a tensor is `{"TORCHTENSOR": nested lists}`."""
    if isinstance(value, dict):
        if set(value) == {"TORCHTENSOR"}:
            return torch.tensor(value["TORCHTENSOR"], dtype=torch.float32)
        return {key: _tensors(inner) for key, inner in value.items()}
    return value


def _unpacked(stream: bytes) -> bytes:
    unpack = zlib.decompressobj()
    text = unpack.decompress(stream, _MAX_TEXT)
    if not unpack.eof:
        raise ValueError("too large or cut off")
    return text


def read_picture(path: Path) -> dict[str, Any] | None:
    """The embedding in a picture as the dict a `.pt` file would hold, or None where it is just a picture.

    Raises:
        InputError: the picture is damaged, or what is hidden in it is.
    """
    try:
        with Image.open(path) as picture:
            if picture.width * picture.height > _MAX_PIXELS:
                raise InputError(f"{path}: this picture is too large for one that holds an embedding.")
            text = getattr(picture, "text", {}).get(TEXT_KEY)
            pixels = None if text else np.asarray(picture.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: this picture cannot be read ({error}).") from None
    try:
        if text:
            return _tensors(json.loads(base64.b64decode(text)))
        stream = _strips(pixels)
        return None if stream is None else _tensors(json.loads(_unpacked(stream)))
    except (zlib.error, binascii.Error, ValueError, TypeError, RecursionError, RuntimeError):
        if text:
            raise InputError(f"{path}: the embedding in this picture is damaged.") from None
        return None  # a picture with two dark columns by chance
