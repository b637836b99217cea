"""Print the autoencoder's PSNR:  python -m assets.recipe.measure_autoencoder [--base FILE | --work DIR]

Mean over pictures in dB, RGB 0..1, on held-out drawings, the bundled pictures and the richer drawings, at 64x64.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image

from .drawings import HELD_OUT, draw
from .files import load_if_there, sheet
from .rich import draw_rich, draw_sphere
from .train_autoencoder import build, psnr, reconstruct, to_tensor

ASSETS = Path(__file__).resolve().parents[1]


def bundled(name: str) -> list[np.ndarray]:
    """All bundled pictures of a kind at 64x64."""
    paths = sorted((ASSETS / "pictures" / name).rglob("*.png"))
    return [np.asarray(Image.open(path).convert("RGB").resize((64, 64), Image.Resampling.LANCZOS)) for path in paths]


def picture_sets() -> dict[str, list[np.ndarray]]:
    """What is measured."""
    return {
        "drawings": [draw(HELD_OUT, index)[0] for index in range(96)],
        **{name: bundled(name) for name in ("basketball", "football", "unrelated")},
        "round": [draw_sphere(np.random.default_rng([HELD_OUT, index])) for index in range(48)],
        "rich": [draw_rich(index, HELD_OUT) for index in range(48)],
    }


def model_from(base: Path, work: Path | None) -> AutoencoderKL:
    """The exported model's autoencoder, or the averaged one of a training that is going on."""
    if work is None:
        from trainers.bases.loader import load_base

        return load_base(base, parts=["vae"]).vae
    model = build()
    model.load_state_dict(load_if_there(work / "autoencoder.pt")["average"])
    return model.eval().requires_grad_(False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", type=Path, default=ASSETS / "base" / "athanor-base.safetensors")
    parser.add_argument("--work", type=Path)
    parser.add_argument("--sheet", type=Path, help="write originals above reconstructions here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = model_from(options.base, options.work)
    rows = []
    for name, pictures in picture_sets().items():
        batch = to_tensor(pictures)
        print(f"{name}: {psnr(model, batch):.2f} dB ({len(pictures)} pictures)")
        rows += [batch[:12], reconstruct(model, batch[:12])]
    if options.sheet:
        pixels = ((torch.cat(rows) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
        sheet(pixels, 12).save(options.sheet)


if __name__ == "__main__":
    main()
