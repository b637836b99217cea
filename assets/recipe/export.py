"""Write the trained parts as one LDM file:  python -m assets.recipe.export --work DIR

Makes assets/base/: the model in fp16, the side configuration A1111 needs for its widths, and the text model's
configuration (its vocabulary is written beside it when the base is linked into a WebUI).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors.torch import load_file

from trainers.bases.export import save_single_file
from trainers.bases.loader import load_base
from trainers.formats.families import FAMILIES

from .diffusion import CHANNELS, build_unet
from .latents import load_autoencoder
from .train_autoencoder import CHANNELS as AUTOENCODER_CHANNELS
from .train_autoencoder import SCALING
from .words import build_text_model, text_config, tokens

FOLDER = Path(__file__).resolve().parents[1] / "base"
NAME = "athanor-base"
MOST_BYTES = 32_000_000
TEXT_FOLDER = "ATHANOR_TEXT_ENCODER"  # linking replaces this word by the text model's folder
METADATA = {
    "modelspec.sai_model_spec": "1.0.1",
    "modelspec.architecture": "stable-diffusion-v1",
    "modelspec.implementation": "https://github.com/CompVis/stable-diffusion",
    "modelspec.title": "Athanor base",
    "modelspec.description": "A tiny Stable Diffusion for 64x64 drawings of simple things.",
    "modelspec.resolution": "64x64",
    "modelspec.prediction_type": "epsilon",
    "modelspec.date": "2026-11-22",
}


def trained_parts(work: Path) -> SimpleNamespace:
    """The averaged weights of the training, in the form the single-file writer takes."""
    unet, text = build_unet(), build_text_model()
    unet.load_state_dict(load_file(work / "unet.safetensors"))
    text.load_state_dict(load_file(work / "text.safetensors"))
    parts = [unet.eval(), text.eval(), load_autoencoder(work)]
    return SimpleNamespace(family=FAMILIES["sd1"], unet=parts[0], text_encoders=[parts[1]], vae=parts[2])


def host_config() -> str:
    """The side .yaml with which A1111 builds the model (it assumes SD1's widths otherwise)."""
    return f"""\
# Widths of the embedded base for A1111. `install.py link` puts the text encoder's folder in.
model:
  base_learning_rate: 1.0e-04
  target: ldm.models.diffusion.ddpm.LatentDiffusion
  params:
    linear_start: 0.00085
    linear_end: 0.0120
    num_timesteps_cond: 1
    log_every_t: 200
    timesteps: 1000
    first_stage_key: jpg
    cond_stage_key: txt
    image_size: 8
    channels: 4
    cond_stage_trainable: false
    conditioning_key: crossattn
    monitor: val/loss_simple_ema
    scale_factor: {SCALING}
    use_ema: false
    unet_config:
      target: ldm.modules.diffusionmodules.openaimodel.UNetModel
      params:
        image_size: 32
        in_channels: 4
        out_channels: 4
        model_channels: {CHANNELS[0]}
        attention_resolutions: [4, 2, 1]
        num_res_blocks: 2
        channel_mult: {[width // CHANNELS[0] for width in CHANNELS]}
        num_heads: 8
        use_spatial_transformer: true
        transformer_depth: 1
        context_dim: {text_config().hidden_size}
        use_checkpoint: false
        legacy: false
    first_stage_config:
      target: ldm.models.autoencoder.AutoencoderKL
      params:
        embed_dim: 4
        monitor: val/rec_loss
        ddconfig:
          double_z: true
          z_channels: 4
          resolution: 64
          in_channels: 3
          out_ch: 3
          ch: {AUTOENCODER_CHANNELS[0]}
          ch_mult: {[width // AUTOENCODER_CHANNELS[0] for width in AUTOENCODER_CHANNELS]}
          num_res_blocks: 1
          attn_resolutions: []
          dropout: 0.0
        lossconfig:
          target: torch.nn.Identity
    cond_stage_config:
      target: ldm.modules.encoders.modules.FrozenCLIPEmbedder
      params:
        version: {TEXT_FOLDER}
"""


def text_folder_config() -> dict[str, object]:
    """config.json of the text model's folder; only what every version of transformers reads."""
    names = "vocab_size hidden_size intermediate_size projection_dim num_hidden_layers num_attention_heads"
    more = "max_position_embeddings hidden_act layer_norm_eps bos_token_id eos_token_id pad_token_id"
    config = text_config()
    values = {name: getattr(config, name) for name in f"{names} {more}".split()}
    return {"architectures": ["CLIPTextModel"], "model_type": "clip_text_model", "torch_dtype": "float16", **values}


@torch.no_grad()
def check(path: Path, parts: SimpleNamespace) -> float:
    """Load the file again and compare every part's output; returns the largest relative difference."""
    loaded = load_base(path)
    generator = torch.Generator().manual_seed(0)
    latents, picture = torch.randn(2, 4, 8, 8, generator=generator), torch.rand(1, 3, 64, 64, generator=generator)
    numbers = tokens(["a red star on a blue background", ""])
    words = parts.text_encoders[0](numbers)[0]
    times = torch.tensor([300, 900])
    pairs = [
        (words, loaded.text_encoders[0](numbers)[0]),
        (parts.unet(latents, times, words).sample, loaded.unet(latents, times, words).sample),
        (parts.vae.encode(picture).latent_dist.mean, loaded.vae.encode(picture).latent_dist.mean),
        (parts.vae.decode(latents).sample, loaded.vae.decode(latents).sample),
    ]
    return max(float((a - b).norm() / a.norm()) for a, b in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--to", type=Path, default=FOLDER)
    options = parser.parse_args()
    torch.set_num_threads(1)
    parts = trained_parts(options.work)
    text_folder = options.to / "text_encoder"
    text_folder.mkdir(parents=True, exist_ok=True)
    path = options.to / f"{NAME}.safetensors"
    save_single_file(parts, path, torch.float16, METADATA)
    (options.to / f"{NAME}.yaml").write_text(host_config(), encoding="utf-8")
    (text_folder / "config.json").write_text(json.dumps(text_folder_config(), indent=2) + "\n", encoding="utf-8")
    size = path.stat().st_size
    if size > MOST_BYTES:
        raise SystemExit(f"{path} has {size} bytes, more than {MOST_BYTES}.")
    print(f"{path}: {size} bytes, largest difference after loading {check(path, parts):.4f}")


if __name__ == "__main__":
    main()
