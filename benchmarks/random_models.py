"""Models of the published sizes with random weights, and pictures to train them on: nothing is downloaded.

    python benchmarks/random_models.py FOLDER sd1 [sdxl ...] [--narrow 10]

Writes FOLDER/<family> (a diffusers folder in fp16: SD1.5 2.0 GiB, SDXL 6.5 GiB) and FOLDER/pictures-<side>.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
PICTURES = 8
SIDES = {"sd1": 512, "sd2": 768, "sdxl": 1024}


def _unet(family, narrow: int, context: int, pooled: int):
    from trainers.bases import build
    from trainers.engine.activations import UNET_WIDTHS

    widths = [width // narrow for width in UNET_WIDTHS[family.name]]
    shapes = {f"down_blocks.{level}.resnets.0.conv1.weight": (width,) for level, width in enumerate(widths)}
    shapes["down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"] = (widths[0], context)
    shapes["add_embedding.linear_1.weight"] = (4 * widths[0], pooled + 6 * 256)
    return build.make_unet(build.unet_config(family, shapes, pooled))


def _text_encoder(encoder, width: int, pooled: int):
    from trainers.bases import build

    shapes = {
        "text_model.embeddings.token_embedding.weight": (49408, width),
        "text_model.encoder.layers.0.mlp.fc1.weight": (4 * width,),
        "text_model.embeddings.position_embedding.weight": (77, width),
        "text_projection.weight": (pooled, width),
    }
    return build.make_text_encoder(build.text_config(encoder, shapes), encoder.pooled)


def _vae(family, narrow: int):
    from trainers.bases import build

    shapes = {
        f"encoder.down_blocks.{level}.resnets.{block}.conv1.weight": (max(32, width // narrow // 32 * 32),)
        for level, width in enumerate((128, 256, 512, 512))
        for block in range(2)
    }
    shapes |= {
        "encoder.conv_in.weight": (max(32, 128 // narrow // 32 * 32), 3),
        "decoder.conv_out.weight": (3,),
        "post_quant_conv.weight": (4, 4),
    }
    return build.make_vae(build.vae_config(shapes, family.latent_scale))


def _fill(module):
    """Random weights in float16, quickly: a block of normal numbers repeated, scaled so that signals stay alive."""
    import torch

    module.half().to_empty(device="cpu")
    block = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0)).half()
    for name, parameter in module.named_parameters():
        if parameter.ndim < 2:
            parameter.data.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
            continue
        values = block.repeat(-(-parameter.numel() // len(block)))[: parameter.numel()]
        scale = 0.02 if "embedding" in name else parameter[0].numel() ** -0.5
        torch.mul(values.view_as(parameter), scale, out=parameter.data)
    for owner in module.modules():
        positions = owner._buffers.get("position_ids")
        if positions is not None:
            owner._buffers["position_ids"] = torch.arange(positions.shape[-1]).expand((1, -1)).clone()
    return module.requires_grad_(False)


def make_model(family_name: str, folder: Path, narrow: int = 1) -> None:
    """A diffusers folder of one family; `narrow` divides all widths (by 1, 2, 5 or 10), to try things out."""
    import torch

    from trainers.bases.export import save_diffusers
    from trainers.engine.activations import TEXT_WIDTHS
    from trainers.formats.families import FAMILIES

    family = FAMILIES[family_name]
    widths = [max(64, width // narrow // 64 * 64) for width in TEXT_WIDTHS[family_name]]
    pooled = widths[-1]
    base = SimpleNamespace(
        family=family,
        prediction=family.default_prediction,
        unet=_fill(_unet(family, narrow, sum(widths), pooled)),
        text_encoders=[
            _fill(_text_encoder(encoder, width, pooled))
            for encoder, width in zip(family.text_encoders, widths, strict=True)
        ],
        vae=_fill(_vae(family, narrow)),
    )
    save_diffusers(base, folder, torch.float16)


def make_pictures(folder: Path, side: int) -> None:
    """A few patterns of `side` x `side` with captions."""
    import torch
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    for number in range(PICTURES):
        values = torch.randint(0, 256, (8, 8, 3), generator=torch.Generator().manual_seed(number), dtype=torch.uint8)
        Image.fromarray(values.numpy()).resize((side, side)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a pattern, number {number}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("families", nargs="+", choices=list(SIDES))
    parser.add_argument("--narrow", type=int, default=1)
    parser.add_argument("--side", type=int, nargs="*", default=[], help="further sizes of pictures")
    args = parser.parse_args()
    for family in args.families:
        done = args.folder / f"{family}.made-{args.narrow}"
        if not done.exists():
            make_model(family, args.folder / family, args.narrow)
            done.touch()
    for side in {*args.side, *(SIDES[family] for family in args.families)}:
        make_pictures(args.folder / f"pictures-{side}", side)


if __name__ == "__main__":
    main()
