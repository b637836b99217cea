"""The picture of docs/tags.md: the same seed under different tags, drawn by the embedded host.

    python benchmarks/tag_pictures.py --lora FILE [--embedding FILE] [--out docs/images/tags.png]

FILE is what `python install.py demo` wrote (DIR/runs/football/football.safetensors).
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from extension.hosts.embedded.engine import Studio  # noqa: E402
from extension.hosts.embedded.places import EMBEDDED_BASE, Places  # noqa: E402
from extension.hosts.embedded.request import Request  # noqa: E402

SETTINGS = {"steps": 25, "sampler_name": "DDIM", "cfg_scale": 4.0}
TEXT = "a football on a blue background"
SEEDS = (5, 8, 11, 14)
TAGS = (
    "",
    "<lora:football>",
    "<lora:football:0.5>",
    "<lora:football:1@0,0@0.4>",
    "<lora:football:1:start=0.5>",
    "<lora:football:1:lbw=OUTALL>",
    "<lora:football:1:mask=left>",
)
TILE, GAP, LEFT = 112, 8, 330


def sheet(rows: list[tuple[str, list[Image.Image]]]) -> Image.Image:
    """One row of pictures per tag, the tag on the left."""
    width = LEFT + len(SEEDS) * (TILE + GAP) + 20
    page = Image.new("RGB", (width, 20 + len(rows) * (TILE + GAP)), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(17)
    for number, (words, pictures) in enumerate(rows):
        top = 20 + number * (TILE + GAP)
        pen.text((20, top + TILE // 2 - 12), words, font=font, fill=(28, 30, 34))
        for place, picture in enumerate(pictures):
            shown = picture.convert("RGB").resize((TILE, TILE), Image.Resampling.LANCZOS)
            page.paste(shown, (LEFT + place * (TILE + GAP), top))
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lora", type=Path, required=True)
    parser.add_argument("--embedding", type=Path)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images" / "tags.png")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        places = Places(Path(folder))
        places.make()
        shutil.copyfile(options.lora, places.adapters / "football.safetensors")
        prompts = [(tag or "no tag", f"{TEXT} {tag}".strip()) for tag in TAGS]
        if options.embedding:
            name = options.embedding.stem
            shutil.copyfile(options.embedding, places.embeddings / options.embedding.name)
            prompts += [(f"<ti:{name}>", f"a <ti:{name}> on a blue background")]
        studio = Studio(EMBEDDED_BASE, places, device="cpu")
        rows = []
        for words, prompt in prompts:
            drawn = [studio.draw(Request(prompt=prompt, seed=seed, **SETTINGS)) for seed in SEEDS]
            for line in {report for one in drawn for report in one.reports}:
                print(f"{words}: {line}")
            rows.append((words, [one.pictures[0].image for one in drawn]))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    sheet(rows).save(options.out, optimize=True)
    print(f"Written: {options.out}")


if __name__ == "__main__":
    main()
