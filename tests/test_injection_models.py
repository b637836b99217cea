"""Injection into whole models: every naming and layout, and nothing is ever left behind."""

# ruff: noqa: F811  (pytest takes fixtures by the name of an argument)

from __future__ import annotations

import copy
import os

import pytest
import torch
from injection_cases import assert_near, checksum, draw, files, merged, models, parts_of, setup, traces, written  # noqa: F401
from injection_helpers import delta, make_params, write_adapter
from injection_models import Processing, ldm_named, open_clip_of, random_lora
from torch import nn

from extension.injection import Injection, Row, Whom, constant_use
from extension.injection.adapter_file import site_parameters
from extension.injection.kinds.base import rank_scale
from extension.injection.plan import make_plan
from trainers.formats import safetensors_io
from trainers.formats.families import FAMILIES
from trainers.formats.layer_names import layers

torch.set_num_threads(1)


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_every_site(models, files, tmp_path, family):
    model = models(family)
    entries = random_lora(model, family, conv3x3=True)
    path = write_adapter(tmp_path / "x.safetensors", entries)
    before, plain = checksum(*parts_of(model).values()), draw(model)
    injection, p = Injection(family, parts_of(model)), Processing()
    generation = injection.begin(p, [constant_use(files.get(path))])
    assert generation.sentences(family) == []
    assert [fit.matched for fit in generation.fits] == [len(entries)]
    got = draw(model)
    assert checksum(*parts_of(model).values()) == before
    injection.end(p)
    assert_near(got, draw(merged(model, entries, family)))
    assert all((a - b).abs().max() > 1e-3 for a, b in zip(got, plain, strict=True))
    assert traces(*parts_of(model).values()) == []
    assert checksum(*parts_of(model).values()) == before
    assert all(torch.equal(a, b) for a, b in zip(draw(model), plain, strict=True))


@pytest.mark.parametrize("naming", ["diffusers", "other spelling"])
@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_other_namings_are_the_same_adapter(models, files, tmp_path, family, naming):
    model = models(family)
    entries = random_lora(model, family)
    found = files.get(written(tmp_path / "other.safetensors", family, entries, naming))
    match, tensors = found.match(family), found.tensors()
    assert found.family == family or family == "sd2"  # tiny widths do not tell SD2 from SD1
    assert {site.name for site in match.sites} == set(entries) and not match.unknown
    for site, parts in match.sites.items():
        params = {part: tensors[key] for part, key in parts.items()}
        change = params["lora_up"].flatten(1).double() @ params["lora_down"].flatten(1).double()
        scale = rank_scale(site_parameters(found, site, parts, tensors), 4)
        assert torch.allclose(change * scale, delta(entries[site.name], change)[0], atol=1e-6)


def test_peft_and_old_diffusers_names(models, files, tmp_path):
    model = models("sd1")
    entries = {n: e for n, e in random_lora(model, "sd1").items() if "unet" in n and "attn1" in n}
    by_name = {site.name: site for site in layers(FAMILIES["sd1"])}
    peft, old = {}, {}
    for name, entry in entries.items():
        base = by_name[name].path
        scale = float(entry["alpha"]) / entry["lora_down"].shape[0]
        down, up = entry["lora_down"].float(), (entry["lora_up"] * scale).float()
        peft[f"base_model.model.{base}.lora_A.weight"], peft[f"base_model.model.{base}.lora_B.weight"] = down, up
        attention, _, last = base.removesuffix(".0").rpartition(".")
        key = f"unet.{attention}.processor.{last}_lora"
        old[f"{key}.down.weight"], old[f"{key}.up.weight"] = down, up
    expected = draw(merged(model, entries, "sd1"))
    for name, tensors in (("peft", peft), ("old", old)):
        path = tmp_path / f"{name}.safetensors"
        safetensors_io.save(path, tensors)
        injection, p = Injection("sd1", parts_of(model)), Processing()
        assert injection.begin(p, [constant_use(files.get(path))]).fits[0].complete, name
        assert_near(draw(model), expected)
        injection.end(p)


def test_rslora_in_diffusers_header(models, files, tmp_path):
    entries = random_lora(models("sd1"), "sd1")
    name, entry = next(iter(entries.items()))
    site = {site.name: site for site in layers(FAMILIES["sd1"])}[name]
    rank = entry["lora_down"].shape[0]
    tensors = {
        f"unet.{site.path}.lora_A.weight": entry["lora_down"].float(),
        f"unet.{site.path}.lora_B.weight": entry["lora_up"].float(),
    }
    header = '{"unet.lora_alpha": 3, "unet.use_rslora": true, "unet.alpha_pattern": {"attn1.to_q": 5}}'
    path = tmp_path / "x.safetensors"
    safetensors_io.save(path, tensors, {"lora_adapter_metadata": header})
    alpha = 5 if site.path.endswith("attn1.to_q") else 3
    assert files.get(path).stated_alpha(site, rank) == pytest.approx(alpha * rank**0.5)


ALL_KINDS = {
    "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q": "lora",
    "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_k": "loha",
    "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_v": "lokr factored",
    "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_q": "dora out",
    "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_out_0": "dora in",
    "lora_unet_down_blocks_0_resnets_0_conv1": "tucker",
    "lora_unet_down_blocks_0_resnets_0_conv2": "loha tucker",
    "lora_unet_down_blocks_0_resnets_1_conv1": "boft",
    "lora_unet_down_blocks_1_resnets_1_conv2": "oft rescaled",
    "lora_unet_down_blocks_0_downsamplers_0_conv": "full",
    "lora_unet_down_blocks_0_resnets_0_norm1": "norm",
    "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_norm1": "norm",
    "lora_unet_conv_in": "full",
    "lora_unet_time_embedding_linear_1": "ia3 in",
    "lora_unet_mid_block_attentions_0_proj_in": "ia3 out",
    "lora_unet_up_blocks_1_attentions_0_proj_out": "glora",
    "lora_te_text_model_encoder_layers_0_mlp_fc1": "doha",
    "lora_te_text_model_encoder_layers_1_layer_norm1": "norm",
    "lora_te_text_model_final_layer_norm": "norm",
}


def entries_of_all_kinds(model):
    entries, parts = {}, parts_of(model)
    by_name = {site.name: site for site in layers(FAMILIES["sd1"])}
    for seed, (name, kind) in enumerate(ALL_KINDS.items()):
        site = by_name[name]
        root = parts[site.component]
        path = (
            site.path
            if site.component == "unet" or hasattr(root, "text_model")
            else site.path.removeprefix("text_model.")
        )
        params = make_params(kind, tuple(root.get_submodule(path).weight.shape), seed)
        entries[name] = {
            k: (v * 0.3 if k in ("diff", "w_norm", "b_norm", "hada_w1_a") else v) for k, v in params.items()
        }
    return entries


@pytest.mark.parametrize("merge", [False, True])
def test_all_kinds_at_once_bank_and_merged(models, files, tmp_path, merge):
    model = models("sd1")
    entries = entries_of_all_kinds(model)
    path = write_adapter(tmp_path / "x.safetensors", entries)
    before, plain = checksum(*parts_of(model).values()), draw(model)
    injection, p = Injection("sd1", parts_of(model)), Processing()
    generation = injection.begin(p, [constant_use(files.get(path), 0.6)], merged=merge)
    assert generation.sentences("sd1") == []
    assert len(generation.attachments) == len(entries)
    got = draw(model)
    assert checksum(*parts_of(model).values()) == before
    injection.end(p)
    assert_near(got, draw(merged(model, entries, "sd1", 0.6)), 1e-4)
    assert traces(*parts_of(model).values()) == []
    assert all(torch.equal(a, b) for a, b in zip(draw(model), plain, strict=True))


def test_weight_zero_is_bit_identical(models, files, tmp_path):
    model = models("sd1")
    path = write_adapter(tmp_path / "x.safetensors", {**random_lora(model, "sd1"), **entries_of_all_kinds(model)})
    plain = draw(model)
    for merge in (False, True):
        injection, p = Injection("sd1", parts_of(model)), Processing()
        injection.begin(p, [constant_use(files.get(path), 0.0)], merged=merge)
        assert all(torch.equal(a, b) for a, b in zip(draw(model), plain, strict=True))
        injection.end(p)


@pytest.mark.parametrize("family", ["sd2", "sdxl"])
@pytest.mark.parametrize("batch_first", [True, False])
def test_open_clip_text_model(models, files, tmp_path, family, batch_first):
    model = models(family)
    index = len(model.text_encoders) - 1
    transformers_model = model.text_encoders[index]
    layer_count = FAMILIES[family].text_encoders[index].layers
    clip = open_clip_of(transformers_model, layer_count, batch_first)
    component = FAMILIES[family].text_encoders[index].component
    prefix = FAMILIES[family].text_encoders[index].kohya_prefix
    entries = {n: e for n, e in random_lora(model, family).items() if n.startswith(f"{prefix}_")}
    path = write_adapter(tmp_path / "x.safetensors", entries)
    ids = torch.randint(0, 49000, (3, 77), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        plain = clip(ids)
        reference, p = Injection(family, {component: transformers_model}), Processing()
        assert_near([plain], [transformers_model(ids).last_hidden_state], 1e-4)
        reference.begin(p, [constant_use(files.get(path))])
        expected = transformers_model(ids).last_hidden_state
        reference.end(p)
        before = checksum(clip)
        wrapped = nn.Module()
        wrapped.wrapped = nn.Module()
        wrapped.wrapped.model = clip  # as A1111 wraps it
        injection = Injection(family, {component: wrapped})
        generation = injection.begin(p, [constant_use(files.get(path))])
        assert generation.fits[0].matched == len(entries)
        assert_near([clip(ids)], [expected], 1e-4)
        rows = [Row(picture=i) for i in range(3)]
        injection.begin(p, [constant_use(files.get(path), whom=Whom(picture=1))]).set_rows(rows, component)
        mixed = clip(ids)
        assert_near([mixed[1]], [expected[1]], 1e-4)
        assert_near([mixed[0], mixed[2]], [plain[0], plain[2]], 1e-4)
        injection.begin(p, [constant_use(files.get(path), 0.0)])
        assert torch.equal(clip(ids), plain)
        copied = copy.deepcopy(clip)
        injection.end(p)
        assert torch.equal(copied(ids), plain) and torch.equal(clip(ids), plain)
    assert traces(clip) == [] and checksum(clip) == before


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_ldm_named_unet(models, files, tmp_path, family):
    """The single file's module names lead to the same layers as diffusers' names."""
    model = models(family)
    entries = {n: e for n, e in random_lora(model, family, conv3x3=True).items() if "unet" in n}
    adapter = files.get(write_adapter(tmp_path / "x.safetensors", entries))
    named = ldm_named(model.unet, family)
    plans = [make_plan(family, {"unet": root}, [adapter]) for root in (model.unet, named)]
    assert [plan.fits[0].matched for plan in plans] == [len(entries)] * 2
    for name in entries:
        one, other = (plan.banks[name].layer for plan in plans)
        assert one.module is other.module


# --- reports


def test_wrong_family_and_partial_files_are_reported(models, files, tmp_path):
    sd1, sdxl = models("sd1"), models("sdxl")
    path = write_adapter(
        tmp_path / "big.safetensors", {n: e for n, e in random_lora(sdxl, "sdxl").items() if "te1" not in n}
    )
    injection, p = Injection("sd1", parts_of(sd1)), Processing()
    generation = injection.begin(p, [constant_use(files.get(path))])
    assert generation.sentences("sd1") == [
        "big is made for Stable Diffusion XL and the loaded model is Stable Diffusion 1.x: it does nothing."
    ]
    entries = dict(list(random_lora(sd1, "sd1").items())[:6])
    first, second, *_ = entries
    entries["lora_unet_double_blocks_0_img_attn_qkv"] = entries.pop(first)
    entries[second] = make_params("lora", (7, 5))
    path = write_adapter(tmp_path / "odd.safetensors", entries)
    generation = injection.begin(p, [constant_use(files.get(path))])
    (line,) = generation.sentences("sd1")
    assert line.startswith("odd: 4 of 6 sites; 3 unknown keys such as lora_unet_double_blocks_0_img_attn_qkv.")
    assert f"1 layers of another shape such as {second}" in line
    injection.end(p)


def test_a_missing_component_is_reported(models, files, tmp_path):
    model = models("sd1")
    path = write_adapter(tmp_path / "x.safetensors", random_lora(model, "sd1"))
    injection, p = Injection("sd1", {"unet": model.unet}), Processing()
    (line,) = injection.begin(p, [constant_use(files.get(path))]).sentences("sd1")
    assert "192 of 264 sites; 72 layers this model lacks such as lora_te_text_model" in line
    injection.end(p)


def test_damaged_file_leaves_nothing(setup, files, tmp_path):
    from trainers.errors import InputError

    model, injection, one, _ = setup
    path = write_adapter(tmp_path / "gone.safetensors", random_lora(model, "sd1"))
    gone = files.get(path)
    os.truncate(path, 1000)
    p = Processing()
    with pytest.raises(InputError):
        injection.begin(p, [constant_use(one), constant_use(gone)])
    assert injection.current is None and traces(*parts_of(model).values()) == []
    with pytest.raises(InputError):
        files.get(path)


def test_sd2_file_on_sd1_is_foreign_although_most_shapes_agree(models, files, tmp_path):
    model = models("sd1")
    entries = {n: e for n, e in random_lora(model, "sd1").items() if "unet" in n}
    for name in entries:
        if name.endswith(("attn2_to_k", "attn2_to_v")):
            entries[name] = make_params("lora", (entries[name]["lora_up"].shape[0], 1024))
    injection, p = Injection("sd1", parts_of(model)), Processing()
    generation = injection.begin(p, [constant_use(files.get(write_adapter(tmp_path / "two.safetensors", entries)))])
    assert generation.sentences("sd1") == [
        "two is made for Stable Diffusion 2.x and the loaded model is Stable Diffusion 1.x: it does nothing."
    ]
    assert generation.plan.banks == {}
    injection.end(p)


def test_a_file_without_layers(models, files, tmp_path):
    path = tmp_path / "odd.safetensors"
    safetensors_io.save(path, {"weights": torch.ones(3)})
    injection, p = Injection("sd1", parts_of(models("sd1"))), Processing()
    generation = injection.begin(p, [constant_use(files.get(path))])
    assert generation.sentences("sd1") == ["odd holds no adapter of a known kind: it does nothing."]
    injection.end(p)


@pytest.mark.skipif(not hasattr(torch, "float8_e4m3fn"), reason="this torch has no float8")
def test_adapter_stored_in_float8(models, files, tmp_path):
    model = models("sd1")
    entries = {n: e for n, e in random_lora(model, "sd1").items() if "te_" in n}
    paths = [write_adapter(tmp_path / f"{i}.safetensors", entries, torch.float8_e4m3fn) for i in (1, 2)]
    rounded = {n: {k: v.to(torch.float8_e4m3fn).double() for k, v in e.items()} for n, e in entries.items()}
    injection, p = Injection("sd1", parts_of(model)), Processing()
    for count in (1, 2):
        injection.begin(p, [constant_use(files.get(path)) for path in paths[:count]])
        assert_near(draw(model)[1:], draw(merged(model, rounded, "sd1", count))[1:])
    injection.end(p)
