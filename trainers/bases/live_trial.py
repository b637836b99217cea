"""`python -m trainers.bases.live_trial FILE`: maps a few numbers of another process, and computes with them.

A WebUI runs this once before it lends memory of a graphics card: what torch, driver and system allow differs, and a
training must not be what finds out.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from trainers.formats.live_tensors import Mapped, cards_problem

COMPONENT, NAME, COUNT = "trial", "numbers", 4096


def main(file: str) -> int:
    """0 where the numbers are what they should be, and a gradient goes through them."""
    description = json.loads(Path(file).read_text(encoding="utf-8"))
    problem = cards_problem(description)
    if problem:
        print(problem, file=sys.stderr)
        return 1
    numbers = Mapped(description).tensors(COMPONENT, [NAME])[NAME]
    if not torch.equal(numbers.cpu(), torch.arange(COUNT, dtype=torch.float32)):
        print("the numbers that were read are others", file=sys.stderr)
        return 1
    row = torch.ones(1, 64, device=numbers.device, requires_grad=True)
    (row @ numbers.view(64, 64)).sum().backward()
    return 0 if torch.equal(row.grad[0].cpu(), torch.arange(COUNT, dtype=torch.float32).view(64, 64).sum(1)) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
