"""reForge: AUTOMATIC1111's page, prompts and embeddings over Forge's older backend."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from extension.hosts.a1111 import A1111, own_vae
from extension.hosts.base import LoadedModel
from extension.hosts.forge import COMPONENTS, embedding_width, tokenizer_in

_FAMILIES = {("clip_l",): "sd1", ("clip_h",): "sd2", ("clip_l", "clip_g"): "sdxl"}
_KNOWN = ("clip_l", "clip_h", "clip_g", "t5xxl")


def detect() -> bool:
    """Whether this process is reForge, or Forge as it was before August 2024."""
    try:
        found = [bool(importlib.util.find_spec(name)) for name in ("modules_forge", "ldm_patched")]
        return all(found) and importlib.util.find_spec("backend") is None
    except ModuleNotFoundError:
        return False


def encoders_of(sd_model: Any) -> dict[str, Any]:
    """The text encoders by the backend's own names."""
    model = sd_model.forge_objects.clip.cond_stage_model
    return {name: getattr(model, name) for name in _KNOWN if getattr(model, name, None) is not None}


def family_of(sd_model: Any) -> str | None:
    """ "sd1", "sd2" or "sdxl" by the text encoders there are; the host's own flags call many others SD1."""
    if getattr(sd_model.forge_objects, "clip", None) is None:
        return None
    unet = sd_model.forge_objects.unet.model.diffusion_model
    return _FAMILIES.get(tuple(encoders_of(sd_model))) if hasattr(unet, "input_blocks") else None


class ReForge(A1111):
    """reForge."""

    name = "reForge"

    def raw_model(self) -> Any:
        """The host's model object, without making the host load one; None while there is none."""
        sd_model = super().raw_model()
        return sd_model if getattr(sd_model, "forge_objects", None) is not None else None

    family_of = staticmethod(family_of)

    def _described(self, sd_model: Any, family: str, checkpoint: Path | None) -> LoadedModel:
        encoders = dict(zip(COMPONENTS, encoders_of(sd_model).values(), strict=False))
        widths = {name: embedding_width(encoder) for name, encoder in encoders.items()}
        tokenizer = next(iter(_tokenizers(sd_model)), None)
        words = tokenizer.get_vocab() if hasattr(tokenizer, "get_vocab") else ()
        unet = sd_model.forge_objects.unet.model.diffusion_model
        kind = str(getattr(sd_model.forge_objects.unet.model, "model_type", ""))  # an enum: ModelType.EPS, …
        prediction = {"EPS": "epsilon", "V_PREDICTION": "v"}.get(kind.rpartition(".")[2], "")
        return LoadedModel(
            family, {"unet": unet, **encoders}, checkpoint, widths, words, tokenizer, prediction, own_vae()
        )

    def shipped_tokenizer(self) -> Any:
        """The one that the backend takes for SD1: a model is loaded only with the first picture."""
        return tokenizer_in("ldm_patched", "modules", "sd1_tokenizer")

    def register(self) -> type:
        """Puts our callbacks in place and returns the class of our always-on script."""
        from extension.hosts.reforge_wiring import wire

        return wire(self)


HOST = ReForge


def _tokenizers(sd_model: Any) -> list[Any]:
    holder = sd_model.forge_objects.clip.tokenizer
    found = [getattr(holder, name, None) for name in _KNOWN]
    return [getattr(one, "tokenizer", one) for one in found if one is not None]
