"""Names of single files and modules: against diffusers' own converters, and against real modules."""

from __future__ import annotations

import pytest
import torch
from tiny_models import tiny_modules

from trainers.bases import build, export
from trainers.bases.loader import load_base, module_for
from trainers.formats.families import FAMILIES
from trainers.formats.sites import all_sites, check_count, component_sites, text_sites, unet_sites

single_file = pytest.importorskip("diffusers.loaders.single_file_utils")


@pytest.fixture(scope="module")
def modules():
    made = {}

    def get(name: str):
        if name not in made:
            made[name] = tiny_modules(name)
        return made[name]

    return get


def same(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name].flatten(), other[name].flatten()) for name in one)


@pytest.mark.parametrize("name", list(FAMILIES))
def test_unet_and_vae_names_are_those_of_diffusers_converter(modules, name):
    tiny = modules(name)
    stored = export.single_file_state(tiny)
    unet = single_file.convert_ldm_unet_checkpoint(dict(stored), dict(tiny.unet.config))
    same(unet, tiny.unet.state_dict())
    vae = single_file.convert_ldm_vae_checkpoint(dict(stored), dict(tiny.vae.config))
    same(vae, tiny.vae.state_dict())


@pytest.mark.parametrize(("name", "index"), [("sd2", 0), ("sdxl", 1)])
def test_open_clip_names_are_those_of_diffusers_converter(modules, name, index):
    tiny = modules(name)
    encoder, module = tiny.family.text_encoders[index], tiny.text_encoders[index]
    stored = export.single_file_state(tiny)
    found = single_file.convert_open_clip_checkpoint(module, dict(stored), prefix=encoder.ldm_prefix)
    wanted = export.canonical_state(module)
    if not encoder.pooled:
        found.pop("text_projection.weight", None)
    found = {key if key.startswith("text_") else f"text_model.{key}": value for key, value in found.items()}
    same({key: found[key] for key in wanted}, wanted)


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_hf_text_encoder_names_carry_the_text_model_level(modules, name):
    tiny = modules(name)
    prefix = tiny.family.text_encoders[0].ldm_prefix
    stored = export.single_file_state(tiny)
    assert f"{prefix}text_model.encoder.layers.11.self_attn.q_proj.weight" in stored
    assert stored[f"{prefix}text_model.embeddings.position_ids"].tolist() == [list(range(77))]


@pytest.mark.parametrize("levels_and_blocks", [(3, 1), (4, 2)])
def test_an_autoencoder_of_another_size_round_trips(levels_and_blocks):
    levels, blocks = levels_and_blocks
    tiny = tiny_modules("sd1", vae_widths=(32, 64, 64, 96)[:levels], vae_blocks=blocks)
    stored = export.vae_to_ldm(export.canonical_state(tiny.vae))
    converted = single_file.convert_ldm_vae_checkpoint(
        {f"first_stage_model.{key}": value for key, value in stored.items()}, dict(tiny.vae.config)
    )
    same(converted, tiny.vae.state_dict())


@pytest.mark.parametrize("layout", ["ldm", "diffusers"])
@pytest.mark.parametrize("name", list(FAMILIES))
def test_a_written_model_loads_as_it_was(tiny_base, modules, name, layout):
    base, tiny = load_base(tiny_base(name, layout)), modules(name)
    same(base.unet.state_dict(), tiny.unet.state_dict())
    same(base.vae.state_dict(), tiny.vae.state_dict())
    for one, other in zip(base.text_encoders, tiny.text_encoders, strict=True):
        same(one.state_dict(), other.state_dict())
    assert base.vae.config.scaling_factor == base.family.latent_scale
    assert not any(parameter.requires_grad for parameter in base.unet.parameters())


# The published counts (FORMATS), and the published widths, on modules without memory.
PUBLISHED = {
    "sd1": ((320, 640, 1280, 1280), 768, (192, 278), (72,)),
    "sd2": ((320, 640, 1280, 1280), 1024, (192, 278), (138,)),
    "sdxl": ((320, 640, 1280), 2048, (722, 788), (72, 192)),
}


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_every_site_is_a_layer_of_the_published_unet(name):
    widths, context, counts, _ = PUBLISHED[name]
    family = FAMILIES[name]
    shapes = {f"down_blocks.{i}.resnets.0.conv1.weight": (width,) for i, width in enumerate(widths)}
    shapes["a.attn2.to_k.weight"] = (320, context)
    shapes["add_embedding.linear_1.weight"] = (1280, 2816)
    config = build.unet_config(family, shapes, 1280)
    assert config.get("addition_time_embed_dim", 256) == 256
    unet = build.make_unet(config)
    kinds = {"linear": torch.nn.Linear, "conv1x1": torch.nn.Conv2d, "conv3x3": torch.nn.Conv2d}
    for conv3x3, count in zip((False, True), counts, strict=True):
        sites = unet_sites(family, conv3x3)
        assert len(sites) == len({site.name for site in sites}) == count
        check_count(family, "unet", len(sites), conv3x3)
        for site in sites:
            layer = unet.get_submodule(site.path)
            assert isinstance(layer, kinds[site.kind])
            if site.kind != "linear":
                assert layer.kernel_size == ((3, 3) if site.kind == "conv3x3" else (1, 1))
    # Nothing of the kinds that sd-scripts trains is left out.
    named = {site.path for site in unet_sites(family, True)}
    rest = [path for path, layer in unet.named_modules() if isinstance(layer, (torch.nn.Linear, torch.nn.Conv2d))]
    outside = ("time_embedding.", "add_embedding.", "conv_in", "conv_out")
    assert {path for path in rest if not path.startswith(outside)} == named


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_every_text_site_is_a_layer(loaded_base, name):
    base = loaded_base(name)
    for index, count in enumerate(PUBLISHED[name][3]):
        sites = text_sites(base.family, index)
        assert len(sites) == count
        check_count(base.family, sites[0].component, len(sites))
        assert all(isinstance(module_for(base, site), torch.nn.Linear) for site in sites)


def test_a_wrong_count_is_an_error():
    with pytest.raises(RuntimeError, match="191 layers were found where 192"):
        check_count(FAMILIES["sd1"], "unet", 191)


def test_names_are_those_of_sd_scripts():
    names = {site.name for family in FAMILIES.values() for site in all_sites(family)}
    for name in (
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q",
        "lora_unet_up_blocks_3_attentions_2_transformer_blocks_0_ff_net_0_proj",
        "lora_unet_mid_block_attentions_0_proj_in",
        "lora_unet_down_blocks_1_resnets_0_conv_shortcut",
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q",
        "lora_unet_middle_block_1_transformer_blocks_9_attn2_to_out_0",
        "lora_unet_input_blocks_3_0_op",
        "lora_unet_output_blocks_2_2_conv",
        "lora_te_text_model_encoder_layers_22_mlp_fc2",
        "lora_te2_text_model_encoder_layers_31_self_attn_out_proj",
    ):
        assert name in names


def test_blocks_are_named_for_the_options():
    blocks = {
        site.block for component in ("unet", "text_encoder") for site in component_sites(FAMILIES["sd1"], component)
    }
    assert blocks == {"down_0", "down_1", "down_2", "mid", "up_1", "up_2", "up_3", "text"}


def test_resolutions_are_the_published_ones():
    found = {(name, kind): FAMILIES[name].resolution_for(kind) for name in FAMILIES for kind in ("epsilon", "v")}
    assert found[("sd1", "epsilon")] == found[("sd2", "epsilon")] == 512
    assert found[("sd2", "v")] == 768
    assert found[("sdxl", "epsilon")] == found[("sdxl", "v")] == 1024
