"""The metadata of a result: what the run was, in the fields that other programs read."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from trainers.engine.precision import name_of
from trainers.formats import hashes
from trainers.formats.metadata import TrainingFacts, modelspec, ss_metadata
from trainers.methods import lycoris_kinds

if TYPE_CHECKING:
    from trainers.engine.session import Session


KINDS = {
    "lora": "lora",
    "pivotal": "lora",
    "textual_inversion": "textual-inversion",
    "checkpoint": "",
    "diffusers": "",
    "difference": "lora",
    "hypernetwork": "hypernetwork",
}
"""What ModelSpec calls the result of each method, or of each `output` of one that has several."""


@dataclass(frozen=True)
class FileHashes:
    """A model file's two hashes; both None for a folder."""

    short: str | None = None
    full: str | None = None


def _hash_file(path: Path) -> FileHashes:
    if not path.is_file():
        return FileHashes()
    return FileHashes(hashes.checkpoint_legacy_hash(path), hashes.file_sha256(path))


def hash_in_background(path: str | None) -> Future[FileHashes]:
    """The hashes of a model file, computed beside the training (a large file takes seconds)."""
    if not path:
        done: Future[FileHashes] = Future()
        done.set_result(FileHashes())
        return done
    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="hash")
    future = pool.submit(_hash_file, Path(path))
    pool.shutdown(wait=False)
    return future


def _model_fields(session: Session) -> dict[str, Any]:
    base, vae = session.base_hashes.result(), session.vae_hashes.result()
    job = session.job
    return {
        "model_name": Path(job.base).name,
        "model_hash": base.short,
        "model_sha256": base.full,
        "vae_name": Path(job.vae).name if job.vae else None,
        "vae_hash": vae.short,
        "vae_sha256": vae.full,
    }


def _data_fields(session: Session) -> dict[str, Any]:
    data = session.dataset
    return {
        "num_train_images": data.train_count,
        "num_reg_images": data.regularisation_count,
        "num_validation_images": len(session.validation),
        "num_batches_per_epoch": data.batches_per_epoch,
        "dataset_dirs": data.dataset_dirs(),
        "reg_dataset_dirs": data.dataset_dirs(regularisation=True),
        "tag_frequency": data.tag_frequency(),
        "bucket_info": data.bucket_info(),
    }


def _adapter_fields(session: Session) -> dict[str, Any]:
    job = session.job
    if "rank" not in job:
        return {"network_module": f"athanor.{job.method}"}
    arguments = {}
    if job.conv_rank:
        arguments = {"conv_dim": job.conv_rank, "conv_alpha": job.conv_alpha}
    alpha = job.alpha * job.rank**0.5 if job.rslora else job.alpha
    if job.kind != "lora":
        arguments |= {"algo": lycoris_kinds.KINDS[job.kind].algorithm, "factor": job.factor}
        arguments |= {"dora_wd": True, "wd_on_output": False} if job.kind == "dora" else {}
        return {"rank": job.rank, "alpha": alpha, "network_args": arguments, "network_module": "lycoris.kohya"}
    return {"rank": job.rank, "alpha": alpha, "network_args": arguments}


def result_metadata(session: Session, step: int) -> dict[str, str]:
    """`ss_*` fields and ModelSpec for the result after `step` steps; nothing in them depends on the clock."""
    job, trainable = session.job, session.trainable
    per_epoch = session.steps_per_epoch
    facts = TrainingFacts(
        family=job.family,
        prediction=job.prediction,
        output_name=job.name,
        session_id=job.run["session_id"],
        started_at=job.run["started_at"],
        steps=step,
        epoch=-(-step // per_epoch),
        max_steps=session.total_steps,
        num_epochs=-(-session.total_steps // per_epoch),
        batch_size_per_device=session.dataset.batch_size,
        total_batch_size=session.dataset.batch_size * session.world.size * job.gradient_accumulation,
        resolution=(job.resolution, job.resolution),
        clip_skip=job.clip_skip,
        learning_rate=job.learning_rate,
        unet_lr=job.learning_rate if trainable.trains_unet else None,
        text_encoder_lr=job.get("text_encoder_lr", job.learning_rate) if trainable.trains_text else None,
        mixed_precision="no" if session.dtype == torch.float32 else name_of(session.dtype),
        gradient_checkpointing=session.plan.gradient_checkpointing,
        trigger=job.trigger,
        **_model_fields(session),
        **_data_fields(session),
        **_adapter_fields(session),
    )
    return {**ss_metadata(job, facts), **modelspec(job, facts, KINDS[job.get("output", job.method)])}
