"""Tokens, chunks, clip skip, and the autoencoder's helpers."""

from __future__ import annotations

import pytest
import torch
from transformers import CLIPTextModel

from trainers.bases import text, vae
from trainers.bases.loader import load_base, module_for, noise_schedule, set_module
from trainers.bases.tokenizer import clip_tokenizer, vocabulary
from trainers.errors import InputError
from trainers.formats.sites import text_sites, unet_sites


def test_ids_are_those_of_openais_clip():
    tokenizer = clip_tokenizer()
    assert tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert tokenizer("Hello,  WORLD!!").input_ids == [49406, 3306, 267, 1002, 748, 49407]
    assert tokenizer("it's 42", add_special_tokens=False).input_ids == [585, 568, 275, 273]
    assert tokenizer.pad_token_id == 49407
    assert clip_tokenizer("!").pad_token_id == 0
    tokens, merges = vocabulary()
    assert len(tokens) == 49408
    assert len(merges) == 48894
    assert tokens[",</w>"] == text.COMMA_ID


class TestChunks:
    def test_empty(self):
        assert text.chunk_tokens([]) == [[]]

    def test_exactly_one(self):
        assert [len(chunk) for chunk in text.chunk_tokens([5] * 75)] == [75]

    def test_two(self):
        assert [len(chunk) for chunk in text.chunk_tokens([5] * 76)] == [75, 1]

    def test_a_near_comma_moves_the_rest_to_the_next_chunk(self):
        tokens = [5] * 60 + [text.COMMA_ID] + [6] * 20
        assert text.chunk_tokens(tokens) == [[5] * 60 + [text.COMMA_ID], [6] * 20]

    def test_a_far_comma_does_not(self):
        tokens = [5] * 50 + [text.COMMA_ID] + [6] * 30
        assert [len(chunk) for chunk in text.chunk_tokens(tokens)] == [75, 6]

    def test_the_comma_of_the_first_chunk_does_not_cut_the_second(self):
        tokens = [5] * 74 + [text.COMMA_ID] + [6] * 100
        assert [len(chunk) for chunk in text.chunk_tokens(tokens)] == [75, 75, 25]

    def test_nothing_is_lost(self):
        tokens = [text.COMMA_ID if index % 7 == 0 else index for index in range(500)]
        assert [token for chunk in text.chunk_tokens(tokens) for token in chunk] == tokens

    def test_limit(self):
        assert len(text.chunk_tokens([5] * 500, 3)) == 3

    def test_padding(self):
        assert text.pad_chunk([7, 8], True) == [49406, 7, 8] + [49407] * 74
        assert text.pad_chunk([7, 8], False) == [49406, 7, 8, 49407] + [0] * 73


@torch.no_grad()
def test_sd1_reads_the_last_layer_with_its_norm(loaded_base):
    base = loaded_base("sd1")
    (cond,) = text.encode_prompts(base, ["a photo of a cat"], 1)
    ids = torch.tensor([text.pad_chunk([320, 1125, 539, 320, 2368], True)])
    assert torch.allclose(cond.hidden, base.text_encoders[0](ids).last_hidden_state[0], atol=1e-6)
    assert cond.pooled is None
    output = base.text_encoders[0](ids, output_hidden_states=True)
    norm = getattr(base.text_encoders[0], "text_model", base.text_encoders[0]).final_layer_norm
    (skipped,) = text.encode_prompts(base, ["a photo of a cat"], 2)
    assert torch.allclose(skipped.hidden, norm(output.hidden_states[11])[0], atol=1e-6)


@torch.no_grad()
def test_sd2_reads_the_23rd_layer_with_the_final_norm(loaded_base):
    base = loaded_base("sd2")
    (cond,) = text.encode_prompts(base, ["cat"], 2)
    ids = torch.tensor([text.pad_chunk([2368], False)])
    assert torch.allclose(cond.hidden, base.text_encoders[0](ids).last_hidden_state[0], atol=1e-6)
    with pytest.raises(InputError, match="clip_skip: 1"):
        text.encode_prompts(base, ["cat"], 1)


@torch.no_grad()
def test_sdxl_joins_both_encoders_as_diffusers_does(loaded_base, tiny_base):
    from diffusers import StableDiffusionXLPipeline

    base = loaded_base("sdxl")
    pipe = StableDiffusionXLPipeline.from_pretrained(tiny_base("sdxl", "diffusers"), local_files_only=True)
    wanted, _, pooled, _ = pipe.encode_prompt("a red cat", device="cpu", do_classifier_free_guidance=False)
    (cond,) = text.encode_prompts(base, ["a red cat"], 2)
    assert torch.allclose(cond.hidden, wanted[0], atol=1e-5)
    assert torch.allclose(cond.pooled, pooled[0], atol=1e-5)


@torch.no_grad()
def test_long_prompts_are_encoded_chunk_by_chunk_and_stacked(loaded_base):
    base = loaded_base("sdxl")
    long = "cat " * 80
    short, two = text.encode_prompts(base, ["dog", long], 2, 3)
    (empty,) = text.encode_prompts(base, [""], 2)
    assert short.hidden.shape == (77, 96)
    assert two.hidden.shape == (154, 96)
    (first,) = text.encode_prompts(base, ["cat " * 75], 2)
    assert torch.allclose(two.hidden[:77], first.hidden, atol=1e-5)
    assert torch.allclose(two.pooled, first.pooled, atol=1e-5)
    hidden, pooled = text.stack([short, two], empty)
    assert hidden.shape == (2, 154, 96)
    assert pooled.shape == (2, 64)
    assert torch.equal(hidden[0, 77:], empty.hidden)
    assert text.count_chunks(base, long) == 2
    with pytest.raises(ValueError, match="empty prompt"):
        text.stack([short, two])


def test_gradients_reach_a_text_encoder_that_wants_them(tiny_base):
    base = load_base(tiny_base("sd1"), parts=("text",))
    base.text_encoders[0].requires_grad_(True)
    (cond,) = text.encode_prompts(base, ["cat"], 1)
    cond.hidden.sum().backward()
    layer = module_for(base, text_sites(base.family, 0)[0])
    assert layer.weight.grad.abs().sum() > 0


def test_sites_resolve_with_and_without_the_text_model_level(tiny_base):
    base = load_base(tiny_base("sd1"), parts=("text",))
    (encoder,) = base.text_encoders
    site = text_sites(base.family, 0)[7]

    class Wrapped(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.text_model = getattr(inner, "text_model", inner)

    expected = module_for(base, site)
    base.text_encoders = [Wrapped(encoder)]
    assert module_for(base, site) is expected
    replacement = torch.nn.Linear(2, 2)
    set_module(base, site, replacement)
    assert module_for(base, site) is replacement
    with pytest.raises(LookupError):
        module_for(base, unet_sites(base.family)[0])
    assert CLIPTextModel  # the class itself is what differs between versions


def test_the_noise_schedule_is_the_scaled_linear_one():
    from diffusers import DDPMScheduler

    reference = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").alphas_cumprod
    assert torch.allclose(noise_schedule(), reference, atol=1e-6)
    assert noise_schedule().dtype == torch.float32


def test_moments_and_decoding(loaded_base):
    base = loaded_base("sd1")
    pixels = torch.rand(2, 3, 32, 48) * 2 - 1
    moments = vae.encode_moments(base.vae, pixels)
    assert moments.shape == (2, 8, 4, 6)
    assert moments.dtype == torch.float32
    again = vae.decode(base.vae, moments[:, :4] * base.family.latent_scale, base.family.latent_scale)
    assert again.shape == pixels.shape
    assert again.abs().max() <= 1
    with pytest.raises(vae.NonFiniteLatents):
        vae.encode_moments(base.vae, pixels * float("inf"))


def test_loading_in_half_precision_and_by_parts(tiny_base):
    base = load_base(tiny_base("sd1"), dtype=torch.bfloat16, vae_dtype=torch.float32)
    assert {parameter.dtype for parameter in base.unet.parameters()} == {torch.bfloat16}
    assert {parameter.dtype for parameter in base.vae.parameters()} == {torch.float32}
    parts = load_base(tiny_base("sd1"), parts=("text",))
    assert parts.unet is None
    assert parts.vae is None
