"""Models that cannot be trained here, each refused in one sentence that says what it is."""

from __future__ import annotations

from pathlib import Path

from trainers.bases.source import Source, read_json
from trainers.errors import InputError
from trainers.formats.safetensors_io import TensorInfo

SUPPORTED = "Stable Diffusion 1.x, 2.x and XL base models can be trained"

# Part of a tensor's name -> what kind of model has it.
_OTHER_MODELS = (
    ("double_blocks.0.", "a Flux model"),
    ("joint_blocks.0.", "a Stable Diffusion 3 model"),
    ("single_transformer_blocks.0.", "a Flux model"),
    ("effnet_mapper.", "a Stable Cascade model"),
    ("clip_txt_mapper.", "a Stable Cascade model"),
    ("cap_embedder.", "a Lumina model"),
    ("pos_embed.proj.weight", "a diffusion transformer"),
    ("control_model.", "a ControlNet"),
    ("controlnet_", "a ControlNet"),
    ("zero_convs.", "a ControlNet"),
    ("lora_unet_", "a LoRA, not a base model"),
    ("lora_te", "a LoRA, not a base model"),
    (".lora_A.", "a LoRA, not a base model"),
    (".lora_down.", "a LoRA, not a base model"),
    ("hada_w1_a", "a LoHa, not a base model"),
    ("lokr_w1", "a LoKr, not a base model"),
    ("emb_params", "a textual inversion embedding, not a base model"),
    ("string_to_param", "a textual inversion embedding, not a base model"),
    ("clip_g", "a textual inversion embedding, not a base model"),
    ("motion_modules.", "an AnimateDiff motion module, not a base model"),
)

_FOLDER_CLASSES = (
    ("Inpaint", "an inpainting model"),
    ("InstructPix2Pix", "an InstructPix2Pix model"),
    ("Flux", "a Flux model"),
    ("StableDiffusion3", "a Stable Diffusion 3 model"),
    ("Upscale", "an upscaling model"),
    ("Depth2Img", "a depth-to-image model"),
    ("PixArt", "a PixArt model"),
    ("Kandinsky", "a Kandinsky model"),
    ("StableCascade", "a Stable Cascade model"),
    ("Wuerstchen", "a Stable Cascade model"),
    ("StableVideo", "a video model"),
)

_CHANNELS = {
    9: "an inpainting model",
    8: "an InstructPix2Pix model",
    5: "a depth-to-image model",
    7: "an upscaling model",
}


def refuse(path: Path, what: str) -> InputError:
    """`PATH: this is WHAT; ...`."""
    return InputError(f"{path}: this is {what}; {SUPPORTED}.")


def check_channels(path: Path, conv_in: TensorInfo | None) -> None:
    """Refuses UNets that take anything but the four latent channels."""
    if conv_in is None or len(conv_in.shape) != 4:
        raise InputError(f"{path}: its UNet is not whole; copy or download the model again.")
    channels = conv_in.shape[1]
    if channels != 4:
        raise refuse(path, _CHANNELS.get(channels, f"a model with {channels} input channels"))


def check_ldm(path: Path, source: Source) -> None:
    """Refuses files that are no Stable Diffusion checkpoint of a known kind."""
    names = source.tensors
    if not names:
        raise InputError(f"{path}: no weights are in this file.")
    if "model.diffusion_model.input_blocks.0.0.weight" not in names:
        _refuse_other(path, names)
    check_channels(path, names["model.diffusion_model.input_blocks.0.0.weight"])
    heads = {name.split(".model.")[0] for name in names if name.startswith("conditioner.embedders.")}
    if any(name.startswith("conditioner.embedders.0.model.") for name in heads | set(names)):
        raise refuse(path, "an SDXL refiner")
    if "model.diffusion_model.label_emb.0.0.weight" in names and not heads:
        raise refuse(path, "an unCLIP or class-conditioned model")


def _refuse_other(path: Path, names) -> None:
    if any(name.startswith("model.diffusion_model.joint_blocks.") for name in names):
        raise refuse(path, "a Stable Diffusion 3 model")
    for part, what in _OTHER_MODELS:
        if any(part in name for name in names):
            raise refuse(path, what)
    if any(name.startswith(("first_stage_model.", "encoder.down")) for name in names):
        raise refuse(path, "an autoencoder (VAE), not a base model")
    if any(name.startswith(("down_blocks.", "input_blocks.")) for name in names):
        raise refuse(path, "a UNet alone; give the full checkpoint or the whole diffusers folder")
    raise InputError(f"{path}: this is no model of a known family; {SUPPORTED}.")


def check_folder(path: Path) -> None:
    """Refuses folders that are no diffusers model of a known kind."""
    if not (path / "unet").is_dir():
        if (path / "transformer").is_dir():
            kind = str(read_json(path / "model_index.json").get("_class_name", ""))
            named = next((what for part, what in _FOLDER_CLASSES if part in kind), "a diffusion transformer")
            raise refuse(path, named)
        raise InputError(
            f"{path}: this folder is not a diffusers model (it has no folder 'unet'); "
            "name a diffusers folder, or a .safetensors or .ckpt file."
        )
    kind = str(read_json(path / "model_index.json").get("_class_name", ""))
    for part, what in _FOLDER_CLASSES:
        if part in kind:
            raise refuse(path, what)
    if not (path / "text_encoder").is_dir() and (path / "text_encoder_2").is_dir():
        raise refuse(path, "an SDXL refiner")
