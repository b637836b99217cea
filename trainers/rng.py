"""Random numbers that depend only on what they are for.

A stream that is shared makes every draw depend on all the draws before it: a preview, a save or a resume would then
change the result. Here each draw has its own generator, seeded from a hash of (seed, purpose, key).
"""

from __future__ import annotations

import hashlib
import random

import torch


def derived_seed(seed: int, purpose: str, *key: int | str) -> int:
    """A 63-bit seed that depends on all arguments and nothing else, the same on every machine and Python."""
    text = "\x1f".join([str(int(seed)), purpose, *map(str, key)])
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest(), "little") >> 1


def generator(seed: int, purpose: str, *key: int | str, device: str | torch.device = "cpu") -> torch.Generator:
    """A torch generator for one draw, e.g. `generator(job.seed, "noise", step, sample)`."""
    return torch.Generator(device=device).manual_seed(derived_seed(seed, purpose, *key))


def python_random(seed: int, purpose: str, *key: int | str) -> random.Random:
    """The same for Python's own generator (shuffling captions, the order of pictures)."""
    return random.Random(derived_seed(seed, purpose, *key))
