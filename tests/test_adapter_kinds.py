"""Every kind of adapter: trained, saved, read by LyCORIS, PEFT, diffusers and our injection, all with equal outputs."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from diffusers import StableDiffusionPipeline
from injection_models import unet_inputs
from peft import PeftModel
from training_helpers import header_of, job_values, killed_and_resumed, make_pictures

from extension.injection import AdapterFiles, Injection, constant_use
from trainers import running, spec
from trainers.bases.loader import load_base, module_for
from trainers.errors import InputError
from trainers.events import read_events
from trainers.formats.adapter_keys import recognise
from trainers.formats.layer_names import layers
from trainers.formats.safetensors_io import load
from trainers.formats.sites import text_sites, unet_sites
from trainers.methods import lycoris_kinds
from trainers.methods.lycoris_kinds import KINDS, Kind, installed_version
from trainers.options import BLOCKS

PARTS = {
    "loha": {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "alpha"},
    "lokr": {"lokr_w1", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "alpha"},
    "dora": {"lora_up.weight", "lora_down.weight", "alpha", "dora_scale"},
    "oft": {"oft_blocks", "alpha"},
    "boft": {"oft_blocks", "alpha"},
    "ia3": {"weight", "on_input"},
    "full": {"diff", "diff_b"},
}


WHOLE = sorted(kind for kind in PARTS if KINDS[kind].since <= installed_version())
"""Kinds that the LyCORIS of this torch can train."""


@pytest.fixture
def train(tiny_base, tmp_path):
    pictures = make_pictures(tmp_path / "pictures", 3, caption="a zog on a table")

    def run(kind, family="sd1", folder="run", **changes):
        rates = {"learning_rate": 0.05, "text_encoder_lr": 0.05}
        values = job_values(tiny_base(family), pictures, steps=2, save_dtype="fp32", kind=kind, **rates)
        values |= {"name": "zog", **changes}
        values = {name: value for name, value in values.items() if value is not None}
        return running.start(spec.parse(values), tmp_path / folder), tmp_path / folder

    return run


def outputs(base):
    with torch.no_grad():
        text = base.text_encoders[0](torch.arange(77)[None]).last_hidden_state
        return base.unet(**unet_inputs(base)).sample, text


def through_lycoris(base, path):
    """The model with the file's modules as LyCORIS itself rebuilds them."""
    import importlib

    stored = load(path)[0]
    kept = []
    for site in layers(base.family):
        for kind in (*KINDS.values(), Kind(("norms", "NormModule"), "norm")):
            cls = getattr(importlib.import_module(f"lycoris.modules.{kind.module[0]}"), kind.module[1])
            if not cls.algo_check(stored, site.name):
                continue
            weights = cls.extract_state_dict(stored, site.name)
            layer = module_for(base, site)
            if kind.algorithm == "ia3":  # its own way to rebuild does not tell inputs from outputs
                module = cls(site.name, layer, train_on_input=bool(stored[f"{site.name}.on_input"]))
                module.weight.data.copy_(weights[0])
            else:
                with torch.no_grad():
                    module = cls.make_module_from_state_dict(site.name, layer, *weights)
            module.apply_to()
            kept.append(module.eval())
            break
    return kept


def through_injection(base, path, text=True):
    """What the model says with our injection of the file; the model is as before afterwards."""
    plain = outputs(base)
    injection = Injection("sd1", {"unet": base.unet, "text_encoder": base.text_encoders[0]})
    owner = type("Processing", (), {})()
    generation = injection.begin(owner, [constant_use(AdapterFiles().get(path))])
    assert generation.sentences("sd1") == []
    ours = outputs(base)
    injection.end(owner)
    acts = [not torch.allclose(a, b, atol=1e-5) for a, b in zip(ours, plain, strict=True)]
    assert acts == [True, text]
    return ours


def assert_same(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-4)


def by_formula(base, path):
    """W' = m (W + dW) / |W + dW|, the norm taken for each input (Liu et al. 2024, with LyCORIS's other axis)."""
    stored, changed = load(path)[0], []
    for site in [*unet_sites(base.family, conv3x3=True), *text_sites(base.family, 0)]:
        if f"{site.name}.dora_scale" not in stored:
            continue
        down, up, alpha, m = (
            stored[f"{site.name}.{part}"].double()
            for part in ("lora_down.weight", "lora_up.weight", "alpha", "dora_scale")
        )
        layer = module_for(base, site)
        delta = (up.flatten(1) @ down.flatten(1)).reshape(layer.weight.shape) * alpha / down.shape[0]
        whole = layer.weight.detach().double() + delta
        length = whole.square().sum([d for d in range(whole.ndim) if d != 1], keepdim=True).sqrt()
        layer.weight = torch.nn.Parameter((m * whole / length).float(), requires_grad=False)
        changed.append(site)
    return changed


@pytest.mark.parametrize("kind", WHOLE)
def test_trained_file_means_the_same_everywhere(train, tiny_base, kind):
    code, folder = train(kind, rank=8)  # the smallest block of which BOFT can make 96 is 6
    assert code == 0
    path = folder / "zog.safetensors"
    tensors = load(path)[0]
    assert {name.partition(".")[2] for name in tensors} <= PARTS[kind]
    assert recognise({name: tuple(t.shape) for name, t in tensors.items()}, "sd_v1").family == "sd1"
    metadata = header_of(path)["__metadata__"]
    assert metadata["ss_network_module"] == "lycoris.kohya" and KINDS[kind].algorithm in metadata["ss_network_args"]
    base = load_base(tiny_base("sd1"))
    ours = through_injection(base, path)
    theirs = copy.deepcopy(base)
    # LyCORIS rebuilds DoRA for the output axis only, so that one is compared with the formula itself.
    assert by_formula(theirs, path) if kind == "dora" else through_lycoris(theirs, path)
    assert_same(ours, outputs(theirs))


@pytest.mark.parametrize(
    ("rank", "options"), [(8, {"conv_rank": 4, "conv_alpha": 3.0}), (4, {"rslora": True, "alpha": 2.0})],
    ids=["locon", "rslora"],
)  # fmt: skip
def test_lora_with_convolutions_or_another_scale_means_the_same_everywhere(train, tiny_base, rank, options):
    code, folder = train("lora", rank=rank, **options)
    assert code == 0
    path = folder / "zog.safetensors"
    stored = load(path)[0]
    ranks = {tensor.shape[0] for name, tensor in stored.items() if name.endswith("lora_down.weight")}
    alphas = {tensor.item() for name, tensor in stored.items() if name.endswith(".alpha")}
    assert (ranks, alphas) == (({8, 4}, {4.0, 3.0}) if "conv_rank" in options else ({4}, {4.0}))  # 2 * sqrt(4)
    base = load_base(tiny_base("sd1"))
    ours = through_injection(base, path)
    theirs = copy.deepcopy(base)
    assert len(through_lycoris(theirs, path)) == len([name for name in stored if name.endswith(".alpha")])
    assert_same(ours, outputs(theirs))
    pipe = StableDiffusionPipeline.from_pretrained(tiny_base("sd1", "diffusers"), local_files_only=True)
    pipe.load_lora_weights(folder, weight_name=path.name)
    assert_same(ours, outputs(SimpleNamespace(unet=pipe.unet, text_encoders=[pipe.text_encoder])))
    code, folder = train("lora", rank=rank, file_format="peft", folder="peft", **options)
    assert code == 0
    modules = {"unet": base.unet, "text_encoder": base.text_encoders[0]}
    unet, text = (PeftModel.from_pretrained(root, str(folder / "zog" / name)) for name, root in modules.items())
    assert_same(ours, outputs(SimpleNamespace(unet=unet.base_model.model, text_encoders=[text.base_model.model])))


@pytest.mark.parametrize("options", [{}, {"method": "dreambooth", "output": "difference"}], ids=["kind", "dreambooth"])
def test_full_difference_of_chosen_blocks_means_the_same_everywhere(train, tiny_base, options):
    """Both ways to it: as a kind of adapter, and as what a whole model differs in."""
    blocks = ["mid", "down_1"]
    if options:
        code, folder = train(None, rank=None, blocks=blocks, train_text_encoder=False, **options)
    else:
        others = {name: 0 for name in BLOCKS if name not in blocks}
        code, folder = train("full", train_text_encoder=False, block_ranks=others)
    assert code == 0
    path = folder / "zog.safetensors"
    found = {"_".join(name.split("_")[2:5]) for name in load(path)[0]}
    assert found == {"mid_block_attentions", "down_blocks_1"} | ({"mid_block_resnets"} if options else set())
    base = load_base(tiny_base("sd1"))
    ours = through_injection(base, path, text=False)
    theirs = copy.deepcopy(base)
    assert through_lycoris(theirs, path)
    assert_same(ours, outputs(theirs))


def test_full_is_measured_against_the_base_itself(train, tmp_path):
    """It takes the layers' weights over, and gives them back while the base is measured."""
    found = []
    for kind in ("full", "lora"):
        code, folder = train(kind, folder=kind, validation_data=str(tmp_path / "pictures"), validate_every=1)
        assert code == 0
        events, _ = read_events(folder / "events.jsonl")
        found.append([event for event in events if event["event"] == "validation"])
        (taken,) = [event for event in events if event["event"] == "memory"]
        assert taken["peak_bytes"] > 0 and taken["planned_bytes"] > 0
    assert found[0][0]["base_loss"] == pytest.approx(found[1][0]["base_loss"], rel=1e-5)
    assert found[0][-1]["loss"] != found[0][-1]["base_loss"]


def test_a_kind_that_this_lycoris_gets_wrong_is_refused(train, monkeypatch):
    monkeypatch.setattr(lycoris_kinds, "installed_version", lambda: 3)
    with pytest.raises(InputError, match="boft needs LyCORIS 4"):
        train("boft", rank=8)


@pytest.mark.parametrize("kind", ["lora", *WHOLE])
def test_resumes_to_the_same_bytes(train, monkeypatch, kind):
    more = {"conv_rank": 4, "rslora": True, "lora_plus": 4} if kind == "lora" else {}
    blocks = {name: 0 for name in BLOCKS if name not in ("mid", "text")}  # few layers are quick, and enough
    whole, broken = killed_and_resumed(train, monkeypatch, kind, rank=8, dropout=0.1, block_ranks=blocks, **more)
    assert (whole / "zog.safetensors").read_bytes() == (broken / "zog.safetensors").read_bytes()


def test_goes_on_from_a_file(train):
    code, first = train("lokr")
    assert code == 0
    code, second = train("lokr", folder="more", init_from=str(first / "zog.safetensors"), learning_rate=0.0,
                         text_encoder_lr=0.0)  # fmt: skip
    assert code == 0
    one, other = (load(folder / "zog.safetensors")[0] for folder in (first, second))
    assert all(torch.equal(one[name], other[name]) for name in one)
    with pytest.raises(InputError, match="does not fit this run"):
        train("loha", folder="other", init_from=str(first / "zog.safetensors"))


@pytest.mark.parametrize(
    ("changes", "field"), [({"file_format": "peft"}, "file_format"), ({"base_dtype": "fp8"}, "base_dtype")]
)
def test_refusals(changes, field):
    with pytest.raises(InputError, match=field):
        spec.parse({"base": "b", "data": "d", "name": "zog", "steps": 1, "kind": "loha", **changes})
