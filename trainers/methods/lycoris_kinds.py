"""The adapter kinds beside LoRA, on LyCORIS's layers: LoHa, LoKr, DoRA, OFT, BOFT, (IA)3 and full differences.

Formulas and key names are LyCORIS's (Yeh et al. 2023, arXiv:2309.14859). A kind is one entry of `KINDS`.
"""

from __future__ import annotations

import importlib
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trainers.bases.detect import BaseInfo
from trainers.bases.loader import Base, module_for
from trainers.errors import InputError
from trainers.formats import safetensors_io
from trainers.formats.metadata import finish
from trainers.methods.site_plan import SitePlan, weight_shape
from trainers.rng import derived_seed
from trainers.spec import Job

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
_IA3_OUTPUTS, _IA3_INPUTS = ("to_k", "to_v", "k_proj", "v_proj"), ("ff.net.2", "fc2")


@dataclass(frozen=True)
class Kind:
    """One kind of adapter.

    Attributes:
        module: (module of LyCORIS, class).
        arguments: what it is made with beside rank and alpha.
        wants: whether a site takes part.
        algorithm: what LyCORIS calls it, for the file's metadata.
        since: the first LyCORIS whose formula is right.
    """

    module: tuple[str, str]
    algorithm: str
    arguments: Callable[[Job, SitePlan], dict[str, Any]] = lambda job, plan: {}
    wants: Callable[[SitePlan], bool] = lambda plan: True
    since: int = 0


KINDS: dict[str, Kind] = {
    "loha": Kind(("loha", "LohaModule"), "loha"),
    "lokr": Kind(("lokr", "LokrModule"), "lokr", lambda job, plan: {"factor": job.factor}),
    # The norm along the input: the axis that every WebUI reads right.
    "dora": Kind(("locon", "LoConModule"), "lora", lambda job, plan: {"weight_decompose": True, "wd_on_out": False}),
    "oft": Kind(("diag_oft", "DiagOFTModule"), "diag-oft", lambda job, plan: {"constraint": job.constraint}),
    # LyCORIS 3 turns the inputs with blocks made for the outputs.
    "boft": Kind(("boft", "ButterflyOFTModule"), "boft", lambda job, plan: {"constraint": job.constraint}, since=4),
    "ia3": Kind(
        ("ia3", "IA3Module"),
        "ia3",
        lambda job, plan: {"train_on_input": plan.site.path.endswith(_IA3_INPUTS)},
        lambda plan: plan.site.path.endswith(_IA3_OUTPUTS + _IA3_INPUTS),
    ),
    "full": Kind(("full", "FullModule"), "full"),
}


def installed_version() -> int:
    """LyCORIS's major version; 0 where it is not installed."""
    try:
        return int(metadata.version("lycoris_lora").split(".")[0])
    except metadata.PackageNotFoundError:
        return 0


def _class_of(kind: Kind) -> type[nn.Module]:
    module, name = kind.module
    if 0 < installed_version() < kind.since:
        raise InputError(
            f"kind: {kind.algorithm} needs LyCORIS {kind.since}, which comes with torch 2.6 and newer "
            f"(here it is {torch.__version__}); use kind oft."
        )
    logging.getLogger("LyCORIS").setLevel(logging.WARNING)  # it would print a line for every new shape
    try:
        return getattr(importlib.import_module(f"lycoris.modules.{module}"), name)
    except ImportError as error:
        raise InputError(
            f"kind: this kind needs the package lycoris_lora, which cannot be imported here ({error}); "
            "install it into the trainer's environment, or use kind lora."
        ) from None


def make_module(name: str, layer: nn.Module, plan: SitePlan, job: Job) -> nn.Module:
    """The adapter of one layer, with starting weights that depend on the seed and the layer's name alone.

    The scale of rsLoRA is folded into alpha, which every program reads.
    """
    kind = KINDS[job.kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(job.seed, "initial weights", name))
        arguments = {"lora_dim": plan.rank, "alpha": plan.scale * plan.rank, "dropout": job.dropout}
        try:
            return _class_of(kind)(name, layer, **arguments, **kind.arguments(job, plan))
        except ValueError as problem:  # blocks of BOFT, of which not every width can be made
            raise InputError(f"kind: {job.kind} cannot be put on {name} ({problem}); choose another rank.") from None


def chosen(plans: list[SitePlan], job: Job) -> list[SitePlan]:
    """The planned sites that take part in this kind."""
    return [plan for plan in plans if KINDS[job.kind].wants(plan)]


def count_parameters(info: BaseInfo, job: Job, plans: list[SitePlan]) -> int:
    """Number of values that the job will train: the modules are made for the shapes in the header, one of each."""
    known: dict[tuple, int] = {}
    total = 0
    for plan in chosen(plans, job):
        shape = weight_shape(info, plan.site)
        arguments = KINDS[job.kind].arguments(job, plan)
        key = (shape, plan.rank, tuple(arguments.items()))
        if key not in known:
            known[key] = _count(shape, plan, job)
        total += known[key]
    return total


def _count(shape: tuple[int, ...], plan: SitePlan, job: Job) -> int:
    if job.kind == "full":
        return math.prod(shape)
    kernel = shape[2:]
    layer = nn.Conv2d(shape[1], shape[0], kernel, bias=False) if kernel else nn.Linear(shape[1], shape[0], bias=False)
    return sum(p.numel() for p in make_module(plan.site.name, layer, plan, job).parameters())


def _share_of(weight: float, plain: Callable[..., Any], adapted: Callable[..., Any]) -> Callable[..., Any]:
    def forward(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        before = plain(x, *args, **kwargs)
        return before + weight * (adapted(x, *args, **kwargs) - before)

    return forward


class KindTrainable:
    """The adapters of one run."""

    def __init__(self, base: Base, job: Job, plans: list[SitePlan]) -> None:
        self.job, self.family, self.plans = job, base.family, chosen(plans, job)
        if not self.plans:
            raise InputError(f"kind: with {job.kind} and these blocks nothing would be trained.")
        self.trains_unet = any(plan.site.component == "unet" for plan in self.plans)
        self.trains_text = any(plan.site.component != "unet" for plan in self.plans)
        self.modules: dict[str, nn.Module] = {}
        for plan in self.plans:
            layer = module_for(base, plan.site)
            module = make_module(plan.site.name, layer, plan, job).to(layer.weight.device).float()
            layer.requires_grad_(False)
            module.train()
            self.modules[plan.site.name] = module
        self._place()

    def _place(self) -> None:
        for module in self.modules.values():
            module.apply_to()

    @staticmethod
    def _take_off(module: nn.Module) -> dict[str, Any]:
        """Lets the layer compute alone again; returns what was taken from it."""
        layer = module.org_module[0]
        names = ("forward", "_lycoris_wrappers", "_lycoris_original_forward")
        taken = {name: layer.__dict__.pop(name) for name in names if name in layer.__dict__}
        if "weight" not in layer._parameters:  # kind full has taken the layer's own weights over
            device = module.weight.device
            layer.weight = nn.Parameter(module.org_weight.to(device), requires_grad=False)
            if module.org_bias is not None:
                layer.bias = nn.Parameter(module.org_bias[0].to(device), requires_grad=False)
            taken["weights"] = True
        return taken

    @staticmethod
    def _put_back(module: nn.Module, taken: dict[str, Any]) -> None:
        layer = module.org_module[0]
        if taken.pop("weights", False):
            del layer.weight
            if module.org_bias is not None:
                del layer.bias
        layer.__dict__.update(taken)

    def _named(self) -> Iterator[tuple[SitePlan, str, nn.Parameter]]:
        for plan in self.plans:
            for name, parameter in self.modules[plan.site.name].named_parameters():
                yield plan, f"{plan.site.name}.{name}", parameter

    def param_groups(self) -> list[dict[str, Any]]:
        rates = {"unet": self.job.learning_rate, "text": self.job.text_encoder_lr}
        groups: dict[tuple[str, float], list[nn.Parameter]] = {}
        for plan, _, parameter in self._named():
            part = "unet" if plan.site.component == "unet" else "text"
            groups.setdefault((part, rates[part] * self.job.block_lrs.get(plan.block, 1.0)), []).append(parameter)
        return [{"name": part, "params": params, "lr": rate} for (part, rate), params in groups.items()]

    def tensors(self) -> dict[str, torch.Tensor]:
        return {name: parameter for _, name, parameter in self._named()}

    def constrain(self) -> None:
        """Nothing to keep within bounds."""

    @contextmanager
    def without(self) -> Iterator[None]:
        taken = [(module, self._take_off(module)) for module in self.modules.values()]
        try:
            yield
        finally:
            for module, parts in taken:
                self._put_back(module, parts)

    @contextmanager
    def at_rest(self) -> Iterator[None]:
        for module in self.modules.values():
            module.eval()
        try:
            yield
        finally:
            for module in self.modules.values():
                module.train()

    @contextmanager
    def scaled(self, weight: float) -> Iterator[None]:
        """At another strength than 1, as `<lora:NAME:weight>` draws: that share of the change of each layer's weights,
        for every kind (LyCORIS's own multiplier means something else for DoRA)."""
        layers = [module.org_module[0] for module in self.modules.values()]
        adapted = [layer.forward for layer in layers]
        for layer, forward in zip(layers, adapted, strict=True):
            layer.forward = _share_of(weight, type(layer).forward.__get__(layer), forward)
        try:
            yield
        finally:
            for layer, forward in zip(layers, adapted, strict=True):
                layer.forward = forward

    def file_tensors(self) -> dict[str, torch.Tensor]:
        """The file's tensors under the names that every program knows, float32 on the CPU."""
        tensors = {}
        for name, module in self.modules.items():
            for key, value in module.state_dict().items():
                tensors[f"{name}.{key}"] = value.detach().float().cpu().contiguous()
        return tensors

    def save_kohya(self, path: Path, metadata: dict[str, str], more: Mapping[str, torch.Tensor] | None = None) -> None:
        """Write it under the names that every WebUI reads; `more` goes beside it."""
        dtype = DTYPES[self.job.save_dtype]
        tensors = {name: tensor.to(dtype) for name, tensor in self.file_tensors().items()} | dict(more or {})
        safetensors_io.save(path, tensors, finish(tensors, metadata))

    save = save_snapshot = save_kohya

    def start_from(self, path: Path) -> None:
        """Take the weights of an existing file of the same kind."""
        stored, _ = safetensors_io.load(path)
        for name, module in self.modules.items():
            own = {key: stored.get(f"{name}.{key}") for key in module.state_dict()}
            missing = [key for key, value in own.items() if value is None]
            try:
                if missing:
                    raise RuntimeError
                module.load_state_dict({key: value.float() for key, value in own.items()}, strict=False)
            except RuntimeError:
                raise InputError(
                    f"init_from: {path} does not fit this run at {name}; set kind, rank and factor to the file's."
                ) from None
