"""Writing `.pt` files: the same content gives the same bytes, and a file is there as a whole or not at all."""

from __future__ import annotations

import io
import os
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

_USUAL = re.compile(r"[^/]+/(data/\d+|version|byteorder|data\.pkl)")


def to_bytes(content: Any) -> bytes:
    """The file's bytes."""
    stream = io.BytesIO()  # into memory: torch writes a file's own name into it, which would be the temporary one
    torch.save(content, stream)
    return _only_usual_parts(stream)


def _only_usual_parts(stream: io.BytesIO) -> bytes:
    """The archive without what newer versions of torch add to it: A1111 refuses files with parts that it does not know.

    No version of torch needs them for reading.
    """
    made = io.BytesIO()
    with zipfile.ZipFile(stream) as source, zipfile.ZipFile(made, "w", zipfile.ZIP_STORED) as target:
        for entry in source.infolist():
            if _USUAL.fullmatch(entry.filename):
                target.writestr(zipfile.ZipInfo(entry.filename), source.read(entry))
    return made.getvalue()


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
