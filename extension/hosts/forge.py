"""Forge: where its model is. Its page, settings and tags are AUTOMATIC1111's; its models are its own."""

from __future__ import annotations

import importlib.util
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

from extension.hosts.a1111 import A1111, PREDICTIONS
from extension.hosts.base import LoadedModel

_ENCODERS = {"sd1": ("clip_l",), "sd2": ("clip_h",), "sdxl": ("clip_l", "clip_g")}
_TOKENIZER = ("backend", "huggingface", "runwayml", "stable-diffusion-v1-5", "tokenizer")
COMPONENTS = ("text_encoder", "text_encoder_2")


def detect() -> bool:
    """Whether this process is Forge, with the backend of its own that came in August 2024."""
    try:
        return all(importlib.util.find_spec(name) for name in ("modules_forge", "backend.diffusion_engine"))
    except ModuleNotFoundError:
        return False


def family_of(engine: Any) -> str | None:
    """ "sd1", "sd2" or "sdxl"; None for another model, an SDXL refiner included."""
    family = next((name for name in _ENCODERS if getattr(engine, f"is_{name}", False)), None)
    if family is None:
        return None
    encoders = engine.forge_objects.clip.cond_stage_model
    return family if all(hasattr(encoders, name) for name in _ENCODERS[family]) else None


def parts_of(engine: Any, family: str) -> dict[str, Any]:
    """The live modules that adapters sit on; all patchers that Forge clones share them."""
    encoders = engine.forge_objects.clip.cond_stage_model
    named = zip(COMPONENTS, _ENCODERS[family], strict=False)
    return {
        "unet": engine.forge_objects.unet.model.diffusion_model,
        **{component: getattr(encoders, name) for component, name in named},
    }


def text_engines(engine: Any, family: str) -> dict[str, Any]:
    """What encodes texts, by component: each holds an embedding store and a tokenizer."""
    if family == "sdxl":
        return {"text_encoder": engine.text_processing_engine_l, "text_encoder_2": engine.text_processing_engine_g}
    return {"text_encoder": engine.text_processing_engine}


def embedding_width(encoder: Any) -> int:
    """How wide the vectors of a text encoder's tokens are."""
    table = encoder.transformer.text_model.embeddings.token_embedding
    return int(getattr(table, "wrapped", table).weight.shape[1])


def tokenizer_in(package: str, *below: str) -> Any:
    """CLIP's tokenizer from a folder of one of the host's packages, made with the host's own transformers.

    None where the host has not loaded transformers, or where the folder is not there.
    """
    found, transformers = importlib.util.find_spec(package), sys.modules.get("transformers")
    places = [Path(place, *below) for place in (found and found.submodule_search_locations) or ()]
    folder = next((place for place in places if (place / "vocab.json").is_file()), None)
    return _tokenizer(folder) if transformers and folder else None


@lru_cache(maxsize=1)
def _tokenizer(folder: Path) -> Any:
    return sys.modules["transformers"].CLIPTokenizer.from_pretrained(folder)


class Forge(A1111):
    """Forge."""

    name = "Forge"

    def raw_model(self) -> Any:
        """The engine of the loaded model, without making Forge load one; None while there is none."""
        from modules import sd_models

        engine = sd_models.model_data.sd_model
        return engine if getattr(engine, "forge_objects", None) is not None else None

    family_of = staticmethod(family_of)

    def _described(self, engine: Any, family: str, checkpoint: Path | None) -> LoadedModel:
        parts = parts_of(engine, family)
        widths = {name: embedding_width(part) for name, part in parts.items() if name != "unet"}
        tokenizer = text_engines(engine, family)["text_encoder"].tokenizer
        predictor = getattr(engine.forge_objects.unet.model, "predictor", None)
        prediction = PREDICTIONS.get(str(getattr(predictor, "prediction_type", "")), "")
        return LoadedModel(
            family, parts, checkpoint, widths, tokenizer.get_vocab(), tokenizer, prediction, self._own_vae()
        )

    def shipped_tokenizer(self) -> Any:
        """The one that Forge takes for SD1: it loads a model only with the first picture."""
        return tokenizer_in(*_TOKENIZER)

    def _own_vae(self) -> str:
        """Names of the files that the person chose beside the model; empty where its own parts are used."""
        files = self.option("forge_additional_modules", None) or []
        return ", ".join(Path(file).name for file in files)

    def register(self) -> type:
        """Puts our callbacks in place and returns the class of our always-on script."""
        from extension.hosts.forge_wiring import wire

        return wire(self)


HOST = Forge
