"""Adapters in every naming give the same entries; damaged ones are refused."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainers.errors import InputError
from trainers.formats import adapters, safetensors_io
from trainers.formats.adapter_keys import KINDS, kind_of, parse_key, recognise
from trainers.formats.families import FAMILIES
from trainers.formats.sites import all_sites, text_sites, unet_sites


def entries_for(family, sites=None):
    """Small random matrices with the published context width, ranks 4 and 6, alpha 2.5."""
    generator = torch.Generator().manual_seed(0)
    context = {"sd1": 768, "sd2": 1024, "sdxl": 2048}[family.name]
    entries = {}
    for index, site in enumerate(sites or all_sites(family)):
        rank = 4 if index % 3 else 6
        width = context if site.path.endswith(("attn2.to_k", "attn2.to_v")) else 8
        kernel = {"linear": (), "conv1x1": (1, 1), "conv3x3": (3, 3)}[site.kind]
        ones = () if site.kind == "linear" else (1, 1)
        entries[site.name] = {
            "lora_down": torch.randn(rank, width, *kernel, generator=generator),
            "lora_up": torch.randn(5, rank, *ones, generator=generator),
            "alpha": 2.5,
        }
    return entries


def scaled(entry):
    return entry["lora_up"] * (entry["alpha"] / entry["lora_down"].shape[0])


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    for name, entry in wanted.items():
        assert torch.equal(found[name]["lora_down"], entry["lora_down"]), name
        assert torch.allclose(scaled(found[name]), scaled(entry)), name


def saved(tmp_path, tensors, metadata=None):
    path = tmp_path / "a.safetensors"
    safetensors_io.save(path, tensors, metadata)
    return path


def rename(entries, spell, down=".lora_down.weight", up=".lora_up.weight"):
    """Tensors of a LoRA with rank 4 and alpha 4 under other names."""
    tensors = {}
    for name, entry in entries.items():
        tensors[spell(name) + down] = entry["lora_down"]
        tensors[spell(name) + up] = entry["lora_up"]
    return tensors


@pytest.mark.parametrize("name", list(FAMILIES))
class TestRoundTrips:
    def test_kohya(self, tmp_path, name):
        entries = entries_for(FAMILIES[name])
        tensors = adapters.to_kohya(entries)
        assert len(tensors) == 3 * len(entries)
        adapter = adapters.read_adapter(saved(tmp_path, tensors))
        assert (adapter.family, adapter.found.naming, adapter.found.unknown) == (name, "kohya", [])
        assert_same(adapter.entries, entries)
        assert all(entry["alpha"] == 2.5 for entry in adapter.entries.values())

    def test_diffusers(self, tmp_path, name):
        family = FAMILIES[name]
        entries = entries_for(family)
        tensors, metadata = adapters.to_diffusers(family, entries)
        adapter = adapters.read_adapter(saved(tmp_path, tensors, metadata))
        assert (adapter.family, adapter.found.naming) == (name, "diffusers")
        assert_same(adapter.entries, entries)
        header = json.loads(metadata["lora_adapter_metadata"])
        assert header["unet.r"] == header["unet.lora_alpha"] == 4

    @pytest.mark.parametrize("level", [True, False])
    def test_peft(self, tmp_path, name, level):
        family = FAMILIES[name]
        entries = entries_for(family)
        exported = adapters.to_peft(family, entries, without_level=() if level else family.components)
        adapters.save_peft(tmp_path, exported)
        adapter = adapters.read_adapter(tmp_path)
        assert (adapter.family, adapter.found.naming) == (name, "peft")
        assert_same(adapter.entries, entries)
        one = adapters.read_adapter(tmp_path / "unet", family=name)
        assert one.entries.keys() == {site.name for site in unet_sites(family, True)}
        assert_same(adapters.read_adapter(tmp_path / "unet" / "adapter_model.safetensors", name).entries, one.entries)


class TestOthersFiles:
    def test_sdxl_names_after_diffusers(self, tmp_path):
        family = FAMILIES["sdxl"]
        entries = entries_for(family, unet_sites(family, True))
        paths = {site.name: site.path.replace(".", "_") for site in unet_sites(family, True)}
        tensors = {}
        for key, tensor in adapters.to_kohya(entries).items():
            site, _, part = key.partition(".")
            tensors[f"lora_unet_{paths[site]}.{part}"] = tensor
        adapter = adapters.read_adapter(saved(tmp_path, tensors))
        assert adapter.family == "sdxl"
        assert_same(adapter.entries, entries)

    def test_old_diffusers_names(self, tmp_path):
        base = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor"
        text = "text_encoder.text_model.encoder.layers.0.self_attn"
        tensors = {}
        for path in (f"{base}.to_q_lora", f"{base}.to_out_lora", f"{text}.to_v_lora", f"{text}.to_out_lora"):
            tensors |= {f"{path}.down.weight": torch.ones(4, 8), f"{path}.up.weight": torch.ones(8, 4)}
        tensors |= {
            f"{text}.k_proj.lora_linear_layer.{end}.weight": torch.ones(shape)
            for end, shape in (("down", (4, 8)), ("up", (8, 4)))
        }
        adapter = adapters.read_adapter(saved(tmp_path, tensors))
        site = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1"
        assert adapter.entries.keys() == {
            f"{site}_to_q",
            f"{site}_to_out_0",
            "lora_te_text_model_encoder_layers_0_self_attn_v_proj",
            "lora_te_text_model_encoder_layers_0_self_attn_out_proj",
            "lora_te_text_model_encoder_layers_0_self_attn_k_proj",
        }
        assert all(entry["alpha"] == 4 for entry in adapter.entries.values())

    def test_a_missing_alpha_is_the_rank(self, tmp_path):
        family = FAMILIES["sd1"]
        tensors = adapters.to_kohya(entries_for(family))
        tensors = {key: tensor for key, tensor in tensors.items() if not key.endswith(".alpha")}
        adapter = adapters.read_adapter(saved(tmp_path, tensors))
        assert all(entry["alpha"] == entry["lora_down"].shape[0] for entry in adapter.entries.values())

    def test_rslora_of_a_peft_folder_is_folded_into_alpha(self, tmp_path):
        family = FAMILIES["sd1"]
        entries = entries_for(family, unet_sites(family))
        exported = adapters.to_peft(family, entries)
        exported["unet"][1]["use_rslora"] = True
        adapters.save_peft(tmp_path, exported)
        for entry in adapters.read_adapter(tmp_path).entries.values():
            assert entry["alpha"] == pytest.approx(2.5 * entry["lora_down"].shape[0] ** 0.5)

    @pytest.mark.parametrize("ending", ["pt", "bin"])
    def test_pickled_loras(self, tmp_path, ending):
        entries = entries_for(FAMILIES["sd1"])
        torch.save(adapters.to_kohya(entries), tmp_path / f"a.{ending}")
        assert_same(adapters.read_adapter(tmp_path / f"a.{ending}").entries, entries)

    def test_sd2_is_told_from_sd1(self, tmp_path):
        sd2 = FAMILIES["sd2"]
        unet, text = entries_for(sd2, unet_sites(sd2)), entries_for(sd2, text_sites(sd2, 0))
        for entries in (unet, text):
            assert adapters.read_adapter(saved(tmp_path, adapters.to_kohya(entries))).family == "sd2"
        narrow = {"lora_unet_mid_block_attentions_0_proj_in": next(iter(unet.values()))}
        assert adapters.read_adapter(saved(tmp_path, adapters.to_kohya(narrow))).family == "sd1"
        stated = {"ss_base_model_version": "sd_v2_v"}
        assert adapters.read_adapter(saved(tmp_path, adapters.to_kohya(narrow), stated)).family == "sd2"

    def test_tucker_locon_keeps_its_middle(self, tmp_path):
        site = "lora_unet_down_blocks_0_resnets_0_conv1"
        entry = {
            "lora_down": torch.ones(4, 8, 1, 1),
            "lora_mid": torch.ones(4, 4, 3, 3),
            "lora_up": torch.ones(8, 4, 1, 1),
            "alpha": 1.0,
        }
        tensors = adapters.to_kohya({site: entry})
        assert f"{site}.lora_mid.weight" in tensors
        assert adapters.read_adapter(saved(tmp_path, tensors)).entries[site]["lora_mid"].shape == (4, 4, 3, 3)
        with pytest.raises(InputError, match="file_format"):
            adapters.to_diffusers(FAMILIES["sd1"], {site: entry})


class TestDamaged:
    SITE = "lora_unet_mid_block_attentions_0_proj_in"

    @pytest.mark.parametrize(
        ("shapes", "words"),
        [
            ({"lora_down.weight": (4, 8)}, "only one of its two"),
            ({"lora_down.weight": (4, 8), "lora_up.weight": (8, 3)}, "do not fit"),
            ({"lora_down.weight": (), "lora_up.weight": ()}, "do not fit"),
            ({"lora_down.weight": (4,), "lora_up.weight": (8, 4)}, "do not fit"),
            ({"lora_down.weight": (0, 8), "lora_up.weight": (8, 0)}, "do not fit"),
            ({"lora_down.weight": (4, 8), "lora_up.weight": (8, 4), "alpha": (3,)}, "alpha"),
        ],
    )
    def test_shapes(self, tmp_path, shapes, words):
        path = saved(tmp_path, {f"{self.SITE}.{part}": torch.ones(shape) for part, shape in shapes.items()})
        with pytest.raises(InputError, match=words) as caught:
            adapters.read_adapter(path)
        assert str(path) in str(caught.value)

    @pytest.mark.parametrize("header", ["{", "[1]", '"x"', "[" * 5000])
    def test_header_entries(self, tmp_path, header):
        tensors, _ = adapters.to_diffusers(FAMILIES["sd1"], entries_for(FAMILIES["sd1"], unet_sites(FAMILIES["sd1"])))
        with pytest.raises(InputError, match="lora_adapter_metadata"):
            adapters.read_adapter(saved(tmp_path, tensors, {"lora_adapter_metadata": header}))

    def test_peft_descriptions(self, tmp_path):
        with pytest.raises(InputError, match="no adapter"):
            adapters.read_adapter(tmp_path)
        for text in ("{", "[]", '{"lora_alpha": "many"}', '{"alpha_pattern": 3}'):
            family = FAMILIES["sd1"]
            adapters.save_peft(tmp_path / "x", adapters.to_peft(family, entries_for(family, unet_sites(family))))
            (tmp_path / "x" / "unet" / "adapter_config.json").write_text(text)
            with pytest.raises(InputError):
                adapters.read_adapter(tmp_path / "x")

    @pytest.mark.parametrize(("name", "asked"), [("sdxl", "sd1"), ("sd1", "sdxl"), ("sd2", "sd1")])
    def test_another_familys_adapter_is_named(self, tmp_path, name, asked):
        path = saved(tmp_path, adapters.to_kohya(entries_for(FAMILIES[name])))
        with pytest.raises(InputError, match=f"is for {FAMILIES[name].title}, not for {FAMILIES[asked].title}"):
            adapters.read_adapter(path, asked)

    def test_no_adapter_at_all(self, tmp_path):
        with pytest.raises(InputError, match="no adapter of a known kind"):
            adapters.read_adapter(saved(tmp_path, {"x": torch.ones(1)}))


@pytest.mark.parametrize("kind", KINDS, ids=[kind.name for kind in KINDS])
def test_a_kind_is_known_by_its_marks(kind):
    assert kind_of(kind.parts) == kind.name
    assert set(kind.marks) <= set(kind.parts)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=80), st.sampled_from(["", ".alpha", ".lora_down.weight", ".lora_A.weight", ".diff"]))
def test_any_key_at_all_can_be_asked(text, ending):
    for prefix in ("", "lora_unet_", "unet.", "base_model.model."):
        parse_key(prefix + text + ending)
        recognise([prefix + text + ending])
