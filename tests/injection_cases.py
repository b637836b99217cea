"""Whole models with adapters, for the tests that inject into them; fixtures are imported by name."""

from __future__ import annotations

import copy
import hashlib

import pytest
import torch
from injection_helpers import delta, write_adapter
from injection_models import random_lora, unet_inputs
from tiny_models import tiny_modules

from extension.injection import AdapterFiles, Injection
from trainers.formats import adapters, safetensors_io
from trainers.formats.families import FAMILIES
from trainers.formats.layer_names import layers

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def models():
    made = {}

    def get(family):
        if family not in made:
            made[family] = tiny_modules(family)
        return made[family]

    return get


@pytest.fixture
def files():
    return AdapterFiles()


def parts_of(model):
    names = ("text_encoder", "text_encoder_2")
    return {"unet": model.unet, **dict(zip(names, model.text_encoders, strict=False))}


def checksum(*modules):
    digest = hashlib.sha256()
    for module in modules:
        for name, tensor in sorted(module.state_dict().items()):
            digest.update(name.encode() + tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def traces(*roots):
    """Whatever hooks and instance attributes are on these models."""
    found = []
    for root in roots:
        for name, module in root.named_modules():
            found += [(name, key) for key in module.__dict__ if key == "forward"]
            for table in ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs"):
                found += [(name, table)] * len(module.__dict__[table])
    return found


def draw(model):
    """The UNet's and the text encoders' outputs for fixed inputs."""
    with torch.no_grad():
        side = 8 if model.family.name == "sdxl" else 16
        unet = model.unet(**unet_inputs(model, side=side)).sample
        text = [encoder(torch.arange(77)[None]).last_hidden_state for encoder in model.text_encoders]
    return [unet, *text]


def merged(model, entries, family, weight=1.0):
    """A copy of the model with the reference formula merged into its weights."""
    out = copy.deepcopy(model)
    parts = parts_of(out)
    by_name = {site.name: site for site in layers(FAMILIES[family])}
    for name, params in entries.items():
        site = by_name[name]
        path = site.path
        root = parts[site.component]
        if site.component != "unet" and not hasattr(root, "text_model"):
            path = path.removeprefix("text_model.")
        module = root.get_submodule(path)
        change, bias = delta(params, module.weight.double())
        module.weight.data += (weight * change.reshape(module.weight.shape)).float()
        if bias is not None:
            module.bias.data += (weight * bias).float()
    return out


def assert_near(got, expected, tolerance=2e-5):
    for one, other in zip(got, expected, strict=True):
        assert (one - other).abs().max() < tolerance * max(1.0, float(other.abs().max()))


def written(path, family, entries, naming):
    """The same adapter in one of the namings files use."""
    table = FAMILIES[family]
    if naming == "kohya":
        return write_adapter(path, entries)
    plain = {n: {p: (float(v) if p == "alpha" else v.float()) for p, v in e.items()} for n, e in entries.items()}
    if naming == "diffusers":
        tensors, metadata = adapters.to_diffusers(table, plain)
        safetensors_io.save(path, tensors, metadata)
    else:
        by_name = {site.name: site for site in layers(table)}
        flat = {n: by_name[n].path if family == "sdxl" else by_name[n].ldm_path for n in entries}
        other = {("lora_unet_" + flat[n].replace(".", "_") if "unet" in n else n): e for n, e in entries.items()}
        return write_adapter(path, other)
    return path


@pytest.fixture
def setup(models, files, tmp_path):
    """A model, an injection, and two adapters' uses."""
    model = models("sd1")
    entries = random_lora(model, "sd1")
    one = write_adapter(tmp_path / "one.safetensors", entries)
    other = write_adapter(tmp_path / "other.safetensors", random_lora(model, "sd1", seed=9))
    return model, Injection("sd1", parts_of(model)), files.get(one), files.get(other)
