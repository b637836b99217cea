"""LoRA and LoCon (Hu et al. 2021, arXiv:2106.09685): low-rank matrices beside frozen layers, on PEFT's layers.

At a site with frozen weight W the layer computes W x + scale * up(down(x)), with scale = alpha / rank (rsLoRA:
alpha / sqrt(rank)). `down` starts as a uniform draw, `up` as zero, so the first step starts from the base itself.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer

from trainers.bases.detect import BaseInfo
from trainers.bases.loader import Base, components_without_level, module_for, module_path
from trainers.errors import InputError
from trainers.formats import adapters, safetensors_io
from trainers.formats.families import FAMILIES
from trainers.formats.metadata import finish
from trainers.methods import lycoris_kinds
from trainers.methods.site_plan import SitePlan, plan_sites, weight_shape
from trainers.rng import generator
from trainers.spec import Job

ADAPTER = "default"
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


def _most_common(values: Iterable[float]) -> float:
    return Counter(values).most_common(1)[0][0]


def _inject(base: Base, component: str, plans: list[SitePlan], job: Job) -> None:
    """PEFT's layers at the planned sites. Only layers that differ from the rest get a pattern: PEFT tries every
    pattern on every layer, which takes a minute for SDXL's 700."""
    root = base.component(component)
    paths = {module_path(root, plan.site.path): plan for plan in plans}
    alphas = {path: plan.scale * plan.rank for path, plan in paths.items()}
    rank, alpha = int(_most_common(plan.rank for plan in plans)), _most_common(alphas.values())
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules="|".join(map(re.escape, paths)),
        rank_pattern={f"^{re.escape(path)}": plan.rank for path, plan in paths.items() if plan.rank != rank},
        alpha_pattern={f"^{re.escape(path)}": value for path, value in alphas.items() if value != alpha},
        lora_dropout=job.dropout,
    )
    inject_adapter_in_model(config, root, adapter_name=ADAPTER)


def _initialise(layer: LoraLayer, plan: SitePlan, seed: int) -> None:
    """down ~ U(-1/sqrt(n), 1/sqrt(n)) for n inputs (Kaiming with a = sqrt 5, as published); up = 0."""
    down, up = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
    bound = 1 / math.sqrt(down[0].numel())
    draw = torch.rand(down.shape, generator=generator(seed, "initial weights", plan.site.name))
    with torch.no_grad():
        down.copy_((draw * 2 - 1) * bound)
        up.zero_()


def trains_text(job: Job) -> bool:
    """Whether text encoders are trained."""
    return job.train_text_encoder


def count_parameters(info: BaseInfo, job: Job) -> int:
    """Number of values that the job will train, from the shapes in the base's header."""
    plans = plan_sites(FAMILIES[info.family], job)
    if job.kind != "lora":
        return lycoris_kinds.count_parameters(info, job, plans)
    total = 0
    for plan in plans:
        shape = weight_shape(info, plan.site)
        total += plan.rank * (shape[0] + math.prod(shape[1:]))
    return total


class LoraTrainable:
    """The injected layers of one run."""

    def __init__(self, base: Base, job: Job, plans: list[SitePlan]) -> None:
        self.job, self.plans, self.family = job, plans, base.family
        self._without_level = components_without_level(base)
        self.trains_unet = any(plan.site.component == "unet" for plan in plans)
        self.trains_text = any(plan.site.component != "unet" for plan in plans)
        self.layers: dict[str, LoraLayer] = {}
        for plan in plans:
            layer = module_for(base, plan.site)
            if not isinstance(layer, LoraLayer):
                raise RuntimeError(f"no adapter was placed at {plan.site.path}")
            if not math.isclose(layer.scaling[ADAPTER], plan.scale, rel_tol=1e-6) or layer.r[ADAPTER] != plan.rank:
                raise RuntimeError(f"the adapter at {plan.site.path} has another rank or scale than planned")
            for part in (layer.lora_A[ADAPTER], layer.lora_B[ADAPTER]):
                part.float()  # PEFT makes them in the base's format, which would round what they start from
            _initialise(layer, plan, job.seed)
            layer.train()
            self.layers[plan.site.name] = layer

    def param_groups(self) -> list[dict[str, Any]]:
        rates = {"unet": self.job.learning_rate, "text": self.job.text_encoder_lr}
        groups: dict[tuple[str, float], list[torch.nn.Parameter]] = {}
        for plan in self.plans:
            part = "unet" if plan.site.component == "unet" else "text"
            rate = rates[part] * self.job.block_lrs.get(plan.block, 1.0)
            layer = self.layers[plan.site.name]
            groups.setdefault((part, rate), []).append(layer.lora_A[ADAPTER].weight)
            # LoRA+ (Hayou et al. 2024, arXiv:2402.12354): the matrix that starts at zero bears a higher rate.
            groups.setdefault((part, rate * self.job.lora_plus), []).append(layer.lora_B[ADAPTER].weight)
        return [{"name": part, "params": params, "lr": rate} for (part, rate), params in groups.items()]

    def tensors(self) -> dict[str, torch.Tensor]:
        live = {}
        for name, layer in self.layers.items():
            live[f"{name}.lora_down.weight"] = layer.lora_A[ADAPTER].weight
            live[f"{name}.lora_up.weight"] = layer.lora_B[ADAPTER].weight
        return live

    @contextmanager
    def without(self) -> Iterator[None]:
        for layer in self.layers.values():
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer in self.layers.values():
                layer.enable_adapters(True)

    @contextmanager
    def at_rest(self) -> Iterator[None]:
        for layer in self.layers.values():
            layer.eval()
        try:
            yield
        finally:
            for layer in self.layers.values():
                layer.train()

    @contextmanager
    def scaled(self, weight: float) -> Iterator[None]:
        """At another strength than 1, as `<lora:NAME:weight>` draws."""
        former = {name: layer.scaling[ADAPTER] for name, layer in self.layers.items()}
        for name, layer in self.layers.items():
            layer.scaling[ADAPTER] = former[name] * weight
        try:
            yield
        finally:
            for name, layer in self.layers.items():
                layer.scaling[ADAPTER] = former[name]

    def constrain(self) -> None:
        """Nothing to keep within bounds."""

    def entries(self) -> dict[str, dict[str, Any]]:
        """The adapter in the canonical form of `trainers.formats.adapters`; rsLoRA is folded into alpha."""
        entries = {}
        for plan in self.plans:
            layer = self.layers[plan.site.name]
            entries[plan.site.name] = {
                "lora_down": layer.lora_A[ADAPTER].weight.detach().float().cpu(),
                "lora_up": layer.lora_B[ADAPTER].weight.detach().float().cpu(),
                "alpha": plan.scale * plan.rank,
            }
        return entries

    def save(self, path: Path, metadata: dict[str, str]) -> None:
        entries, dtype = self.entries(), DTYPES[self.job.save_dtype]
        if self.job.file_format == "peft":
            adapters.save_peft(path, adapters.to_peft(self.family, entries, dtype, without_level=self._without_level))
            return
        if self.job.file_format == "diffusers":
            tensors, header = adapters.to_diffusers(self.family, entries, dtype)
            safetensors_io.save(path, tensors, finish(tensors, {**metadata, **header}))
            return
        self.save_kohya(path, metadata)

    def save_kohya(self, path: Path, metadata: dict[str, str], more: Mapping[str, torch.Tensor] | None = None) -> None:
        """Write it under the names that every WebUI reads, whatever the job's own format is; `more` goes beside it."""
        tensors = {**adapters.to_kohya(self.entries(), DTYPES[self.job.save_dtype]), **(more or {})}
        safetensors_io.save(path, tensors, finish(tensors, metadata))

    save_snapshot = save_kohya

    def start_from(self, path: Path) -> int:
        """Take the weights of an existing LoRA file; returns how many sites it had."""
        entries = adapters.read_adapter(path, self.family.name).entries
        unknown = sorted(set(entries) - set(self.layers))
        if unknown:
            raise InputError(
                f"init_from: {path} also holds {len(unknown)} layers that this run does not train, such as "
                f"{unknown[0]}; turn on what trains them (train_text_encoder, conv_rank) or choose another file."
            )
        by_name = {plan.site.name: plan for plan in self.plans}
        for name, entry in entries.items():
            self._start_site(path, by_name[name], entry)
        return len(entries)

    def _start_site(self, path: Path, plan: SitePlan, entry: dict[str, Any]) -> None:
        layer = self.layers[plan.site.name]
        down, up = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
        if "lora_down" not in entry or "lora_mid" in entry or "dora_scale" in entry:
            raise InputError(f"init_from: {path} is not a plain LoRA at {plan.site.name}; choose a LoRA file.")
        if entry["lora_down"].shape != down.shape or entry["lora_up"].shape != up.shape:
            raise InputError(
                f"init_from: {path} has rank {entry['lora_down'].shape[0]} at {plan.site.name} and this run has "
                f"rank {plan.rank}, or it belongs to another kind of model; set rank (and conv_rank) to the file's."
            )
        factor = entry["alpha"] / entry["lora_down"].shape[0] / plan.scale
        with torch.no_grad():
            down.copy_(entry["lora_down"].float())
            up.copy_(entry["lora_up"].float() * factor)


def setup(base: Base, job: Job) -> LoraTrainable | lycoris_kinds.KindTrainable:
    """Put adapter layers into the loaded base as the job says; the base's own weights are frozen."""
    plans = plan_sites(base.family, job)
    if job.kind != "lora":
        kind = lycoris_kinds.KindTrainable(base, job, plans)
        if job.init_from:
            kind.start_from(Path(job.init_from))
        return kind
    for component in base.family.components:
        chosen = [plan for plan in plans if plan.site.component == component]
        if chosen:
            _inject(base, component, chosen, job)
    trainable = LoraTrainable(base, job, plans)
    if job.init_from:
        trainable.start_from(Path(job.init_from))
    return trainable
