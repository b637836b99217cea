"""Random adapters of every kind for a checkpoint, made by hand in the forms that files have."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from trainers.formats import safetensors_io
from trainers.formats.families import FAMILIES
from trainers.formats.layer_names import layers
from trainers.formats.sites import Site, all_sites, component_sites

RANK = 4
Make = Callable[[Tensor, torch.Generator], dict[str, Tensor]]
_ROOTS = {"unet": "model.diffusion_model.", "text_encoder": "cond_stage_model.transformer."}


def _random(generator: torch.Generator, *shape: int, size: float = 1.0) -> Tensor:
    return torch.randn(*shape, generator=generator) * size


def _alpha(value: float = 2.0) -> dict[str, Tensor]:
    return {"alpha": torch.tensor(value)}


def lora(weight: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    out, inp, *kernel = weight.shape
    fan = weight[0].numel()
    return {
        "lora_down.weight": _random(generator, RANK, inp, *kernel, size=fan**-0.5),
        "lora_up.weight": _random(generator, out, RANK, *[1] * len(kernel), size=0.15),
        **_alpha(),
    }


def tucker(weight: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    if weight.dim() != 4 or weight.shape[-1] == 1:
        return lora(weight, generator)
    out, inp, *kernel = weight.shape
    return {
        "lora_down.weight": _random(generator, RANK, inp, 1, 1, size=inp**-0.5),
        "lora_mid.weight": _random(generator, RANK, RANK, *kernel, size=0.3),
        "lora_up.weight": _random(generator, out, RANK, 1, 1, size=0.15),
        **_alpha(),
    }


def loha(weight: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    out, fan = weight.shape[0], weight[0].numel()
    parts = {}
    for one in ("w1", "w2"):
        parts[f"hada_{one}_a"] = _random(generator, out, RANK, size=0.4)
        parts[f"hada_{one}_b"] = _random(generator, RANK, fan, size=fan**-0.25)
    return {**parts, **_alpha()}


def lokr(weight: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    out, inp = weight.shape[:2]
    factor = 4 if out % 4 == 0 and inp % 4 == 0 else 1
    fan = weight[0].numel() // factor
    return {
        "lokr_w1": _random(generator, factor, factor, size=0.5),
        "lokr_w2_a": _random(generator, out // factor, RANK, size=0.2),
        "lokr_w2_b": _random(generator, RANK, fan, size=fan**-0.5),
        **_alpha(),
    }


def lokr_full(weight: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    out, inp, *kernel = weight.shape
    factor = 4 if out % 4 == 0 and inp % 4 == 0 else 1
    return {
        "lokr_w1": _random(generator, factor, factor, size=0.3),
        "lokr_w2": _random(generator, out // factor, inp // factor, *kernel, size=0.1 * weight[0].numel() ** -0.5),
        **_alpha(),
    }


def dora(weight: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """With the norm along the inputs, the axis that every host reads right."""
    made = lora(weight, generator)
    norm = weight.transpose(0, 1).reshape(weight.shape[1], -1).norm(dim=1)
    factor = 1 + 0.1 * torch.randn(norm.shape, generator=generator)
    shape = (1, weight.shape[1], *[1] * (weight.dim() - 2))
    return {**made, "dora_scale": (norm * factor).reshape(shape)}


def ia3(weight: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    return {"weight": _random(generator, weight.shape[0], size=0.15), "on_input": torch.tensor(False)}


def ia3_input(weight: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    return {"weight": _random(generator, weight.shape[1], size=0.15), "on_input": torch.tensor(True)}


def oft(weight: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    block = weight.shape[0] // 4
    return {"oft_blocks": _random(generator, 4, block, block, size=0.3 * block**-0.5), **_alpha(0.0)}


def boft(weight: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    return {"oft_blocks": _random(generator, 2, weight.shape[0] // 4, 4, 4, size=0.1), **_alpha(0.0)}


def glora(weight: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    out, inp = weight.shape
    return {
        "a1.weight": _random(generator, RANK, inp, size=0.15 * inp**-0.5),
        "a2.weight": _random(generator, inp, RANK, size=0.3),
        "b1.weight": _random(generator, RANK, inp, size=inp**-0.5),
        "b2.weight": _random(generator, out, RANK, size=0.1),
        **_alpha(RANK),  # A1111's own loader takes alpha / rank for 1
    }


def full(weight: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    return {"diff": _random(generator, *weight.shape, size=0.15 * weight[0].numel() ** -0.5)}


def full_bias(weight: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    return {**full(weight, generator), "diff_b": _random(generator, weight.shape[0], size=0.05)}


def norm(weight: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    width = weight.shape[0]
    return {"w_norm": _random(generator, width, size=0.15), "b_norm": _random(generator, width, size=0.05)}


def _linear_sites() -> Iterator[Site]:
    yield from (site for site in all_sites(FAMILIES["sd1"]))


def _conv_sites() -> Iterator[Site]:
    yield from component_sites(FAMILIES["sd1"], "unet", conv3x3=True)


def _norm_sites() -> Iterator[Site]:
    unknown_to_builtin = ("lora_unet_conv_norm_out", "lora_te_text_model_final_layer_norm")
    yield from (site for site in layers(FAMILIES["sd1"]) if "norm" in site.name and site.name not in unknown_to_builtin)


def _plain_linear_sites() -> Iterator[Site]:
    yield from (site for site in _linear_sites() if site.kind == "linear")


def _unet_sites() -> Iterator[Site]:
    yield from (site for site in _plain_linear_sites() if site.component == "unet")


KINDS: dict[str, tuple[Make, Callable[[], Iterator[Site]]]] = {
    "lora": (lora, _linear_sites),
    "locon": (lora, _conv_sites),
    "tucker": (tucker, _conv_sites),
    "loha": (loha, _linear_sites),
    "lokr": (lokr, _linear_sites),
    "lokr_full": (lokr_full, _conv_sites),
    "dora": (dora, _linear_sites),
    "ia3": (ia3, _plain_linear_sites),
    "ia3_input": (ia3_input, _plain_linear_sites),
    "oft": (oft, _linear_sites),
    "boft": (boft, _unet_sites),
    "glora": (glora, _plain_linear_sites),
    "full": (full, _conv_sites),
    "full_bias": (full_bias, _conv_sites),
    "norm": (norm, _norm_sites),
}


_FAMILY_ROOTS = {
    "sd1": _ROOTS,
    "sd2": {"unet": "model.diffusion_model.", "text_encoder": "cond_stage_model.model."},
    "sdxl": {
        "unet": "model.diffusion_model.",
        "text_encoder": "conditioner.embedders.0.transformer.",
        "text_encoder_2": "conditioner.embedders.1.model.",
    },
}


def _weight(site: Site, state: dict[str, Tensor], family: str) -> tuple[Tensor | None, bool]:
    """The layer's weight in the checkpoint, and whether it has a bias."""
    name = _FAMILY_ROOTS[family][site.component] + site.ldm_path
    if site.ldm_part is not None:
        fused = state.get(f"{name}_weight")
        return (None if fused is None else fused.chunk(3)[site.ldm_part]), True
    return state.get(f"{name}.weight"), f"{name}.bias" in state


def write(path: Path, kind: str, state: dict[str, Tensor], seed: int = 0, family: str = "sd1") -> Path:
    """A file of this kind with random numbers on every layer it can sit on.

    Args:
        state: the checkpoint's tensors, under their names in a single file.
        family: which family the checkpoint is of; others than SD1 get the kind on all their sites.
    """
    make, sites = KINDS[kind]
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for site in sites() if family == "sd1" else all_sites(FAMILIES[family]):
        weight, biased = _weight(site, state, family)
        if weight is None:
            continue
        for part, tensor in make(weight.float(), generator).items():
            if part == "diff_b" and not biased:
                continue  # A1111's own loader breaks the model when it has to add a bias
            tensors[f"{site.name}.{part}"] = tensor.contiguous()
    if not tensors:
        raise ValueError(f"the checkpoint has no layer for {kind}")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    safetensors_io.save(temporary, tensors, {})
    temporary.replace(path)
    return path


def copy_given(source: Path | None, folders: dict[str, Path]) -> None:
    """Puts the files that `make_files.py` made into a WebUI's folders: Forge looks for embeddings only at its start."""
    for path in source.rglob("*.safetensors") if source is not None else ():
        kind = path.relative_to(source).parts[0]
        if kind == "embeddings":
            shutil.copyfile(path, folders["embedding"] / path.name)
        elif kind in (path.name, "reference"):
            ending = "_reference" if kind == "reference" else ""
            shutil.copyfile(path, folders["lora"] / f"{path.stem}{ending}.safetensors")
