"""Writes a random checkpoint of Stable Diffusion 1.5's layout: run by Forge's Python in Forge's folder.

Forge guesses a model's family from its shapes and knows SD1 only with 320 channels and a context of 768, so this one
has them, with every level as wide as the first: `python forge_checkpoint.py FILE` writes 0.64 GB.
"""

import math
import os
import sys

_OUT = os.path.abspath(sys.argv[1])
_SD15 = "backend/huggingface/runwayml/stable-diffusion-v1-5/"


def _modules():
    """Forge's own networks with their names, and the prefixes of a single file."""
    from backend.nn.clip import IntegratedCLIP
    from backend.nn.unet import IntegratedUNet2DConditionModel
    from backend.nn.vae import IntegratedAutoencoderKL
    from transformers import CLIPTextConfig, CLIPTextModel

    unet = IntegratedUNet2DConditionModel(
        in_channels=4,
        model_channels=320,
        out_channels=4,
        num_res_blocks=[2, 2, 2, 2],
        channel_mult=[1, 1, 1, 1],
        num_heads=8,
        use_spatial_transformer=True,
        transformer_depth=[1, 1, 1, 1, 1, 1, 0, 0],
        transformer_depth_output=[1] * 9 + [0] * 3,
        transformer_depth_middle=1,
        context_dim=768,
    )
    vae = IntegratedAutoencoderKL.from_config(IntegratedAutoencoderKL.load_config(_SD15 + "vae"))
    clip = IntegratedCLIP(CLIPTextModel, CLIPTextConfig.from_pretrained(_SD15 + "text_encoder"))
    return {"model.diffusion_model.": unet, "first_stage_model.": vae, "cond_stage_model.": clip}


def _random(name, tensor, generator):
    """Numbers of the size that keeps activations as they are; norms that are neither 1 nor 0."""
    import torch

    noise = torch.randn(tensor.shape, generator=generator)
    if "embedding" in name:
        return noise * 0.05
    if tensor.dim() > 1:
        return noise / math.sqrt(tensor[0].numel())
    return 1 + 0.1 * noise if name.endswith("weight") else 0.05 * noise


def main():
    """Writes the file."""
    sys.argv = [sys.argv[0], "--always-cpu", "--skip-torch-cuda-test"]
    sys.path[:0] = [os.getcwd(), os.path.join(os.getcwd(), "repositories", "huggingface_guess")]
    from modules_forge.initialization import initialize_forge

    initialize_forge()
    import backend.loader  # noqa: F401  (the networks above can only be imported after it)
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(1)
    made = {}
    for prefix, module in _modules().items():
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point() and "logit_scale" not in name:
                made[prefix + name] = _random(name, tensor, generator).half()
    save_file(made, _OUT)


if __name__ == "__main__":
    main()
