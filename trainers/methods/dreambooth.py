"""DreamBooth (Ruiz et al. 2022, arXiv:2208.12242) and full fine-tuning: the base's own weights learn.

The result is a whole model, or what it differs in from the base: a LoRA of a chosen rank (the best approximation in the
least-squares sense, by singular value decomposition), or the differences as they are.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import torch

from trainers.bases import export
from trainers.bases.detect import BaseInfo, inspect_base
from trainers.bases.loader import Base, load_base, module_for
from trainers.engine.ema import replaced
from trainers.engine.runfolder import replace
from trainers.errors import InputError
from trainers.formats import adapters, safetensors_io
from trainers.formats.families import FAMILIES
from trainers.formats.layer_names import layers
from trainers.formats.metadata import finish
from trainers.formats.sites import all_sites
from trainers.spec import Job

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
_ATTENTION = (".attn1.", ".attn2.")
_LEVEL = "text_model."


def trains_text(job: Job) -> bool:
    """Whether text encoders are trained."""
    return job.train_text_encoder


def block_of(component: str, name: str) -> str:
    """The block a parameter belongs to: down_0 … mid … up_3, text, text_2, or "" for the UNet's ends."""
    if component != "unet":
        return {"text_encoder": "text", "text_encoder_2": "text_2"}[component]
    first, _, rest = name.partition(".")
    if first in ("down_blocks", "up_blocks"):
        return f"{first.removesuffix('_blocks')}_{rest.partition('.')[0]}"
    return "mid" if first == "mid_block" else ""


@cache
def _parts_in_file(family_name: str, output: str) -> frozenset[str]:
    """The parameters that a LoRA, or a file of differences, has names for; without transformers' older level."""
    family = FAMILIES[family_name]
    sites, parts = (all_sites(family), ("weight",)) if output == "lora" else (layers(family), ("weight", "bias"))
    return frozenset(f"{site.component}.{site.path.removeprefix(_LEVEL)}.{part}" for site in sites for part in parts)


def is_trained(family: Any, component: str, name: str, job: Job) -> bool:
    """Whether the job trains this parameter of a component: none that its kind of file could not hold."""
    known = _parts_in_file(family.name, job.output) if job.output in ("lora", "difference") else None
    if known is not None and f"{component}.{name.removeprefix(_LEVEL)}" not in known:
        return False
    if component == "unet":
        if not job.train_unet:
            return False
        if job.trained_layers == "attention" and not any(part in name for part in _ATTENTION):
            return False
        if job.trained_layers == "cross_attention" and ".attn2." not in name:
            return False
    elif not job.train_text_encoder or "token_embedding" in name:
        return False  # the vocabulary stays: a word's own row is Textual Inversion's to teach
    return not job.blocks or block_of(component, name) in job.blocks


def components_of(family: Any) -> list[str]:
    """The components that can learn."""
    return ["unet", *(encoder.component for encoder in family.text_encoders)]


def count_parameters(info: BaseInfo, job: Job) -> int:
    """Number of values that the job will train, from the base's header."""
    family, total = FAMILIES[info.family], 0
    for component in components_of(family):
        for name, shape in info.components[component].shapes.items():
            if is_trained(family, component, name, job):
                total += torch.Size(shape).numel()
    return total


class FullWeights:
    """The base's own parameters, as far as the job trains them."""

    def __init__(self, base: Base, job: Job) -> None:
        self.base, self.job, self.family = base, job, base.family
        self.live: dict[str, torch.nn.Parameter] = {}
        for component in components_of(base.family):
            module = base.component(component)
            for name, parameter in module.named_parameters() if module is not None else ():
                if is_trained(base.family, component, name, job):
                    self.live[f"{component}.{name}"] = parameter
        if not self.live:
            raise InputError("blocks: with these blocks and layers nothing would be trained; choose others.")
        self.trains_unet = any(name.startswith("unet.") for name in self.live)
        self.trains_text = any(not name.startswith("unet.") for name in self.live)
        self.started = False
        self._begin()

    def _begin(self) -> None:
        """Lets them learn from what the file says: the base in memory may have been rounded for computing with it."""
        rounded = any(parameter.dtype != torch.float32 for parameter in self.live.values())
        for name, stored in (self._trained_in(self.base.info, None) if rounded else dict(self.live)).items():
            parameter = self.live[name]
            # A copy of our own: the loaded one may be the file's memory mapping, which is never written.
            parameter.data = stored.detach().to(parameter.device, DTYPES[self.job.weights_dtype], copy=True)
            parameter.rounds_by_itself = self.job.weights_dtype == "bf16"
            parameter.requires_grad_(True)

    def param_groups(self) -> list[dict[str, Any]]:
        parts = {"unet": self.job.learning_rate, "text": self.job.text_encoder_lr}
        groups = []
        for part, rate in parts.items():
            params = [p for name, p in self.live.items() if name.startswith("unet.") == (part == "unet")]
            if params:
                groups.append({"name": part, "params": params, "lr": rate})
        return groups

    def tensors(self) -> dict[str, torch.Tensor]:
        return dict(self.live)

    def constrain(self) -> None:
        """Nothing to keep within bounds."""
        self.started = True

    def originals(self) -> dict[str, torch.Tensor]:
        """The trained parameters as they began: those of the base's file in the number format that they learn in. On
        the CPU."""
        return self._trained_in(self.base.info, DTYPES[self.job.weights_dtype])

    def _trained_in(self, info: BaseInfo, dtype: torch.dtype | None) -> dict[str, torch.Tensor]:
        """The parameters that learn here, as another file of such a model has them, on the CPU. None: as they lie."""
        parts = (["unet"] if self.trains_unet else []) + (["text"] if self.trains_text else [])
        base = load_base(info.path, info=info, prediction=self.base.prediction, parts=parts, dtype=dtype)
        found = {}
        for component in components_of(self.family):
            module = base.component(component)
            for name, parameter in module.named_parameters() if module is not None else ():
                if f"{component}.{name}" in self.live:
                    found[f"{component}.{name}"] = parameter.detach()
        return found

    @contextmanager
    def without(self) -> Iterator[None]:
        """The base as it is in its file, in the number format that it learns in."""
        originals = self.originals()
        with replaced(list(self.live.values()), [originals[name] for name in self.live]):
            yield

    def at_rest(self) -> nullcontext[None]:
        return nullcontext()

    # --- the result

    def _whole(self, dtype: torch.dtype) -> Base:
        """The model with every part, on the CPU: what learned in `dtype`, all else as the base's file has it."""
        info = self.base.info
        whole = load_base(info.path, info=info, prediction=self.base.prediction, vae=self.job.vae, dtype=None)
        for component in components_of(self.family):
            for name, parameter in whole.component(component).named_parameters():
                if f"{component}.{name}" in self.live:
                    parameter.data = self.live[f"{component}.{name}"].detach().to("cpu", dtype)
        return whole

    def save(self, path: Path, metadata: dict[str, str]) -> None:
        dtype = DTYPES[self.job.save_dtype]
        if self.job.output == "diffusers":
            part = path.with_name(path.name + ".part")
            shutil.rmtree(part, ignore_errors=True)
            export.save_diffusers(self._whole(dtype), part, dtype)
            shutil.rmtree(path, ignore_errors=True)
            replace(part, path)
            return
        if self.job.output == "checkpoint":
            state = export.single_file_state(self._whole(dtype))
            tensors = {
                name: tensor.detach().to(dtype if tensor.is_floating_point() else None).contiguous()
                for name, tensor in state.items()
            }
        else:
            tensors = self._differences(dtype)
        safetensors_io.save(path, tensors, finish(tensors, metadata))

    def _differences(self, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """What the model differs in from its base, under kohya's names."""
        originals = self.originals()
        found = {key: self.live[name].detach().float().cpu() - originals[name].float() for key, name in self._layers()}
        if self.job.output == "lora":
            return adapters.to_kohya({name: self._entry(delta) for (name, _), delta in found.items()}, dtype)
        return {f"{name}.{key}": delta.to(dtype) for (name, key), delta in found.items()}

    def _layers(self) -> Iterator[tuple[tuple[str, str], str]]:
        """((site, part as files name it), name of the parameter) for all that learns and that a difference names."""
        names = {id(parameter): name for name, parameter in self.live.items()}
        for site in layers(self.family):
            try:
                module = module_for(self.base, site)
            except LookupError:  # not loaded, or a shortcut that only other widths have
                continue
            norm = isinstance(module, (torch.nn.GroupNorm, torch.nn.LayerNorm))
            for part, key in (("weight", "w_norm" if norm else "diff"), ("bias", "b_norm" if norm else "diff_b")):
                parameter = getattr(module, part, None)
                if id(parameter) in names:
                    yield (site.name, key), names[id(parameter)]

    def _entry(self, delta: torch.Tensor) -> dict[str, Any]:
        down, up = low_rank(delta.flatten(1), self.job.extracted_rank)
        kernel = delta.shape[2:]
        return {
            "lora_down": down.reshape(-1, delta.shape[1], *kernel),
            "lora_up": up.reshape(*up.shape, *[1] * len(kernel)),
            "alpha": float(down.shape[0]),
        }

    def wear(self, path: Path) -> None:
        """Takes the weights that a file of this run stands for: a model's own, or the base's with its difference."""
        if self.job.output in ("checkpoint", "diffusers"):
            found = self._trained_in(inspect_base(path, family=self.family.name), None)
        else:
            found = self.originals()
            for name, delta in self._deltas(path):
                found[name] = found[name].float() + delta
        with torch.no_grad():
            for name, parameter in self.live.items():
                parameter.copy_(found[name])

    def _deltas(self, path: Path) -> Iterator[tuple[str, torch.Tensor]]:
        """(name of a trained parameter, what is added to it) of a file that holds the difference."""
        if self.job.output == "difference":
            tensors, _ = safetensors_io.load(path)
            yield from ((name, tensors[".".join(key)].float()) for key, name in self._layers())
            return
        entries = adapters.read_adapter(path, self.family.name).entries
        for (site, _), name in self._layers():
            up, down = entries[site]["lora_up"].float(), entries[site]["lora_down"].float()
            scale = float(entries[site]["alpha"]) / down.shape[0]
            yield name, scale * (up.flatten(1) @ down.flatten(1)).reshape(self.live[name].shape)

    def start_from(self, path: Path) -> None:
        raise InputError(f"init_from: {path} cannot be gone on from; name the model as base instead.")


def low_rank(matrix: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(down [r, in], up [out, r]) whose product is the matrix's best approximation of rank r = min(rank, full rank).

    Eckart and Young 1936: the largest singular values; each side carries their square roots.
    """
    u, s, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    rank = min(rank, len(s))
    root = s[:rank].sqrt()
    return (root[:, None] * vh[:rank]).float(), (u[:, :rank] * root).float()


def setup(base: Base, job: Job) -> FullWeights:
    """Let the loaded base's own weights learn, as far as the job says."""
    weights = FullWeights(base, job)
    if job.init_from:
        weights.start_from(Path(job.init_from))
    return weights
