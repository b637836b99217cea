"""Files written here give the same result in diffusers and PEFT as the formula up . down . alpha / rank."""

from __future__ import annotations

import peft
import pytest
import torch
from adapter_samples import apply, random_lora
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

from trainers.bases.loader import components_without_level, load_base
from trainers.formats import adapters, safetensors_io
from trainers.formats.families import FAMILIES
from trainers.formats.metadata import finish
from trainers.formats.sites import all_sites

PROMPT_IDS = [49406, 320, 1125, 539, 320, 2368] + [49407] * 71


@torch.no_grad()
def outputs(unet, text_encoders, family) -> list[torch.Tensor]:
    """What the UNet and every text encoder say to fixed inputs."""
    generator = torch.Generator().manual_seed(1)
    width = unet.config.cross_attention_dim
    latents = torch.randn(1, 4, 8, 8, generator=generator)
    context = torch.randn(1, 77, width, generator=generator)
    extra = None
    if family.unet.size_conditioning:
        extra = {"text_embeds": torch.randn(1, 64, generator=generator), "time_ids": torch.tensor([[64.0] * 6])}
    ids = torch.tensor([PROMPT_IDS])
    texts = [encoder(ids, output_hidden_states=True).hidden_states[-2] for encoder in text_encoders]
    return [unet(latents, torch.tensor([500]), context, added_cond_kwargs=extra).sample, *texts]


def agree(one: list[torch.Tensor], other: list[torch.Tensor], tolerance: float = 2e-4) -> bool:
    return all((a - b).abs().max() <= tolerance * b.abs().max() for a, b in zip(one, other, strict=True))


def pipeline(path, family):
    kind = StableDiffusionXLPipeline if len(family.text_encoders) > 1 else StableDiffusionPipeline
    more = {} if len(family.text_encoders) > 1 else {"safety_checker": None}
    return kind.from_pretrained(path, local_files_only=True, **more)


def encoders(pipe):
    return [encoder for encoder in (pipe.text_encoder, getattr(pipe, "text_encoder_2", None)) if encoder is not None]


CASES = [("sd1", True, True), ("sd2", False, False), ("sdxl", False, True)]


@pytest.mark.parametrize(("name", "conv3x3", "mixed"), CASES, ids=[case[0] for case in CASES])
def test_written_loras_load_in_diffusers(tiny_base, tmp_path, name, conv3x3, mixed):
    family = FAMILIES[name]
    base = load_base(tiny_base(name))
    entries = random_lora(base, conv3x3=conv3x3, mixed=mixed)
    before = outputs(base.unet, base.text_encoders, family)
    apply(base, entries, {site.name: site for site in all_sites(family)})
    wanted = outputs(base.unet, base.text_encoders, family)
    pipe = pipeline(tiny_base(name, "diffusers"), family)
    assert agree(outputs(pipe.unet, encoders(pipe), family), before)
    assert not agree(before, wanted, 0.02)

    kohya = adapters.to_kohya(entries)
    safetensors_io.save(tmp_path / "kohya.safetensors", kohya, finish(kohya, {}))
    safetensors_io.save(tmp_path / "diffusers.safetensors", *adapters.to_diffusers(family, entries))
    for file in ("diffusers.safetensors", "kohya.safetensors"):
        pipe.load_lora_weights(tmp_path, weight_name=file, adapter_name=file.partition(".")[0])
        assert agree(outputs(pipe.unet, encoders(pipe), family), wanted), file
        pipe.unload_lora_weights()


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_peft_export_loads_in_peft(tiny_base, tmp_path, name):
    family = FAMILIES[name]
    base = load_base(tiny_base(name))
    plain = load_base(tiny_base(name))
    entries = random_lora(base, conv3x3=True, mixed=True)
    apply(base, entries, {site.name: site for site in all_sites(family)})
    wanted = outputs(base.unet, base.text_encoders, family)
    exported = adapters.to_peft(family, entries, without_level=components_without_level(plain))
    adapters.save_peft(tmp_path, exported)
    unet = peft.PeftModel.from_pretrained(plain.unet, str(tmp_path / "unet"))
    texts = [
        peft.PeftModel.from_pretrained(module, str(tmp_path / encoder.component))
        for encoder, module in zip(family.text_encoders, plain.text_encoders, strict=True)
    ]
    # PeftModel wraps the module; its base model is the one with the adapter in it.
    found = outputs(unet.base_model.model, [text.base_model.model for text in texts], family)
    assert agree(found, wanted)
