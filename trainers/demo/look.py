"""The demonstration of aesthetic gradients: a folder of drawings with one look, and what its tag does to prompts.

The file is made by the usual command line with the CLIP model that comes with the project; the embedded host draws, as
a person would, with the tag in the prompt. How near the pictures come to the folder is measured twice: by that CLIP,
and by their colours alone.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from trainers.demo.tasks import ASSETS, ROOT
from trainers.events import read_events
from trainers.methods.aesthetic_gradient import FURTHER
from trainers.presets import load_preset

CLIP = ASSETS / "clip"
NAME = "lilac"
COLOURS, PATTERNS, COUNT = ("purple", "pink"), ("striped", "dotted", "checked"), 24
TAG = f"<aesthetic:{NAME}:1{FURTHER}>"
SEEDS = (3, 11, 5, 8)
SHOWN = 2
"""So many of the seeds are in the picture; all of them are measured."""
DRAWING = {"steps": 25, "cfg_scale": 4.0, "sampler_name": "DDIM"}
PROMPTS = {"a star": "star", "a heart on the left": "heart", "a large circle": "circle", "a red square": "square"}
"""Prompts that the tag is put into, and the shape that each asks for."""
KEPT = ("a red star on a green background", "a large yellow circle on a blue background")
"""Drawn without the tag, before it was used and afterwards."""


def job(out: Path) -> dict[str, Any]:
    """The raw options."""
    return {
        **load_preset("aesthetic-gradient"),
        "name": NAME,
        "comment": "made by `python install.py demo`",
        "clip_model": str(CLIP),
        "data": str(out / "pictures"),
    }


def draw_pictures(out: Path) -> None:
    """The folder that has the look."""
    from assets.recipe.taught import write_look

    write_look(out / "pictures", COLOURS, PATTERNS, COUNT)


def measured(run: Path) -> dict[str, Any]:
    """What the run's events say."""
    events, _ = read_events(run / "events.jsonl")
    done = next(event for event in reversed(events) if event["event"] == "done")
    return {"seconds": round(done["seconds"], 1), "result": str(run / done["path"])}


def draw(out: Path, base: Path, result: Path) -> dict[str, tuple[list[Image.Image], list[Image.Image]]]:
    """Prompt -> (pictures without, pictures with the tag), drawn by the embedded host in one process.

    The prompts of `KEPT` never have the tag: their two columns are drawn before and after all the others.

    Raises:
        RuntimeError: the host could not draw them, or had something to say about the tag.
    """
    host, folder = out / "host", out / "drawn"
    places = host / "models" / "aesthetic_embeddings"
    for path in (places, folder):
        path.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(result, places / result.name)
    columns = [*((p, "before", "") for p in (*KEPT, *PROMPTS)), *((p, "after", f" {TAG}") for p in PROMPTS)]
    columns += [(prompt, "after", "") for prompt in KEPT]
    files = {(p, side, seed): folder / f"{p} {side} {seed}.png" for p, side, _ in columns for seed in SEEDS}
    wanted = [
        {"to": str(files[p, side, seed]), "prompt": p + tag, "seed": seed, **DRAWING}
        for p, side, tag in columns
        for seed in SEEDS
    ]
    listed = out / "pictures.json"
    listed.write_text(json.dumps({"base": str(base), "data": str(host), "pictures": wanted}), encoding="utf-8")
    command = [sys.executable, "-m", "extension.hosts.embedded.draw_list", str(listed)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8", errors="replace")
    if done.returncode != 0 or done.stdout.strip():
        raise RuntimeError(f"The embedded host did not draw as it should: {(done.stdout + done.stderr).strip()[-600:]}")

    def column(prompt: str, side: str) -> list[Image.Image]:
        return [Image.open(files[prompt, side, seed]).convert("RGB") for seed in SEEDS]

    return {prompt: (column(prompt, "before"), column(prompt, "after")) for prompt in (*PROMPTS, *KEPT)}


def closeness(pictures: Sequence[Image.Image], result: Path) -> float:
    """Mean cosine of the pictures' CLIP embeddings with the file's."""
    from trainers.bases.clip_vision import load_clip_vision
    from trainers.formats import aesthetic

    seen = load_clip_vision(CLIP).embed(list(pictures)).numpy()
    target = aesthetic.read(result).embedding.numpy()
    return float((seen @ target / np.linalg.norm(seen, axis=1) / np.linalg.norm(target)).mean())


def share_of_colours(pictures: Sequence[Image.Image]) -> float:
    """The share of pixels whose nearest colour is one of the look's."""
    from assets.recipe.checker import nearest_names
    from assets.recipe.drawings import COLOURS as KNOWN

    ours = [list(KNOWN).index(name) for name in COLOURS]
    return float(np.mean([np.isin(nearest_names(np.asarray(one)), ours).mean() for one in pictures]))


def share_of_shapes(drawn: dict[str, tuple[list[Image.Image], list[Image.Image]]], side: int) -> float:
    """How often the shape that the prompt asks for is what is seen."""
    from assets.recipe.checker import judge

    return float(np.mean([judge(np.asarray(p)).shape == shape for t, shape in PROMPTS.items() for p in drawn[t][side]]))


def effect(drawn: dict[str, tuple[list[Image.Image], list[Image.Image]]], result: Path) -> dict[str, float]:
    """The report's figures."""
    figures: dict[str, float] = {}
    for side, name in enumerate(("without", "with")):
        pictures = [picture for prompt in PROMPTS for picture in drawn[prompt][side]]
        figures[f"clip_{name}"] = round(closeness(pictures, result), 4)
        figures[f"colours_{name}"] = round(share_of_colours(pictures), 4)
        figures[f"shapes_{name}"] = round(share_of_shapes(drawn, side), 4)
    pairs = [(b, a) for prompt in KEPT for b, a in zip(*drawn[prompt], strict=True)]
    figures["untouched_difference"] = max(int(np.abs(np.asarray(b, int) - np.asarray(a, int)).max()) for b, a in pairs)
    return figures


def verdict(report: dict[str, Any]) -> str:
    """What the figures say, also when they are not what one would wish."""
    nearer = all(report[f"{what}_with"] > report[f"{what}_without"] + 0.1 for what in ("clip", "colours"))
    same = report["untouched_difference"] == 0
    return (
        f"Likeness to the folder by CLIP {report['clip_without']:.2f} -> {report['clip_with']:.2f}; pixels in the "
        f"folder's colours {report['colours_without']:.0%} -> {report['colours_with']:.0%}; the shape that was asked "
        f"for {report['shapes_without']:.0%} -> {report['shapes_with']:.0%}. "
        + ("The tag brings the folder's look" if nearer else "The tag brings less of the folder's look than it should")
        + ("; without it every picture is what it was." if same else ", and pictures without it have changed.")
    )


def page(report: dict[str, Any], drawn: dict[str, tuple[list[Image.Image], list[Image.Image]]]) -> Image.Image:
    """The labelled page."""
    from trainers.demo.picture import Group, Row, compose

    def group(heading: str, prompts: Sequence[str]) -> Group:
        return Group(heading, [Row(p, SEEDS[:SHOWN], *(side[:SHOWN] for side in drawn[p])) for p in prompts])

    return compose(
        "Before and after: aesthetic gradient",
        f"Made from {COUNT} drawings of all kinds of things, all of them {' and '.join(COLOURS)} with a pattern, by "
        f"looking at each once. Left and right: the same prompt and seed; on the right it has {TAG} in it.",
        [group("with the tag", list(PROMPTS)), group("without it, drawn again afterwards", KEPT)],
        verdict(report),
        result="tag",
    )
