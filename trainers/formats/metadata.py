"""The metadata of an adapter file: sd-scripts' `ss_*` fields, ModelSpec 1.0.1, and both hashes.

Every value is a text. What sd-scripts leaves empty is the text "None", as there. Nothing here asks the clock: equal
runs give equal files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

import torch

from trainers.formats import hashes
from trainers.formats.families import FAMILIES

_FULL_CHUNK = 75


@dataclass
class TrainingFacts:
    """What is known of a run besides its options.

    Attributes:
        session_id: a whole number that all files of one run share.
        started_at: seconds since 1970.
        steps, epoch: how far the run is.
        max_steps, num_epochs: how far it will go.
        learning_rate, unet_lr, text_encoder_lr: the rates in use (None: that part is not trained).
        rank, alpha: the adapter's (alpha as the file states it).
        network_args: further arguments of the adapter, e.g. {"conv_dim": 8}.
        mixed_precision: "no", "fp16" or "bf16".
        dataset_dirs: {folder: {"n_repeats": .., "img_count": ..}}.
        tag_frequency: {folder: {tag: count}}.
        bucket_info: {"buckets": {"0": {"resolution": [w, h], "count": n}}, "mean_img_ar_error": x}.
        datasets: description of each dataset, as sd-scripts has it.
        model_*: the base's file name and hashes (None for a folder); vae_*: a separate autoencoder's.
        trigger, tags, description: for ModelSpec.
    """

    family: str
    prediction: str
    output_name: str
    session_id: int
    started_at: float
    steps: int = 0
    epoch: int = 0
    max_steps: int = 0
    num_epochs: int = 0
    num_train_images: int = 0
    num_reg_images: int = 0
    num_validation_images: int = 0
    num_batches_per_epoch: int = 0
    batch_size_per_device: int = 1
    total_batch_size: int = 1
    resolution: tuple[int, int] = (512, 512)
    clip_skip: int | None = None
    learning_rate: float | None = None
    unet_lr: float | None = None
    text_encoder_lr: float | None = None
    optimizer: str = ""
    rank: int | None = None
    alpha: float | None = None
    network_module: str = "networks.lora"
    network_args: Mapping[str, Any] = field(default_factory=dict)
    mixed_precision: str = "no"
    gradient_checkpointing: bool = False
    dataset_dirs: Mapping[str, Any] = field(default_factory=dict)
    reg_dataset_dirs: Mapping[str, Any] = field(default_factory=dict)
    tag_frequency: Mapping[str, Any] = field(default_factory=dict)
    bucket_info: Mapping[str, Any] = field(default_factory=dict)
    datasets: list[Any] = field(default_factory=list)
    model_name: str | None = None
    model_hash: str | None = None
    model_sha256: str | None = None
    vae_name: str | None = None
    vae_hash: str | None = None
    vae_sha256: str | None = None
    trigger: str = ""
    tags: str = ""
    description: str = ""


def _off(value: Any) -> Any:
    """sd-scripts writes None for what is switched off."""
    return value or None


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


def _run_fields(job: Mapping[str, Any], facts: TrainingFacts) -> dict[str, Any]:
    return {
        "ss_session_id": facts.session_id,
        "ss_training_started_at": facts.started_at,
        "ss_output_name": facts.output_name,
        "ss_training_comment": _off(job.get("comment")),
        "ss_seed": job.get("seed"),
        "ss_steps": facts.steps,
        "ss_epoch": facts.epoch,
    }


def _optimizer_text(job: Mapping[str, Any], facts: TrainingFacts) -> str:
    arguments = ",".join(job.get("optimizer_args") or [])
    return (facts.optimizer or str(job.get("optimizer"))) + (f"({arguments})" if arguments else "")


def _optimisation_fields(job: Mapping[str, Any], facts: TrainingFacts) -> dict[str, Any]:
    return {
        "ss_learning_rate": facts.learning_rate,
        "ss_unet_lr": facts.unet_lr,
        "ss_text_encoder_lr": facts.text_encoder_lr,
        "ss_optimizer": _optimizer_text(job, facts),
        "ss_lr_scheduler": job.get("schedule"),
        "ss_lr_warmup_steps": job.get("warmup"),
        "ss_max_train_steps": facts.max_steps,
        "ss_max_grad_norm": job.get("max_grad_norm"),
        "ss_gradient_accumulation_steps": job.get("gradient_accumulation"),
        "ss_gradient_checkpointing": facts.gradient_checkpointing,
        "ss_mixed_precision": facts.mixed_precision,
    }


def _data_fields(job: Mapping[str, Any], facts: TrainingFacts) -> dict[str, Any]:
    return {
        "ss_num_train_images": facts.num_train_images,
        "ss_num_validation_images": facts.num_validation_images,
        "ss_num_reg_images": facts.num_reg_images,
        "ss_num_batches_per_epoch": facts.num_batches_per_epoch,
        "ss_num_epochs": facts.num_epochs,
        "ss_batch_size_per_device": facts.batch_size_per_device,
        "ss_total_batch_size": facts.total_batch_size,
        "ss_resolution": tuple(facts.resolution),
        "ss_color_aug": False,
        "ss_flip_aug": bool(job.get("flip")),
        "ss_random_crop": job.get("crop") == "random",
        "ss_shuffle_caption": bool(job.get("shuffle_captions")),
        "ss_enable_bucket": bool(job.get("buckets")),
        "ss_bucket_no_upscale": not job.get("upscale", True),
        "ss_min_bucket_reso": job.get("bucket_min"),
        "ss_max_bucket_reso": job.get("bucket_max"),
        "ss_keep_tokens": job.get("keep_tokens"),
        "ss_dataset_dirs": _json(facts.dataset_dirs),
        "ss_reg_dataset_dirs": _json(facts.reg_dataset_dirs),
        "ss_tag_frequency": _json(facts.tag_frequency),
        "ss_bucket_info": _json(facts.bucket_info),
        "ss_datasets": _json(facts.datasets),
        "ss_cache_latents": True,
        "ss_caption_dropout_rate": job.get("caption_drop"),
        "ss_caption_dropout_every_n_epochs": 0,
        "ss_caption_tag_dropout_rate": job.get("tag_drop"),
        "ss_face_crop_aug_range": None,
        "ss_max_token_length": _FULL_CHUNK * int(job.get("max_chunks") or 1),
    }


def _network_fields(job: Mapping[str, Any], facts: TrainingFacts) -> dict[str, Any]:
    return {
        "ss_network_module": facts.network_module,
        "ss_network_dim": facts.rank,
        "ss_network_alpha": facts.alpha,
        "ss_network_dropout": _off(job.get("dropout")),
        "ss_network_args": _json(dict(facts.network_args)),
        "ss_scale_weight_norms": None,
    }


def _model_fields(facts: TrainingFacts) -> dict[str, Any]:
    family = FAMILIES[facts.family]
    fields: dict[str, Any] = {
        "ss_v2": facts.family == "sd2",
        "ss_base_model_version": family.ss_base_model_version(facts.prediction),
        "ss_clip_skip": facts.clip_skip,
        "ss_sd_model_name": facts.model_name,
        "ss_sd_model_hash": facts.model_hash,
        "ss_new_sd_model_hash": facts.model_sha256,
        "ss_vae_name": facts.vae_name,
        "ss_vae_hash": facts.vae_hash,
        "ss_new_vae_hash": facts.vae_sha256,
    }
    # A folder has no hash, and most runs no separate autoencoder: those fields are left out, as sd-scripts does.
    return {name: value for name, value in fields.items() if value is not None or name == "ss_clip_skip"}


def _loss_fields(job: Mapping[str, Any]) -> dict[str, Any]:
    pyramid = _off(job.get("pyramid_iterations"))
    return {
        "ss_noise_offset": _off(job.get("noise_offset")),
        "ss_adaptive_noise_scale": _off(job.get("adaptive_noise_offset")),
        "ss_multires_noise_iterations": pyramid,
        "ss_multires_noise_discount": job.get("pyramid_discount") if pyramid else None,
        "ss_ip_noise_gamma": _off(job.get("input_perturbation")),
        "ss_zero_terminal_snr": bool(job.get("zero_terminal_snr")),
        "ss_min_snr_gamma": None if job.get("debiased") else _off(job.get("min_snr_gamma")),
        "ss_debiased_estimation": bool(job.get("debiased")),
        "ss_loss_type": job.get("loss"),
        "ss_huber_schedule": job.get("huber_schedule"),
        "ss_huber_c": job.get("huber_c"),
        "ss_prior_loss_weight": job.get("prior_weight"),
    }


def ss_metadata(job: Mapping[str, Any], facts: TrainingFacts) -> dict[str, str]:
    """sd-scripts' fields, all texts.

    Args:
        job: the options (a `trainers.spec.Job`, or any mapping with the same names).
    """
    fields = {
        **_run_fields(job, facts),
        **_optimisation_fields(job, facts),
        **_data_fields(job, facts),
        **_network_fields(job, facts),
        **_model_fields(facts),
        **_loss_fields(job),
    }
    return {name: str(value) for name, value in fields.items()}


def modelspec(job: Mapping[str, Any], facts: TrainingFacts, kind: str = "lora") -> dict[str, str]:
    """ModelSpec 1.0.1's fields (without the hash, which `finish` adds); empty ones are left out.

    Args:
        kind: what the file is ("lora", "textual-inversion"), or "" for a whole model.
    """
    family = FAMILIES[facts.family]
    architecture = family.modelspec_architecture(facts.prediction)
    date = datetime.fromtimestamp(facts.started_at, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S")
    timesteps = (job.get("timestep_min", 0), job.get("timestep_max", 999))
    fields: dict[str, Any] = {
        "sai_model_spec": "1.0.1",
        "architecture": f"{architecture}/{kind}" if kind else architecture,
        "implementation": "https://github.com/Stability-AI/generative-models" if family.unet.sgm_names else "diffusers",
        "title": facts.output_name,
        "resolution": "{}x{}".format(*facts.resolution),
        "date": date,
        "description": facts.description or job.get("comment"),
        "author": job.get("author"),
        "license": job.get("license"),
        "tags": facts.tags,
        "trigger_phrase": facts.trigger or job.get("trigger"),
        "usage_hint": f"Write {facts.trigger or job.get('trigger')} in the prompt."
        if facts.trigger or job.get("trigger")
        else "",
        "prediction_type": facts.prediction,
        "timestep_range": None if timesteps == (0, 999) else f"{timesteps[0]},{timesteps[1]}",
        "encoder_layer": facts.clip_skip,
    }
    return {f"modelspec.{name}": str(value) for name, value in fields.items() if value not in (None, "")}


def finish(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> dict[str, str]:
    """`metadata` with `sshs_model_hash`, `sshs_legacy_hash` and ModelSpec's hash of these very tensors."""
    body = hashes.model_hash(tensors)
    full = {**metadata, "sshs_model_hash": body, "sshs_legacy_hash": hashes.legacy_hash(tensors, metadata)}
    if "modelspec.sai_model_spec" in metadata:
        full["modelspec.hash_sha256"] = f"0x{body}"
    return full
