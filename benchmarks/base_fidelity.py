"""Does the embedded base draw what the prompt says?  python benchmarks/base_fidelity.py [--json]

Draws held-out prompts (combinations of shape, colour and background that were never trained on) with fixed seeds and
prints the share with the right colour, shape and background, as judged by assets/recipe/checker.py.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from assets.recipe.checker import Verdict, judge  # noqa: E402
from assets.recipe.drawings import HELD_OUT, Scene, draw  # noqa: E402
from assets.recipe.files import sheet  # noqa: E402
from assets.recipe.sampling import draw_prompts  # noqa: E402
from assets.recipe.words import tokens  # noqa: E402

BASE = ROOT / "assets" / "base" / "athanor-base.safetensors"
WANTED = {"colour": 0.95, "shape": 0.90, "background": 0.95}
BATCH = 24


@dataclass(frozen=True)
class Result:
    """A prompt, what it asked for and what was drawn."""

    prompt: str
    scene: Scene
    picture: np.ndarray
    verdict: Verdict

    def right(self, what: str) -> bool:
        return getattr(self.verdict, what) == getattr(self.scene, what)


def held_out_prompts(count: int) -> list[tuple[str, Scene]]:
    """Prompts that name one thing, its colour and the background; size, place and wording vary."""
    drawings = (draw(HELD_OUT, index, single=True, full=True) for index in range(count))
    return [(words, scene) for _, words, scene in drawings]


def parts_of(base: Path | None, work: Path | None) -> tuple:
    """Text model, UNet and autoencoder of a model file, or of a training that is still going on."""
    if work is not None:
        from assets.recipe.export import trained_parts

        parts = trained_parts(work)
    else:
        from trainers.bases.loader import load_base

        parts = load_base(base or BASE)
    return parts.text_encoders[0], parts.unet, parts.vae


def draw_all(parts: tuple, prompts: list[tuple[str, Scene]], steps: int, scale: float) -> list[Result]:
    """Every prompt with its own seed."""
    results = []
    for first in range(0, len(prompts), BATCH):
        some = prompts[first : first + BATCH]
        seeds = [1000 + first + i for i in range(len(some))]
        pictures = draw_prompts(*parts, tokens([words for words, _ in some]), tokens([""]), seeds, steps, scale)
        results += [Result(words, scene, p, judge(p)) for (words, scene), p in zip(some, pictures, strict=True)]
    return results


def shares(results: list[Result]) -> dict[str, float]:
    """The share of right answers for everything asked."""
    return {what: round(sum(r.right(what) for r in results) / len(results), 4) for what in WANTED}


def by_shape(results: list[Result]) -> dict[str, float]:
    """The share of right shapes for each shape."""
    groups = defaultdict(list)
    for result in results:
        groups[result.scene.shape].append(result.right("shape"))
    return {shape: round(sum(rights) / len(rights), 3) for shape, rights in sorted(groups.items())}


def save_sheet(results: list[Result], path: Path) -> None:
    """All pictures, twelve in a row."""
    whole = len(results) // 12 * 12
    sheet(np.stack([result.picture for result in results[:whole]]), 12).save(path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--count", type=int, default=216, help="prompts")
    parser.add_argument("--base", type=Path, help="a model file instead of the bundled one")
    parser.add_argument("--work", type=Path, help="a training folder instead of a model file")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--scale", type=float, default=5.0, help="guidance")
    parser.add_argument("--sheet", type=Path, help="write all pictures here")
    parser.add_argument("--wrong", action="store_true", help="list what went wrong")
    options = parser.parse_args()
    began = time.monotonic()
    results = draw_all(
        parts_of(options.base, options.work), held_out_prompts(options.count), options.steps, options.scale
    )
    if options.sheet:
        save_sheet(results, options.sheet)
    report = {"prompts": len(results), **shares(results), "shapes": by_shape(results), "wanted": WANTED}
    report["seconds"] = round(time.monotonic() - began, 1)
    if options.json:
        print(json.dumps(report))
    else:
        print("\n".join(f"{name}: {value}" for name, value in report.items()))
    if options.wrong:
        for result in results:
            if not all(result.right(what) for what in WANTED):
                print(result.prompt, "->", result.verdict)
    return 0 if all(report[what] >= share for what, share in WANTED.items()) else 1


if __name__ == "__main__":
    sys.exit(main())
