"""Pictures of the class in general, drawn by the base itself where a person has too few of them.

They are kept in the run folder, one by one under their final names, so that a run that was killed goes on drawing
where it stopped; the person's own folder is read, never written.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from trainers.bases.text import encode_prompts, stack
from trainers.data.images import EXTENSIONS as ENDINGS
from trainers.engine import sampling
from trainers.engine.models import Models
from trainers.spec import Job

CAPTIONS = (".txt", ".caption")


def with_class_pictures(job: Job, models: Models, run: Path, report: Callable[[int, int, str], None]) -> Job:
    """The job with a folder that holds at least `class_pictures` pictures; as it is where none have to be drawn."""
    if not job.class_prompt or not job.class_pictures:
        return job
    own = _pictures(Path(job.regularisation_data)) if job.regularisation_data else []
    if len(own) >= job.class_pictures:
        return job
    folder = run / "class"
    folder.mkdir(exist_ok=True)
    for number, picture in enumerate(own):
        _copy(picture, folder / f"own-{number:05d}{picture.suffix.lower()}")
    missing = [n for n in range(job.class_pictures - len(own)) if not (folder / f"{n:05d}.png").exists()]
    if missing:
        _draw(job, models, folder, missing, report)
    return job.replace(regularisation_data=str(folder))


def _pictures(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS)


def _copy(picture: Path, target: Path) -> None:
    """A picture with its caption, unless it is there already."""
    for ending in CAPTIONS:
        if picture.with_suffix(ending).is_file():
            shutil.copyfile(picture.with_suffix(ending), target.with_suffix(ending))
    if not target.exists():
        part = target.with_name(target.name + ".part")
        shutil.copyfile(picture, part)
        part.replace(target)


@torch.no_grad()
def _draw(job: Job, models: Models, folder: Path, numbers: list[int], report: Callable[[int, int, str], None]) -> None:
    base = models.need_text()
    models.need_unet()
    models.need_vae()
    side = job.resolution // 8 * 8

    def encode(texts: list[str]):
        conds = encode_prompts(base, texts, clip_skip=job.clip_skip, max_chunks=1)
        return tuple(None if part is None else part.to(models.device, models.dtype) for part in stack(conds))

    for done, number in enumerate(numbers):
        report(done, len(numbers), "drawing class pictures")
        picture = sampling.draw_one(
            base, encode, job.class_prompt, seed=job.seed + number, size=(side, side), steps=job.sample_steps,
            cfg=job.sample_cfg, negative=job.negative_prompt, zero_terminal_snr=bool(job.zero_terminal_snr),
        )  # fmt: skip
        (folder / f"{number:05d}.txt").write_text(job.class_prompt, encoding="utf-8")
        sampling.save_png(picture, folder / f"{number:05d}.png")
    report(len(numbers), len(numbers), "drawing class pictures")
    models.park_vae()
