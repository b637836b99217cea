"""Whole models for injection tests: adapters for every site, and the same weights under other module names."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trainers.formats.families import FAMILIES
from trainers.formats.layer_names import layers
from trainers.formats.sites import component_sites


class Processing:
    """Stands for a host's processing object."""


def unet_inputs(model, batch: int = 2, side: int = 16, seed: int = 2) -> dict:
    """Arguments for one call of the model's diffusers UNet."""
    generator = torch.Generator().manual_seed(seed)
    config = model.unet.config
    inputs = {
        "sample": torch.randn(batch, 4, side, side, generator=generator),
        "timestep": torch.full((batch,), 300),
        "encoder_hidden_states": torch.randn(batch, 77, config.cross_attention_dim, generator=generator),
    }
    if config.addition_embed_type == "text_time":
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        inputs["added_cond_kwargs"] = {
            "text_embeds": torch.randn(batch, pooled, generator=generator),
            "time_ids": torch.full((batch, 6), 64.0),
        }
    return inputs


def module_of(model, site) -> nn.Module:
    """The diffusers or transformers module of a site."""
    if site.component == "unet":
        return model.unet.get_submodule(site.path)
    root = model.text_encoders[0 if site.component == "text_encoder" else 1]
    return root.get_submodule(site.path if hasattr(root, "text_model") else site.path.removeprefix("text_model."))


def random_lora(
    model, family: str, rank: int = 4, conv3x3: bool = False, seed: int = 0
) -> dict[str, dict[str, Tensor]]:
    """`{site name: parameters}` of a LoRA on every site, strong enough to be seen."""
    generator = torch.Generator().manual_seed(seed)
    entries = {}
    for component in FAMILIES[family].components:
        for site in component_sites(FAMILIES[family], component, conv3x3=conv3x3 and component == "unet"):
            out, inp, *kernel = module_of(model, site).weight.shape
            size = inp * (kernel[0] * kernel[1] if kernel else 1)
            down = torch.randn(rank, inp, *kernel, generator=generator) * size**-0.5
            up = torch.randn(out, rank, *[1] * len(kernel), generator=generator) * 0.1
            entries[site.name] = {"lora_down": down.double(), "lora_up": up.double(), "alpha": torch.tensor(2.0)}
    return entries


def ldm_named(unet: nn.Module, family: str) -> nn.Module:
    """The same module objects under the single file's names (only the names: it cannot be run)."""
    root = nn.Module()
    known = dict(unet.named_modules())
    for site in layers(FAMILIES[family]):
        if site.component == "unet" and site.path in known:
            *folders, last = site.ldm_path.split(".")
            place = root
            for name in folders:
                if not hasattr(place, name):
                    place.add_module(name, nn.Module())
                place = getattr(place, name)
            place.add_module(last, known[site.path])
    return root


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int, activation: nn.Module, batch_first: bool) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=batch_first)
        self.mlp = nn.Sequential()
        self.mlp.add_module("c_fc", nn.Linear(width, hidden))
        self.mlp.add_module("gelu", activation)
        self.mlp.add_module("c_proj", nn.Linear(hidden, width))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        normed = self.ln_1(x)
        x = x + self.attn(normed, normed, normed, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


class OpenClipText(nn.Module):
    """A text model with open_clip's module names, as SD2 and SDXL single-file hosts have it."""

    def __init__(self, config, layer_count: int, batch_first: bool) -> None:
        super().__init__()
        self.batch_first = batch_first
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.positional_embedding = nn.Parameter(torch.zeros(77, config.hidden_size))
        self.transformer = nn.Module()
        activation = {"gelu": nn.GELU}[config.hidden_act]
        self.transformer.resblocks = nn.ModuleList(
            _Block(config.hidden_size, config.num_attention_heads, config.intermediate_size, activation(), batch_first)
            for _ in range(layer_count)
        )
        self.ln_final = nn.LayerNorm(config.hidden_size)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.token_embedding(ids) + self.positional_embedding
        mask = torch.full((77, 77), float("-inf")).triu(1)
        x = x if self.batch_first else x.transpose(0, 1)
        for block in self.transformer.resblocks:
            x = block(x, mask)
        return self.ln_final(x if self.batch_first else x.transpose(0, 1))


def open_clip_of(encoder: nn.Module, layer_count: int, batch_first: bool) -> OpenClipText:
    """A transformers CLIP text model's weights under open_clip's names."""
    text = OpenClipText(encoder.config, layer_count, batch_first).eval().requires_grad_(False)
    source = encoder.text_model if hasattr(encoder, "text_model") else encoder
    text.token_embedding.weight.data = source.embeddings.token_embedding.weight.data.clone()
    text.positional_embedding.data = source.embeddings.position_embedding.weight.data.clone()
    text.ln_final.load_state_dict(source.final_layer_norm.state_dict())
    for block, layer in zip(text.transformer.resblocks, source.encoder.layers, strict=True):
        attention = layer.self_attn
        for kind in ("weight", "bias"):
            thirds = [getattr(getattr(attention, f"{x}_proj"), kind).data for x in "qkv"]
            getattr(block.attn, f"in_proj_{kind}").data = torch.cat(thirds)
        block.attn.out_proj.load_state_dict(attention.out_proj.state_dict())
        block.ln_1.load_state_dict(layer.layer_norm1.state_dict())
        block.ln_2.load_state_dict(layer.layer_norm2.state_dict())
        block.mlp.c_fc.load_state_dict(layer.mlp.fc1.state_dict())
        block.mlp.c_proj.load_state_dict(layer.mlp.fc2.state_dict())
    return text
