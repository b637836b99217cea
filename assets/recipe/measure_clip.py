"""How well the exported CLIP tells held-out drawings apart:  python -m assets.recipe.measure_clip

Among one drawing of every combination of shape, colour and background that was never trained on, how often a caption's
nearest drawing is its own, and a drawing's nearest caption.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from .clip import FOLDER, TextHalf, load_clip, retrieval


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--rounds", type=int, default=10, help="drawings of every combination")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name, value in retrieval(load_clip(options.folder), TextHalf(), options.rounds).items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    main()
