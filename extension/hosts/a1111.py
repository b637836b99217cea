"""AUTOMATIC1111 (1.10): where its files, its model and its settings are, and how its callbacks reach us."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

from extension.hosts.base import Folders, LoadedModel
from extension.hosts.unfit import is_sd_next


def detect() -> bool:
    """Whether this process is AUTOMATIC1111 or a close relative, and none with a backend of Forge's or SD.Next's."""
    try:
        found = bool(importlib.util.find_spec("modules.processing")) and not importlib.util.find_spec("modules_forge")
        return found and not is_sd_next()
    except ModuleNotFoundError:
        return False


_OLDER = "stable-diffusion-webui-aesthetic-gradients"
"""The extension that first had aesthetic gradients; its files are found where it keeps them."""


def _existing(*folders: Any) -> list[Path]:
    return list(dict.fromkeys(Path(folder) for folder in folders if folder))


def family_of(sd_model: Any) -> str | None:
    """ "sd1", "sd2" or "sdxl"; None for another model, an SDXL refiner included."""
    if getattr(sd_model, "is_sd1", False):
        return "sd1"
    if getattr(sd_model, "is_sd2", False):
        return "sd2"
    if getattr(sd_model, "is_sdxl", False) and len(_sdxl_encoders(sd_model)) == 2:
        return "sdxl"
    return None


def _sdxl_encoders(sd_model: Any) -> list[Any]:
    """The text encoders among the embedders: a refiner has one, the base two."""
    inner = [getattr(one, "wrapped", one) for one in sd_model.conditioner.embedders]
    return [one for one in inner if hasattr(one, "transformer") or hasattr(one, "model")]


def parts_of(sd_model: Any, family: str) -> dict[str, Any]:
    """The live modules that adapters sit on."""
    unet = {"unet": sd_model.model.diffusion_model}
    if family == "sdxl":
        first, second = _sdxl_encoders(sd_model)
        return {**unet, "text_encoder": first, "text_encoder_2": second}
    return {**unet, "text_encoder": sd_model.cond_stage_model}


def _widths(sd_model: Any, family: str) -> dict[str, int]:
    """Width of the token embeddings by text encoder."""
    if family == "sdxl":
        first, second = _sdxl_encoders(sd_model)
        tables = {"text_encoder": first.transformer.text_model.embeddings, "text_encoder_2": second.model}
    else:
        inner = getattr(sd_model.cond_stage_model, "wrapped", sd_model.cond_stage_model)
        tables = {"text_encoder": inner.model if family == "sd2" else inner.transformer.text_model.embeddings}
    found = {}
    for name, holder in tables.items():
        table = holder.token_embedding
        table = getattr(table, "wrapped", table)
        found[name] = int(table.weight.shape[1])
    return found


def _tokenizer(sd_model: Any, family: str) -> Any:
    """The first text encoder's tokenizer; None where it has none of its own (open_clip's is one for all)."""
    holder = _sdxl_encoders(sd_model)[0] if family == "sdxl" else sd_model.cond_stage_model
    return getattr(holder, "tokenizer", None) or getattr(getattr(holder, "wrapped", None), "tokenizer", None)


def _vocabulary(sd_model: Any) -> Any:
    encoder = getattr(sd_model, "cond_stage_model", None)
    tokenizer = getattr(encoder, "tokenizer", None)
    return tokenizer.get_vocab() if hasattr(tokenizer, "get_vocab") else ()


def own_vae() -> str:
    """The file name of the autoencoder that the person chose; empty where the model's own is used."""
    from modules import sd_vae

    file = getattr(sd_vae, "loaded_vae_file", None)
    return Path(file).name if file else ""


PREDICTIONS = {"eps": "epsilon", "epsilon": "epsilon", "v": "v", "v_prediction": "v"}
"""The hosts' words for what a model predicts."""


class A1111:
    """AUTOMATIC1111."""

    name = "AUTOMATIC1111"

    def folders(self) -> Folders:
        """Where its files are."""
        from modules import paths, shared

        options = shared.cmd_opts
        data = Path(paths.data_path) / "athanor"
        return Folders(
            adapters=_existing(options.lora_dir, getattr(options, "lyco_dir_backcompat", None)),
            embeddings=_existing(options.embeddings_dir),
            masks=[data / "masks"],
            data=data,
            hypernetworks=_existing(getattr(options, "hypernetwork_dir", None)),
            aesthetics=[
                Path(paths.models_path) / "aesthetic_embeddings",
                *_existing(Path(paths.data_path) / "extensions" / _OLDER / "aesthetic_embeddings"),
            ],
        )

    def raw_model(self) -> Any:
        """The host's model object, without making the host load one; None while there is none."""
        from modules import sd_models

        return sd_models.model_data.sd_model

    def model(self) -> LoadedModel | None:
        """The model that is loaded, None while there is none."""
        sd_model = self.raw_model()
        if sd_model is None:
            return None
        info = getattr(sd_model, "sd_checkpoint_info", None)
        checkpoint = Path(info.filename) if info is not None else None
        family = self.family_of(sd_model)
        return self._described(sd_model, family, checkpoint) if family else LoadedModel(None, {}, checkpoint)

    family_of = staticmethod(family_of)

    def _described(self, sd_model: Any, family: str, checkpoint: Path | None) -> LoadedModel:
        """What is known of a loaded model of a family that we know."""
        return LoadedModel(
            family,
            parts_of(sd_model, family),
            checkpoint,
            _widths(sd_model, family),
            _vocabulary(sd_model),
            _tokenizer(sd_model, family),
            PREDICTIONS.get(str(getattr(sd_model, "parameterization", "")), ""),
            own_vae(),
        )

    def device(self) -> Any:
        """What it draws on; `--device-id`, `--use-cpu` and Forge's own flags are in it."""
        from modules import devices

        return devices.device

    def shipped_tokenizer(self) -> Any:
        """The one that comes with open_clip, which this host loads at its start."""
        return getattr(sys.modules.get("open_clip.tokenizer"), "_tokenizer", None)

    def option(self, key: str, default: Any) -> Any:
        """A setting, as the person left it."""
        from modules import shared

        return getattr(shared.opts, key, default)

    def register(self) -> type:
        """Puts our callbacks in place and returns the class of our always-on script."""
        from extension.hosts.a1111_wiring import wire

        return wire(self)


HOST = A1111
