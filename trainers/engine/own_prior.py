"""Unrelated pictures to measure forgetting on, where a person named none: what the base itself draws.

They are drawn once, before anything is trained, as latents only, and kept in the run's folder, so that a resumed run
measures on the same ones.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from trainers.data.dataset import EvaluationItem
from trainers.engine.conditioning import Conditioner
from trainers.engine.runfolder import replace
from trainers.engine.sampling import draw_latents
from trainers.spec import Job

if TYPE_CHECKING:
    from trainers.bases.loader import Base

PROMPTS = ("a street in a town", "a tree on a hill", "a portrait of a woman", "a bowl of fruit on a table")
_STEPS, _CFG, _SEED = 12, 5.0, 20240229


def wants_own_prior(job: Job) -> bool:
    """Whether forgetting is to be measured and no pictures for it are named."""
    return bool(job.find_best) and not job.prior_data


def own_prior(base: Base, conditioner: Conditioner, job: Job, file: Path) -> list[EvaluationItem]:
    """One item for each of `PROMPTS`, out of `file` where an earlier attempt of the run has written it."""
    side = job.resolution // 8 * 8
    if not file.exists():
        latents = torch.cat([
            draw_latents(base, conditioner, prompt, seed=_SEED + number, size=(side, side), steps=_STEPS, cfg=_CFG,
                         zero_terminal_snr=job.zero_terminal_snr).float().cpu()
            for number, prompt in enumerate(PROMPTS)
        ])  # fmt: skip
        temporary = file.with_name(file.name + ".tmp")
        with open(temporary, "wb") as written:
            torch.save(latents, written)
            written.flush()
            os.fsync(written.fileno())
        replace(temporary, file)
    stored = torch.load(file, map_location="cpu", weights_only=True)
    times = torch.tensor([side, side, 0, 0, side, side], dtype=torch.float32)
    return [EvaluationItem(one, prompt, f"prior {prompt}", times) for one, prompt in zip(stored, PROMPTS, strict=True)]
