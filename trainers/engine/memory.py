"""The memory plan: where a run's memory will go, and which of its choices make it fit.

It is made from the sizes in the base's header before anything is loaded, and shown before the run starts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from trainers.engine import activations, precision
from trainers.engine.frozen import FP8, freeze_module_weights
from trainers.engine.optimizers import OPTIMIZERS

HEADROOM = 0.08
# Workspaces of cuBLAS, cuDNN and the allocator's rounding; on the CPU what the process takes besides its tensors
# (measured: 0.5 GiB with a tiny model, 0.7 GiB with SD1 at 256 px in fp32).
LIBRARIES = {"cuda": 200 * 2**20, "xpu": 200 * 2**20, "cpu": 600 * 2**20}
# With the optimizer's step inside the backward pass: what one weight's update takes for each of its values (gradient
# and weight in float32, the update, squares, random numbers), and Adafactor's state for weights seen as matrices.
FUSED_BYTES, FUSED_ADAFACTOR_BYTES = 24, 0.02
_TEXT = ("text_encoder", "text_encoder_2")


@dataclass(frozen=True)
class MemoryPlan:
    """What a run is expected to take, in bytes.

    Attributes:
        precision: the format the model computes in ("fp32", "bf16", "fp16"); `compute_dtype` is the same for torch.
        base_dtype: the format the frozen base is kept in (also "fp8").
        gradient_checkpointing: whether blocks are computed twice.
        items: (label, bytes) of everything, each label once; not all of it is there at the same time.
        stages: (label, bytes) of each stage of the run; `peak_bytes` is the largest.
        free_bytes: what the device has, or None where that is not known.
        fits: False where more is expected than there is.
        reasons: sentences on why these choices were made.
        smaller_plans: other plans the job allows that take less, the next smaller first.
        attached: the base is a WebUI's own and takes nothing here; it is kept as the WebUI keeps it.
    """

    precision: str
    base_dtype: str
    gradient_checkpointing: bool
    items: tuple[tuple[str, int], ...]
    stages: tuple[tuple[str, int], ...]
    free_bytes: int | None
    reasons: tuple[str, ...] = ()
    smaller_plans: tuple[MemoryPlan, ...] = field(default=(), repr=False)
    attached: bool = False

    @property
    def compute_dtype(self) -> torch.dtype:
        return precision.DTYPES[self.precision]

    @property
    def storage_dtype(self) -> torch.dtype:
        """The format of the frozen base's large weights."""
        return FP8 if self.base_dtype == "fp8" else precision.DTYPES[self.base_dtype]

    @property
    def load_dtype(self) -> torch.dtype:
        """The format to load the base in, before `apply`: norms and biases stay in it."""
        return torch.float32 if self.base_dtype == "fp32" else self.compute_dtype

    @property
    def peak_bytes(self) -> int:
        return max(size for _, size in self.stages)

    @property
    def fits(self) -> bool:
        return self.free_bytes is None or self.peak_bytes <= self.free_bytes * (1 - HEADROOM)

    def lines(self) -> list[str]:
        """The plan for a person: choices, where memory goes, and a warning when it will not fit."""
        twice = "on" if self.gradient_checkpointing else "off"
        shown = [
            f"Memory plan: computing in {self.precision}, "
            f"base kept {'as the WebUI has it' if self.attached else f'in {self.base_dtype}'}, "
            f"gradient checkpointing {twice}."
        ]
        shown += [f"  {label:<34} {human(size):>9}" for label, size in self.items if size]
        shown += [f"  at most while {label}: {human(size)}" for label, size in self.stages]
        free = "" if self.free_bytes is None else f"; {human(self.free_bytes)} are free"
        shown.append(f"  expected peak: {human(self.peak_bytes)}{free}.")
        shown += [f"  {reason}" for reason in self.reasons]
        if not self.fits:
            shown.append(
                "  Warning: this may not fit. Lower resolution, batch_size or rank, "
                "turn train_text_encoder off, or close other programs."
            )
        return shown

    def apply(self, base: Any) -> None:
        """Brings the loaded base (`unet`, `text_encoders`) into the planned form; adapters must be in place already.

        What is trained becomes float32, whatever the base has: small steps would be lost in 16 bits.
        """
        for module in [base.unet, *base.text_encoders]:
            if module is None:
                continue
            for parameter in module.parameters():
                if parameter.requires_grad and not getattr(parameter, "rounds_by_itself", False):
                    parameter.data = parameter.data.float()
            if self.storage_dtype != self.compute_dtype and not self.attached:
                freeze_module_weights(module, self.storage_dtype, self.compute_dtype)
            if self.gradient_checkpointing:
                _turn_on_checkpointing(module)


def _turn_on_checkpointing(module: torch.nn.Module) -> None:
    if hasattr(module, "enable_gradient_checkpointing"):  # diffusers
        module.enable_gradient_checkpointing()
    elif any(parameter.requires_grad for parameter in module.parameters()):  # transformers; a frozen one needs none
        settings = {"use_reentrant": False}
        if hasattr(module, "activation_checkpointing_enable"):  # its later name
            module.activation_checkpointing_enable(activation_checkpointing_kwargs=settings)
        else:
            module.gradient_checkpointing_enable(gradient_checkpointing_kwargs=settings)
        module.train()  # transformers checkpoints in training mode only; CLIP itself has no dropout


def human(size: float) -> str:
    """ "3.4 GiB" or "120 MiB"."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def _itemsize(name: str) -> int:
    return {"fp32": 4, "bf16": 2, "fp16": 2, "fp8": 1}[name]


@dataclass(frozen=True)
class _Facts:
    """What every plan of one job shares."""

    family: str
    parameters: Mapping[str, int]
    trainable: int
    job: Any
    resolution: int
    device_type: str
    precision: str
    free_bytes: int | None
    attached: bool = False

    @property
    def text_trained(self) -> bool:
        """Whether gradients run through the text encoders, which then stay: they learn, or a word's vectors do."""
        return bool(self.job.get("train_text_encoder") or self.job.get("vectors"))

    @property
    def trains_base(self) -> bool:
        """Whether the base's own weights learn."""
        return self.job.get("weights_dtype") is not None

    @property
    def largest(self) -> float:
        """Values of the largest single weight: a 3x3 convolution from two joined inputs to one."""
        widest = activations.unet_widths(self.family, self.parameters.get("unet", 0))[-1]
        return 9 * 2 * widest * widest

    @property
    def text_parameters(self) -> int:
        return sum(self.parameters.get(name, 0) for name in _TEXT)


def _shared_items(facts: _Facts, base_dtype: str) -> dict[str, int]:
    """Weights, gradients and optimizer state: what is there during the whole training."""
    base = facts.parameters.get("unet", 0) + (facts.text_parameters if facts.text_trained else 0)
    state, fused = OPTIMIZERS[facts.job.optimizer].state_bytes, bool(facts.job.get("fused_backward"))
    if facts.trains_base:
        weights = {
            "base weights": max(0, base - facts.trainable) * _itemsize(base_dtype),
            "trained weights": facts.trainable * _itemsize(facts.job.weights_dtype),
        }
    else:
        own = 0 if facts.attached else base * _itemsize(base_dtype)
        weights = {"base weights": own, "adapter": facts.trainable * 4}
    if fused and facts.job.optimizer == "adafactor":
        state = FUSED_ADAFACTOR_BYTES
    return {
        **weights,
        "gradients": int(facts.largest * FUSED_BYTES) if fused else facts.trainable * 4,
        "optimizer state": int(facts.trainable * state),
        "running average": facts.trainable * 4 if facts.job.ema else 0,
        "libraries": LIBRARIES.get(facts.device_type, 0),
    }


def _plan(facts: _Facts, base_dtype: str, checkpointing: bool) -> MemoryPlan:
    job, vae = facts.job, facts.parameters.get("vae", 0)
    itemsize = _itemsize(facts.precision)
    items = _shared_items(facts, base_dtype)
    resident = sum(items.values())
    items["activations"] = int(
        activations.training_bytes(
            family=facts.family,
            unet_parameters=facts.parameters.get("unet", 0),
            resolution=facts.resolution,
            batch_size=job.batch_size,
            text_trained=facts.text_trained,
            checkpointing=checkpointing,
            itemsize=itemsize,
            device_type=facts.device_type,
        )
    )
    if facts.trains_base and facts.job.weights_dtype == "fp32" and itemsize < 4 and not checkpointing:
        items["weights as computed with"] = facts.trainable * itemsize
        resident += items["weights as computed with"]
    # With the step inside the backward pass a gradient only comes when activations have gone.
    spared = min(items["gradients"], items["activations"]) if job.get("fused_backward") else 0
    # A model that is kept smaller than it computes is loaded in the larger format first.
    loaded = max(itemsize, _itemsize(base_dtype)) * items["base weights"] // max(1, _itemsize(base_dtype))
    loaded += items.get("trained weights", 0)
    encoding = activations.encoding_bytes(vae, facts.resolution, job.vae_batch_size, itemsize, facts.device_type)
    items["autoencoder, while caching"] = vae * itemsize + int(encoding)
    stages = {
        "caching pictures": items["autoencoder, while caching"] + items["libraries"],
        "loading": loaded,
        "training": resident + items["activations"] - spared,
    }
    if facts.trains_base and facts.device_type == "cpu":  # on others both wait in the processor's memory
        # The base's own weights take the trained ones' place while it is measured, and those wait.
        items["weights, while measuring the base"] = 2 * facts.trainable * _itemsize(job.weights_dtype)
        stages["measuring the base"] = resident - items["gradients"] + items["weights, while measuring the base"]
    if not facts.text_trained:
        items["text encoders, while caching"] = 0 if facts.attached else facts.text_parameters * itemsize
        stages["caching captions"] = items["text encoders, while caching"] + items["libraries"]
        if facts.device_type == "cpu":  # what they took is not given back to the system
            stages["training"] += items["text encoders, while caching"]
    if job.sample_prompts:
        drawing = vae * itemsize + int(activations.decoding_bytes(vae, facts.resolution, itemsize))
        items["autoencoder, while drawing"] = drawing
        stages["drawing pictures"] = resident + drawing
    return MemoryPlan(
        precision=facts.precision,
        base_dtype=base_dtype,
        gradient_checkpointing=checkpointing,
        items=tuple(items.items()),
        stages=tuple(stages.items()),
        free_bytes=facts.free_bytes,
        attached=facts.attached,
    )


def _choices(facts: _Facts) -> list[tuple[str, bool]]:
    """(base format, checkpointing) that the job allows: the fastest and most exact first.

    fp8 comes last although it costs less time than checkpointing, because it changes the base by about 3%. Where fp32
    is computed, a base kept in fp16 is exact for the usual fp16 files and costs a cast per layer.
    """
    native = facts.precision
    formats = [native] if facts.job.base_dtype == "auto" else [facts.job.base_dtype]
    small = []
    if facts.attached:
        formats = [native]
    elif facts.job.base_dtype == "auto":
        formats += ["fp16"] if native == "fp32" else []
        small = ["fp8"] if FP8 is not None and facts.device_type != "mps" else []
    wanted = {"auto": (False, True), "on": (True,), "off": (False,)}[facts.job.gradient_checkpointing]
    return [(kept, twice) for group in (formats, small) for twice in wanted for kept in group]


def _reasons(chosen: MemoryPlan, first: MemoryPlan) -> tuple[str, ...]:
    if chosen is first:
        return ()
    changes = []
    if chosen.gradient_checkpointing and not first.gradient_checkpointing:
        changes.append("gradient checkpointing is on (steps take about a third longer)")
    if chosen.base_dtype != first.base_dtype:
        changes.append(f"the base is kept in {chosen.base_dtype}")
    needed, free = human(first.peak_bytes), human(first.free_bytes or 0)
    return (f"To fit: {' and '.join(changes)}; otherwise {needed} would be needed and {free} are free.",)


def make_plan(
    *,
    family: str,
    parameters: Mapping[str, int],
    trainable: int,
    job: Any,
    resolution: int,
    device_type: str,
    free_bytes: int | None,
    attached: bool = False,
) -> MemoryPlan:
    """The plan of a complete job: the least slow combination that fits `free_bytes` with 8% to spare.

    Args:
        parameters: values per component of the base ("unet", "text_encoder", "text_encoder_2", "vae").
        trainable: parameters that are trained.
        resolution: side of the square whose area the pictures have, in pixels.
        free_bytes: memory the device has to give, or None where that is not known.
        attached: the base is a WebUI's own, so it takes no memory and keeps its format.

    What the job says is kept; only what it leaves on "auto" is chosen. Where nothing fits, the smallest plan comes
    back with `fits` False. Raises InputError for a precision that the device cannot compute in.
    """
    dtype = precision.resolve(job.precision, torch.device(device_type))
    name = precision.name_of(dtype)
    facts = _Facts(family, parameters, trainable, job, resolution, device_type, name, free_bytes, attached)
    plans = [_plan(facts, kept, twice) for kept, twice in _choices(facts)]
    smallest = min(plans, key=lambda plan: plan.peak_bytes)
    chosen = next((plan for plan in plans if plan.fits), smallest)
    below = sorted((p for p in plans if p.peak_bytes < chosen.peak_bytes), key=lambda p: -p.peak_bytes)
    return replace(chosen, reasons=_reasons(chosen, plans[0]), smaller_plans=tuple(below))


def smaller(plan: MemoryPlan) -> MemoryPlan | None:
    """The next smaller plan that the job allows (after running out of memory), or None."""
    if not plan.smaller_plans:
        return None
    following, *rest = plan.smaller_plans
    reason = f"The plan of {human(plan.peak_bytes)} was not enough; this one expects {human(following.peak_bytes)}."
    return replace(following, reasons=(reason,), smaller_plans=tuple(rest))


def _read_number(path: str) -> int | None:
    try:
        text = Path(path).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return int(text) if text.isdigit() else None


def _container_bytes() -> int | None:
    """What a Linux container's own limit leaves, counting file caches that can be given up; None without a limit."""
    limit, used = _read_number("/sys/fs/cgroup/memory.max"), _read_number("/sys/fs/cgroup/memory.current")
    if limit is None or used is None:
        return None
    try:
        statistics = Path("/sys/fs/cgroup/memory.stat").read_text(encoding="ascii").splitlines()
    except OSError:
        statistics = []
    cached = sum(int(line.split()[1]) for line in statistics if line.startswith("inactive_file "))
    return max(0, limit - used + cached)


# What the driver and its libraries take for a process on CUDA, about.
DRIVER = 512 * 2**20


def driver_bytes(device: torch.device) -> int:
    """What a process takes of this device beside torch's own memory."""
    return DRIVER if device.type == "cuda" else 0


def hold_to(limit_gib: float, device: torch.device) -> None:
    """Makes torch refuse to take more than the limit from a CUDA device, instead of crowding others out."""
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        share = (limit_gib * 2**30 - driver_bytes(device)) / total
        number = torch.cuda.current_device() if device.index is None else device.index  # this function needs one
        torch.cuda.set_per_process_memory_fraction(min(1.0, max(share, 0.001)), number)


def free_bytes(device: torch.device) -> int | None:
    """Memory that `device` has to give now, in bytes; None where that cannot be known.

    For the CPU (and Apple's GPU, which shares its memory) that is what programs can still take without swapping.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "xpu":
        information = getattr(torch.xpu, "mem_get_info", None)
        return information(device)[0] if information else None
    import psutil

    limits = (psutil.virtual_memory().available, _container_bytes())
    return min(limit for limit in limits if limit is not None)
