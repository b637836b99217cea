"""Loading a base model into diffusers and transformers modules.

Modules are built on the meta device from the shapes in the file and take over its memory mapping: nothing is
initialised, nothing is copied that need not be, and nothing is looked up on the hub.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from trainers.bases import build, prediction
from trainers.bases.canonical import Component
from trainers.bases.concepts import Concept
from trainers.bases.detect import BaseInfo, inspect_base, inspect_vae
from trainers.bases.tokenizer import END, clip_tokenizer
from trainers.errors import InputError
from trainers.formats.families import FAMILIES, Family
from trainers.formats.sites import Site

PARTS = ("unet", "text", "vae")


@dataclass
class Base:
    """A loaded base model; parts that were not asked for are None or empty.

    Attributes:
        family: the family's table.
        prediction: "epsilon" or "v".
        alphas_cumprod: float32 [1000], the noise schedule all families share.
        vae_path: the separate autoencoder file in use, or None.
        concepts: words that stand for vectors of their own (see `trainers.bases.concepts`).
    """

    info: BaseInfo
    family: Family
    prediction: str
    unet: Any = None
    text_encoders: list = field(default_factory=list)
    tokenizers: list = field(default_factory=list)
    vae: Any = None
    alphas_cumprod: torch.Tensor = field(default_factory=lambda: noise_schedule())
    vae_path: Path | None = None
    concepts: list[Concept] = field(default_factory=list)

    def component(self, name: str) -> Any:
        """The module called "unet", "text_encoder", "text_encoder_2" or "vae"."""
        if name in ("unet", "vae"):
            return getattr(self, name)
        names = [encoder.component for encoder in self.family.text_encoders]
        return self.text_encoders[names.index(name)] if self.text_encoders else None


def noise_schedule(start: float = 0.00085, end: float = 0.012, steps: int = 1000) -> torch.Tensor:
    """`alphas_cumprod` (float32, [steps]) of the scaled-linear schedule: the square roots of beta are linear."""
    betas = torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2
    return torch.cumprod(1.0 - betas, dim=0).float()


def _unet(info: BaseInfo, family: Family, component: Component, dtype, device):
    pooled = 0
    for encoder in family.text_encoders:
        if encoder.pooled:
            pooled = info.components[encoder.component].shapes["text_projection.weight"][0]
    config = build.unet_config(family, component.shapes, pooled)
    if "unet" in info.heads and len(info.heads["unet"]) == family.unet.levels:
        config["attention_head_dim"] = info.heads["unet"]
    module = _made(info, "UNet", build.make_unet, config)
    build.fill(module, component.load(dtype, device), str(info.path))
    return module


def _made(info: BaseInfo, what: str, make, *arguments):
    try:
        return make(*arguments)
    except (ValueError, TypeError, ZeroDivisionError) as error:
        raise InputError(f"{info.path}: its {what} cannot be built ({error}).") from error


def _text_encoder(info: BaseInfo, encoder, dtype, device):
    component = info.components[encoder.component]
    config = build.text_config(encoder, component.shapes, info.heads.get(encoder.component))
    if config["max_position_embeddings"] != build.POSITIONS:
        raise InputError(
            f"{info.path}: its {encoder.component} reads {config['max_position_embeddings']} tokens at a time "
            f"where {build.POSITIONS} are expected; this kind of model cannot be trained."
        )
    module = _made(info, "text encoder", build.make_text_encoder, config, encoder.pooled)
    build.fill(module, component.load(dtype, device), str(info.path))
    return module


def load_vae(component: Component, latent_scale: float, what: str, dtype=torch.float32, device="cpu"):
    """An autoencoder from its tensors; the family's latent scale goes into its configuration."""
    config = build.vae_config(component.shapes, latent_scale)
    if config["in_channels"] != 3 or config["latent_channels"] != 4:
        raise InputError(f"{what}: its autoencoder does not have 3 colours and 4 latent channels; choose another VAE.")
    module = build.make_vae(config)
    build.fill(module, component.load(dtype, device), what)
    return module


def _check_prediction(family: Family, wanted: str | None) -> str | None:
    if wanted in (None, "", "auto"):
        return None
    if wanted not in family.predictions:
        raise InputError(f"prediction: {wanted!r} is not one of {', '.join(family.predictions)}.")
    return wanted


def _settled_prediction(base: Base, wanted: str | None) -> None:
    """Takes the option, else what the file says, else asks the model (SD2 whose kind is not written anywhere)."""
    info = base.info
    if wanted:
        base.prediction, info.prediction, info.prediction_source = wanted, wanted, "option"
    elif prediction.should_measure(base.family, info.prediction_source) and base.unet is not None:
        width = info.context_width
        empty = torch.zeros(1, build.POSITIONS, width)
        if base.text_encoders:
            from trainers.bases.text import encode_prompts

            empty = encode_prompts(base, [""], base.family.default_clip_skip, 1)[0].hidden[None].detach()
        base.prediction = info.prediction = prediction.measure(base.unet, empty)
        info.prediction_source = "measured"


def load_base(
    path: Path | str,
    *,
    family: str | None = None,
    prediction: str | None = None,
    vae: Path | str | None = None,
    dtype: torch.dtype | None = torch.float32,
    device: torch.device | str = "cpu",
    vae_dtype: torch.dtype | None = None,
    parts: Iterable[str] = PARTS,
    info: BaseInfo | None = None,
) -> Base:
    """Loads a base model; all parameters are frozen and every module is in evaluation mode.

    Args:
        path: an LDM single file (.safetensors, .ckpt) or a diffusers folder.
        family: "sd1", "sd2", "sdxl"; None or "auto" detects.
        prediction: "epsilon" or "v"; None or "auto" detects.
        vae: a separate autoencoder to use instead of the model's own.
        dtype: number format of the weights, None for the file's (`vae_dtype` for the autoencoder, the same where None).
        parts: which of "unet", "text", "vae" to load.
        info: what `inspect_base` already found for this path.

    Raises:
        InputError: as `inspect_base`; also where an autoencoder is asked for and there is none.
    """
    info = info or inspect_base(path, family=family)
    table = FAMILIES[info.family]
    wanted = _check_prediction(table, prediction)
    base = Base(info, table, info.prediction)
    if "text" in parts:
        base.text_encoders = [_text_encoder(info, encoder, dtype, device) for encoder in table.text_encoders]
        base.tokenizers = [clip_tokenizer(END if encoder.pads_with_end else "!") for encoder in table.text_encoders]
    if "unet" in parts:
        base.unet = _unet(info, table, info.components["unet"], dtype, device)
    if "vae" in parts:
        base.vae, base.vae_path = _vae(info, table, vae, vae_dtype or dtype, device)
    _settled_prediction(base, wanted)
    return base


def _vae(info: BaseInfo, family: Family, separate: Path | str | None, dtype, device):
    if separate:
        return load_vae(inspect_vae(separate), family.latent_scale, str(separate), dtype, device), Path(separate)
    if not info.has_vae:
        raise InputError(f"{info.path}: this model has no autoencoder; name one with the option vae.")
    return load_vae(info.components["vae"], family.latent_scale, str(info.path), dtype, device), None


def module_path(module: torch.nn.Module, path: str) -> str:
    """`path` (canonical, with the `text_model.` level) as this module spells it."""
    if path.startswith("text_model.") and not hasattr(module, "text_model"):
        return path[len("text_model.") :]
    return path


def components_without_level(base: Base) -> tuple[str, ...]:
    """Text encoders whose modules have no `text_model.` level (CLIPTextModel of transformers 5)."""
    encoders = zip(base.family.text_encoders, base.text_encoders, strict=False)
    return tuple(spec.component for spec, module in encoders if not hasattr(module, "text_model"))


def module_for(base: Base, site: Site) -> torch.nn.Module:
    """The layer at a site, under every supported version of transformers; `LookupError` where it is not there."""
    component = base.component(site.component)
    if component is None:
        raise LookupError(f"{site.component} is not loaded")
    try:
        return component.get_submodule(module_path(component, site.path))
    except AttributeError:
        raise LookupError(f"{site.component} has no layer {site.path}") from None


def set_module(base: Base, site: Site, module: torch.nn.Module) -> None:
    """Puts another layer at a site."""
    component = base.component(site.component)
    parent, _, name = module_path(component, site.path).rpartition(".")
    owner = component.get_submodule(parent)
    owner._modules[name] = module
