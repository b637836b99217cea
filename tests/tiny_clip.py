"""Small random CLIP folders in transformers' layout."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import CLIPConfig, CLIPModel, CLIPVisionModelWithProjection

WIDTH = 16


def make_clip(folder: Path, text_width: int = 32, whole: bool = True, seed: int = 0) -> Path:
    """A folder of a whole CLIP model, or of its image half alone."""
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
              "image_size": 32, "patch_size": 8, "projection_dim": WIDTH}  # fmt: skip
    text = {"hidden_size": text_width, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
            "vocab_size": 64, "projection_dim": WIDTH}  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH)
        model = CLIPModel(config) if whole else CLIPVisionModelWithProjection(config.vision_config)
        model.save_pretrained(folder)
    return folder
