"""Finding out whether a model predicts the noise (epsilon) or the velocity (v).

The weights look alike, so this is looked for, in this order, in: the file's ModelSpec metadata; the marker tensors
`v_pred` and `ztsnr`; a side file `<model>.yaml` as WebUIs read it; a folder's scheduler configuration. Where nothing
says it and the family has published models of both kinds (SD2), the model is asked once when it is loaded:
at the last timestep the latent is almost pure noise, so an epsilon model gives its input back and a v model gives
something close to the negative of the picture it imagines (the test that A1111 makes, too).
"""

from __future__ import annotations

from pathlib import Path

import torch
import yaml

from trainers.bases.source import Source, read_json
from trainers.formats.families import Family

Found = tuple[str, str, bool]
_LARGEST_SIDE_FILE = 1 << 20
_SPELLINGS = {"epsilon": "epsilon", "eps": "epsilon", "v": "v", "v_prediction": "v", "v-prediction": "v", "vpred": "v"}


def _side_file(path: Path) -> str | None:
    side = path.with_suffix(".yaml")
    try:
        if side.stat().st_size > _LARGEST_SIDE_FILE:
            return None
        params = yaml.safe_load(side.read_text(encoding="utf-8-sig"))["model"]["params"]
        return "v" if params.get("parameterization") == "v" else "epsilon"
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError, AttributeError, RecursionError):
        return None  # a side file is a hint: without a readable one the next hint is used


def from_file(path: Path, family: Family, source: Source) -> Found:
    """`(prediction, where it is known from, zero terminal SNR)` of a single file."""
    zero_snr = "ztsnr" in source.tensors
    stated = _SPELLINGS.get(source.metadata.get("modelspec.prediction_type", "").lower())
    if stated:
        return stated, "metadata", zero_snr
    if "v_pred" in source.tensors:
        return "v", "key", zero_snr
    if "-768-v" in source.metadata.get("modelspec.architecture", ""):
        return "v", "metadata", zero_snr
    side = _side_file(path)
    if side:
        return side, "side file", zero_snr
    return family.default_prediction, "default", zero_snr


def from_folder(path: Path, family: Family) -> Found:
    """The same for a diffusers folder."""
    scheduler = read_json(path / "scheduler" / "scheduler_config.json")
    zero_snr = bool(scheduler.get("rescale_betas_zero_snr"))
    stated = _SPELLINGS.get(str(scheduler.get("prediction_type", "")).lower())
    if stated:
        return stated, "scheduler", zero_snr
    return family.default_prediction, "default", zero_snr


def should_measure(family: Family, source: str) -> bool:
    """Whether the weights have to be asked: nothing says it, and the family has both kinds."""
    return source == "default" and len(family.base_versions) > 1 and family.name == "sd2"


@torch.no_grad()
def measure(unet: torch.nn.Module, empty_prompt: torch.Tensor) -> str:
    """Asks a loaded UNet: "v" where it clearly does not give a constant latent back at the last timestep.

    Args:
        empty_prompt: text of the empty prompt, [1, 77, C].
    """
    weight = next(unet.parameters())
    latent = torch.full((1, 4, 8, 8), 0.5, dtype=weight.dtype, device=weight.device)
    time = torch.tensor([999], device=weight.device)
    answer = unet(latent, time, empty_prompt.to(weight)).sample
    return "v" if (answer - latent).float().mean().item() < -1 else "epsilon"
