"""The text side of the base: CLIP's vocabulary, and a CLIP text model 64 wide."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from trainers.bases.tokenizer import clip_tokenizer

BOS, EOS, LENGTH = 49406, 49407, 77
OUTPUT_MEAN = 0.3  # hosts divide by the mean of the text model's output: it must never be near zero
WORD_SIZE = 0.05  # so that a word's vector is as long as one of SD1's, which has 768 smaller numbers


@lru_cache(1)
def tokenizer():
    """CLIP's tokenizer, padding with the end token as SD1 does."""
    return clip_tokenizer()


def tokens(captions: list[str]) -> Tensor:
    """Token numbers of shape (captions, 77)."""
    rows = tokenizer()(captions, padding="max_length", truncation=True, max_length=LENGTH)["input_ids"]
    return torch.tensor(rows, dtype=torch.long)


def text_config() -> CLIPTextConfig:
    """SD1.5's text model at a twelfth of its width; twelve layers, so that every site has the same name."""
    return CLIPTextConfig(
        vocab_size=49408,
        hidden_size=64,
        intermediate_size=256,
        projection_dim=64,
        num_hidden_layers=12,
        num_attention_heads=1,
        max_position_embeddings=LENGTH,
        hidden_act="quick_gelu",
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=EOS,
    )


def build_text_model() -> CLIPTextModel:
    """An untrained text model whose last norm is fixed, so that the output's mean is the same for every prompt."""
    model = CLIPTextModel._from_config(text_config(), attn_implementation="eager")
    torch.nn.init.normal_(model.get_input_embeddings().weight, std=WORD_SIZE)
    norm = getattr(model, "text_model", model).final_layer_norm
    norm.bias.data.fill_(OUTPUT_MEAN)
    norm.requires_grad_(False)
    return model
