"""Writing `.pt` files: the same content gives the same bytes, and a file is there as a whole or not at all."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import torch


def to_bytes(content: Any) -> bytes:
    """The file's bytes."""
    stream = io.BytesIO()  # into memory: torch writes a file's own name into it, which would be the temporary one
    torch.save(content, stream)
    return stream.getvalue()


def write(path: Path, content: bytes) -> None:
    """Write a file's bytes.

    Raises:
        OSError: the disk is full or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
