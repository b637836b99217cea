"""Run by AUTOMATIC1111's Python in its folder: tiny random SD2 and SDXL models, made with the host's own classes.

    PY make_models.py FOLDER TEXT_ENCODER_FOLDER

writes athanor-tiny-sd2 and athanor-tiny-sdxl (.safetensors and .yaml) into FOLDER. The first text encoder of the SDXL
has the configuration in TEXT_ENCODER_FOLDER, which has to be 64 wide.
"""

import sys
from pathlib import Path

REPOSITORIES = Path("repositories").absolute()
sys.path[:0] = [str(REPOSITORIES / name) for name in ("stable-diffusion-stability-ai", "generative-models")]

import torch  # noqa: E402
import yaml  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

VAE = {
    "double_z": True,
    "z_channels": 4,
    "resolution": 64,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 32,
    "ch_mult": [1, 1, 1, 1],
    "num_res_blocks": 1,
    "attn_resolutions": [],
    "dropout": 0.0,
}
UNET = {"in_channels": 4, "out_channels": 4, "use_checkpoint": False, "use_spatial_transformer": True, "legacy": False}
OPEN_CLIP = {"arch": "ViT-S-16-alt", "version": "none", "freeze": True, "layer": "penultimate"}  # 256 wide


def sd2():
    """LatentDiffusion with an open_clip text encoder."""
    unet = {
        **UNET,
        "image_size": 32,
        "model_channels": 32,
        "attention_resolutions": [4, 2, 1],
        "num_res_blocks": 2,
        "channel_mult": [1, 2, 2, 2],
        "num_head_channels": 16,
        "use_linear_in_transformer": True,
        "transformer_depth": 1,
        "context_dim": 256,
    }
    return {
        "target": "ldm.models.diffusion.ddpm.LatentDiffusion",
        "params": {
            "linear_start": 0.00085,
            "linear_end": 0.0120,
            "num_timesteps_cond": 1,
            "timesteps": 1000,
            "first_stage_key": "jpg",
            "cond_stage_key": "txt",
            "image_size": 8,
            "channels": 4,
            "conditioning_key": "crossattn",
            "scale_factor": 0.18215,
            "use_ema": False,
            "unet_config": {"target": "ldm.modules.diffusionmodules.openaimodel.UNetModel", "params": unet},
            "first_stage_config": {
                "target": "ldm.models.autoencoder.AutoencoderKL",
                "params": {"embed_dim": 4, "ddconfig": VAE, "lossconfig": {"target": "torch.nn.Identity"}},
            },
            "cond_stage_config": {"target": "ldm.modules.encoders.modules.FrozenOpenCLIPEmbedder", "params": OPEN_CLIP},
        },
    }


def _embedder(key, target, **params):
    target = f"sgm.modules.encoders.modules.{target}"
    return {"is_trainable": False, "input_key": key, "target": target, "params": params}


def sdxl(text_encoder):
    """DiffusionEngine with two text encoders."""
    sampling = "sgm.modules.diffusionmodules"
    unet = {
        **UNET,
        "adm_in_channels": 256 + 6 * 256,
        "num_classes": "sequential",
        "model_channels": 32,
        "attention_resolutions": [4, 2],
        "num_res_blocks": 2,
        "channel_mult": [1, 2, 4],
        "num_head_channels": 16,
        "use_linear_in_transformer": True,
        "transformer_depth": [1, 2, 10],
        "context_dim": 64 + 256,
        "spatial_transformer_attn_type": "softmax",
    }
    embedders = [
        _embedder("txt", "FrozenCLIPEmbedder", version=text_encoder, layer="hidden", layer_idx=11),
        _embedder("txt", "FrozenOpenCLIPEmbedder2", **OPEN_CLIP, always_return_pooled=True, legacy=False),
        *(
            _embedder(key, "ConcatTimestepEmbedderND", outdim=256)
            for key in ("original_size_as_tuple", "crop_coords_top_left", "target_size_as_tuple")
        ),
    ]
    return {
        "target": "sgm.models.diffusion.DiffusionEngine",
        "params": {
            "scale_factor": 0.13025,
            "disable_first_stage_autocast": True,
            "denoiser_config": {
                "target": f"{sampling}.denoiser.DiscreteDenoiser",
                "params": {
                    "num_idx": 1000,
                    "weighting_config": {"target": f"{sampling}.denoiser_weighting.EpsWeighting"},
                    "scaling_config": {"target": f"{sampling}.denoiser_scaling.EpsScaling"},
                    "discretization_config": {"target": f"{sampling}.discretizer.LegacyDDPMDiscretization"},
                },
            },
            "network_config": {"target": f"{sampling}.openaimodel.UNetModel", "params": unet},
            "conditioner_config": {"target": "sgm.modules.GeneralConditioner", "params": {"emb_models": embedders}},
            "first_stage_config": {
                "target": "sgm.models.autoencoder.AutoencoderKLInferenceWrapper",
                "params": {
                    "embed_dim": 4,
                    "ddconfig": {**VAE, "attn_type": "vanilla"},
                    "lossconfig": {"target": "torch.nn.Identity"},
                },
            },
        },
    }


def randomise(state):
    """Numbers that keep signals alive: matrices by their inputs, norms near 1."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in state.items():
        if not tensor.is_floating_point() or name.startswith(("betas", "alphas", "sqrt", "log", "posterior", "lvlb")):
            continue
        noise = torch.randn(tensor.shape, generator=generator)
        if tensor.dim() > 1:
            size = 0.5 if "embedding" in name else tensor[0].numel() ** -0.5
            state[name] = noise * size
        elif tensor.dim() == 1:
            state[name] = noise * 0.05 + (1.0 if name.endswith("weight") else 0.0)
    return {name: tensor.contiguous() for name, tensor in state.items()}


def write(folder, name, config, build):
    """The checkpoint and its configuration."""
    (folder / f"{name}.yaml").write_text(yaml.safe_dump({"model": config}), encoding="utf-8")
    state = randomise(dict(build(config).state_dict()))
    state = {key: tensor.clone() for key, tensor in state.items() if "visual" not in key}
    save_file(state, folder / f"{name}.safetensors")


def main():
    import open_clip
    import transformers
    from ldm.util import instantiate_from_config as ldm_build
    from sgm.util import instantiate_from_config as sgm_build

    # Only the shapes are wanted, nothing is to be downloaded.
    transformers.CLIPTextModel.from_pretrained = lambda path: transformers.CLIPTextModel(
        transformers.CLIPTextConfig.from_pretrained(path)
    )
    original = open_clip.create_model_and_transforms
    open_clip.create_model_and_transforms = lambda arch, **more: original(arch, pretrained=None)
    folder, text_encoder = Path(sys.argv[1]), sys.argv[2]
    write(folder, "athanor-tiny-sd2", sd2(), ldm_build)
    write(folder, "athanor-tiny-sdxl", sdxl(text_encoder), sgm_build)


main()
