"""A stand-in for a graphics card, so that what torch does with one can be tested without: `card.c` is its memory,
`operators.py` computes. Needs Linux, a C compiler and a torch that was built for CUDA 12 or 13.

It answers whether the memory of processes is shared and comes back, whether tensors meet on one device, whether torch
takes what it is given. It says nothing about speed, numbers or the driver of a real card.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

HERE = Path(__file__).resolve().parent


def problem() -> str:
    """Why there can be none here; "" where there can."""
    if not Path("/dev/shm").is_dir():
        return "the stand-in card lies in /dev/shm"
    return "" if shutil.which("cc") else "the stand-in card needs a C compiler"


def build(folder: Path) -> dict[str, str]:
    """Compiles it into a folder.

    Returns:
        Environment variables of a process that shall have it.
    """
    library = folder / "stand-in-card.so"
    flags = ["-O2", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1"]
    subprocess.run(["cc", *flags, "-o", library, HERE / "card.c", "-lrt", "-lpthread", "-ldl"], check=True)
    return {"LD_PRELOAD": str(library), "PYTHONPATH": str(HERE)}


def wrapped(python: str | Path, folder: Path) -> Path:
    """A program that is this Python, and finds the operators whatever its PYTHONPATH is."""
    program = folder / "python"
    program.write_text(f'#!/bin/sh\nPYTHONPATH="{HERE}${{PYTHONPATH:+:$PYTHONPATH}}" exec "{python}" "$@"\n')
    program.chmod(0o755)
    return program
