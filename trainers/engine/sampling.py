"""Drawing pictures with a base model: what previews, verdicts and the demonstration use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from trainers.bases.loader import Base
from trainers.bases.vae import decode
from trainers.engine.runfolder import replace
from trainers.rng import generator

Encode = Callable[[list[str]], tuple[torch.Tensor, "torch.Tensor | None"]]


def make_scheduler(
    prediction: str, betas: torch.Tensor, steps: int, zero_terminal_snr: bool = False
) -> DPMSolverMultistepScheduler:
    """DPM++ 2M over the model's own noise schedule (Lu et al. 2022, arXiv:2211.01095).

    A schedule that ends in pure noise is walked from its very end in equal steps, as arXiv:2305.08891 advises.
    """
    scheduler = DPMSolverMultistepScheduler(
        trained_betas=betas.double().tolist(),
        prediction_type="v_prediction" if prediction == "v" else "epsilon",
        use_karras_sigmas=not zero_terminal_snr,
        timestep_spacing="trailing" if zero_terminal_snr else "leading",
        steps_offset=1,
        rescale_betas_zero_snr=zero_terminal_snr,
    )
    scheduler.set_timesteps(steps)
    return scheduler


def betas_of(alphas_cumprod: torch.Tensor) -> torch.Tensor:
    """The betas [T] whose cumulative product of (1 - beta) is `alphas_cumprod` [T]."""
    previous = torch.cat([torch.ones(1, dtype=alphas_cumprod.dtype), alphas_cumprod[:-1].cpu()])
    return 1 - alphas_cumprod.cpu() / previous


def size_conditioning(base: Base, pooled: torch.Tensor | None, height: int, width: int) -> dict[str, torch.Tensor]:
    """SDXL's extra inputs for an uncropped picture of this size; nothing for the other families."""
    if pooled is None:
        return {}
    ids = torch.tensor([[height, width, 0, 0, height, width]], dtype=torch.float32, device=pooled.device)
    return {"text_embeds": pooled, "time_ids": ids.expand(len(pooled), -1)}


@torch.no_grad()
def draw_latents(
    base: Base,
    encode: Encode,
    prompt: str,
    *,
    seed: int,
    size: tuple[int, int],
    steps: int,
    cfg: float,
    negative: str = "",
    zero_terminal_snr: bool = False,
) -> torch.Tensor:
    """Scaled latents [1, 4, height / 8, width / 8] of one picture of `size` = (width, height) px; the same seed starts
    from the same noise, whatever the prompt."""
    width, height = size
    hidden, pooled = encode([negative, prompt])
    scheduler = make_scheduler(base.prediction, betas_of(base.alphas_cumprod), steps, zero_terminal_snr)
    shape = (1, base.unet.config.in_channels, height // 8, width // 8)
    device = hidden.device
    latents = torch.randn(shape, generator=generator(seed, "picture")).to(device)
    latents = latents * scheduler.init_noise_sigma
    extra = size_conditioning(base, pooled, height, width)
    for timestep in scheduler.timesteps:
        inputs = scheduler.scale_model_input(torch.cat([latents] * 2), timestep).to(hidden.dtype)
        output = base.unet(
            inputs, timestep.to(device), encoder_hidden_states=hidden, added_cond_kwargs=extra
        ).sample.float()
        without, with_prompt = output.chunk(2)
        latents = scheduler.step(without + cfg * (with_prompt - without), timestep, latents).prev_sample
    return latents


@torch.no_grad()
def draw_one(base: Base, encode: Encode, prompt: str, **settings: Any) -> Image.Image:
    """One picture; `settings` are those of `draw_latents`."""
    return to_image(_decode(base, draw_latents(base, encode, prompt, **settings))[0])


def _decode(base: Base, latents: torch.Tensor) -> torch.Tensor:
    """Pixels of latents; an autoencoder that overflows in half precision (SDXL's does) goes on in float32."""
    with torch.autocast(latents.device.type, enabled=False) if latents.is_cuda or latents.is_cpu else nullcontext():
        pixels = decode(base.vae, latents, base.family.latent_scale)
        if torch.isfinite(latents).all() and not torch.isfinite(pixels).all():
            base.vae.float()
            pixels = decode(base.vae, latents, base.family.latent_scale)
    return pixels


def save_png(picture: Image.Image, path: Path, texts: PngInfo | None = None) -> None:
    """Write a picture so that its name never holds half of it."""
    temporary = path.with_name(path.name + ".part")
    picture.save(temporary, format="PNG", pnginfo=texts)
    replace(temporary, path)


def to_image(pixels: torch.Tensor) -> Image.Image:
    """A picture from pixels [3, H, W] in -1..1; what is not finite becomes grey."""
    values = torch.nan_to_num(pixels.float(), nan=0.0).clamp(-1, 1).add(1).mul(127.5).round()
    return Image.fromarray(values.byte().permute(1, 2, 0).cpu().numpy())


def draw(
    base: Base,
    encode: Encode,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    size: tuple[int, int],
    steps: int = 20,
    cfg: float = 7.0,
    negative: str = "",
) -> list[Image.Image]:
    """A picture for each prompt with its seed."""
    return [
        draw_one(base, encode, prompt, seed=seed, size=size, steps=steps, cfg=cfg, negative=negative)
        for prompt, seed in zip(prompts, seeds, strict=True)
    ]
