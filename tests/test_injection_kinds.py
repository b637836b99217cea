"""Every kind of adapter agrees with an independent formula in float64 and with LyCORIS and PEFT themselves."""

from __future__ import annotations

import contextlib
import io

import pytest
import torch
from injection_helpers import CASES, NEEDS_HALF, delta, make_layer, make_params, with_delta
from torch import nn

from extension.injection.bank import SiteBank, SiteMix
from extension.injection.kinds import Mismatch, build_terms
from extension.injection.layer import Layer
from extension.injection.weights import StepWeights
from trainers.formats.sites import Site

SITE = Site("lora_unet_x", "unet", "x", "x", "linear")


def one(params, layer, scale=1.0):
    """A bank with one adapter, and what it makes of an input at this weight."""
    live = Layer(layer)
    mix = SiteMix(
        SiteBank(SITE, live, [(0, t) for t in build_terms(params, live)]), 1, lambda a: [(0, 1.0, None)], print
    )
    return lambda x: mix.add(x, layer(x), StepWeights([scale]))


def close(got, expected, tolerance):
    error = (got.double() - expected).abs().max() / expected.abs().max()
    assert error < tolerance, float(error)


@pytest.mark.parametrize("scale", [1.0, -0.7])
@pytest.mark.parametrize(("kind", "where"), CASES)
def test_agrees_with_the_formula(kind, where, scale):
    layer, x = make_layer(where)
    params = make_params(kind, tuple(layer.weight.shape))
    change = delta(params, layer.weight)
    assert change[0].abs().max() > 0.01
    # OFT, DoRA and products of factors are formed once, in float32 at least
    close(one(params, layer, scale)(x), with_delta(layer, x, [(scale, *change)]), 1e-6)


@pytest.mark.parametrize("dtype", [pytest.param(torch.float16, marks=NEEDS_HALF), torch.bfloat16])
@pytest.mark.parametrize(("kind", "where"), CASES)
def test_half_precision(kind, where, dtype):
    layer, x = make_layer(where, dtype=dtype)
    params = make_params(kind, tuple(layer.weight.shape))
    expected = with_delta(layer, x, [(0.8, *delta(params, layer.weight.double()))])
    # In bfloat16 even the frozen layer's output is off by 2^-9; the sum of a few such roundings is allowed.
    close(one(params, layer, 0.8)(x), expected, 6 * torch.finfo(dtype).eps)


@pytest.mark.parametrize(("kind", "where"), CASES)
def test_merged_weight_is_the_same_change(kind, where):
    layer, _ = make_layer(where)
    params = make_params(kind, tuple(layer.weight.shape))
    live = Layer(layer)
    weight, bias = layer.weight.clone(), layer.bias.clone()
    for term in build_terms(params, live):
        t = {name: value.double() for name, value in term.tensors.items()}
        weight += term.scale * term.delta_weight(layer.weight, t)
        change = term.delta_bias(t)
        bias += 0 if change is None else term.scale * change
    expected, expected_bias = delta(params, layer.weight)
    close(weight, layer.weight + expected, 1e-6)
    close(bias, layer.bias + (0 if expected_bias is None else expected_bias), 1e-6)


LYCORIS = {
    "lora": ("LoConModule", {}),
    "tucker": ("LoConModule", {"use_tucker": True}),
    "loha": ("LohaModule", {}),
    "loha tucker": ("LohaModule", {"use_tucker": True}),
    "lokr": ("LokrModule", {"full_matrix": True, "factor": 4}),
    "lokr factored": ("LokrModule", {"factor": 4}),
    "dora out": ("LoConModule", {"weight_decompose": True, "wd_on_out": True}),
    "dora in": ("LoConModule", {"weight_decompose": True, "wd_on_out": False}),
    "doha": ("LohaModule", {"weight_decompose": True}),
    "dokr": ("LokrModule", {"weight_decompose": True, "factor": 4, "full_matrix": True}),
    "oft": ("DiagOFTModule", {"constraint": 0.01}),
    "oft rescaled": ("DiagOFTModule", {"rescaled": True}),
    "boft": ("ButterflyOFTModule", {"rescaled": True}),
    "ia3 out": ("IA3Module", {}),
    "ia3 in": ("IA3Module", {"train_on_input": True}),
    "glora": ("GLoRAModule", {}),
    "norm": ("NormModule", {}),
}
LYCORIS_CASES = [
    (kind, where)
    for kind in LYCORIS
    for where in (("layer_norm", "group_norm") if kind == "norm" else ("linear", "conv3x3"))
    if "tucker" not in kind or where == "conv3x3"
]


def lycoris_module(kind, layer):
    modules = pytest.importorskip("lycoris.modules")
    name, options = LYCORIS[kind]
    found = getattr(modules, name, None) or getattr(modules.boft, name)
    with contextlib.redirect_stdout(io.StringIO()):
        made = found("x", layer, 1.0, lora_dim=6 if kind == "boft" else 4, alpha=2.0, **options)
    torch.manual_seed(5)
    for parameter_name, parameter in made.named_parameters():
        noise = torch.randn(parameter.shape) * 0.3
        near_one = parameter_name in ("dora_scale", "rescale")
        parameter.data = noise.abs() + 1 if near_one else noise
    return made


@pytest.mark.parametrize(("kind", "where"), LYCORIS_CASES)
def test_agrees_with_lycoris(kind, where):
    layer, x = make_layer(where, dtype=torch.float32)
    module = lycoris_module(kind, layer)
    state = (
        {key.removesuffix(".weight") if "." in key else key: v for key, v in module.custom_state_dict().items()}
        if module.custom_state_dict() is not None
        else dict(module.state_dict())
    )
    params = {key: value.detach().clone() for key, value in state.items() if key != "scalar"}
    with torch.no_grad():
        expected = module.bypass_forward(x) if kind.startswith("lokr") else module(x)
    close(one(params, layer)(x), expected.double(), 1e-5)


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("where", ["linear", "conv3x3"])
def test_agrees_with_peft(where, dora):
    peft = pytest.importorskip("peft")
    layer, x = make_layer(where, dtype=torch.float32)
    model = nn.Sequential(layer)
    config = peft.LoraConfig(r=4, lora_alpha=2, target_modules=["0"], use_dora=dora, init_lora_weights=False)
    wrapped = peft.get_peft_model(model, config).eval()
    state = peft.get_peft_model_state_dict(wrapped)
    renamed = {"lora_A.weight": "lora_down", "lora_B.weight": "lora_up", "lora_magnitude_vector": "dora_scale"}
    params = {renamed[key.partition(".0.")[2]]: value.detach().clone() for key, value in state.items()}
    params["alpha"] = torch.tensor(2.0)
    if dora:
        params["dora_scale"] = params["dora_scale"] * 1.1
        for name, parameter in wrapped.named_parameters():
            if "magnitude" in name:
                parameter.data *= 1.1
    with torch.no_grad():
        expected = wrapped(x)
    close(one(params, layer)(x), expected.double(), 1e-5)


def test_glora_of_older_files_is_told_apart():
    layer, x = make_layer("linear")
    params = make_params("glora", (48, 32))
    older = {"a1": params["a2"], "a2": params["a1"], "b1": params["b2"], "b2": params["b1"], "alpha": params["alpha"]}
    close(one(older, layer)(x), with_delta(layer, x, [(1.0, *delta(params, layer.weight))]), 1e-6)


def test_alpha_zero_and_absent_mean_rank():
    layer, x = make_layer("linear")
    params = make_params("lora", (48, 32))
    results = [one({**params, "alpha": torch.tensor(value)}, layer)(x) for value in (4.0, 0.0)]
    del params["alpha"]
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], one(params, layer)(x))


def test_linear_tensors_on_a_1x1_convolution_and_the_other_way_round():
    conv, x = make_layer("conv1x1")
    params = make_params("lora", (48, 32))
    change = delta(params, conv.weight.flatten(1))[0].reshape(conv.weight.shape)
    close(one(params, conv)(x), with_delta(conv, x, [(1.0, change, None)]), 1e-12)
    linear, x = make_layer("linear")
    params = make_params("lora", (48, 32, 1, 1))
    close(one(params, linear)(x), with_delta(linear, x, [(1.0, delta(params, linear.weight)[0], None)]), 1e-12)


def test_quantized_weight_is_found_by_asking_the_layer():
    class Quantized(nn.Linear):
        """Keeps codes instead of a weight, as 8 bit layers do."""

        def __init__(self, source):
            super().__init__(source.in_features, source.out_features)
            self.scale = source.weight.abs().max() / 127
            codes = (source.weight / self.scale).round().to(torch.int8)
            self.weight = nn.Parameter(codes, requires_grad=False)
            self.bias = source.bias

        def forward(self, x):
            return torch.nn.functional.linear(x, self.weight.to(x.dtype) * self.scale.to(x.dtype), self.bias)

    source, x = make_layer("linear")
    layer = Quantized(source)
    plain = nn.Linear(32, 48).double()
    plain.weight.data, plain.bias.data = layer.weight.double() * layer.scale, layer.bias
    for kind in ("dora out", "dora in", "ia3 in", "glora", "oft"):
        params = make_params(kind, (48, 32))
        expected = with_delta(plain, x, [(1.0, *delta(params, plain.weight.detach()))])
        close(one(params, layer)(x), expected.detach(), 1e-5)


@pytest.mark.skipif(not hasattr(torch, "float8_e4m3fn"), reason="this torch has no float8")
@pytest.mark.parametrize("kind", ["lora", "loha", "dora out", "dora in", "ia3 in", "glora", "oft", "full"])
def test_fp8_stored_base(kind):
    class Stored(nn.Linear):
        def forward(self, x):
            return torch.nn.functional.linear(x, self.weight.to(x.dtype), self.bias)

    source, x = make_layer("linear", dtype=torch.float32)
    layer = Stored(32, 48).requires_grad_(False)
    layer.weight.data, layer.bias.data = source.weight.to(torch.float8_e4m3fn), source.bias
    source.weight.data = layer.weight.float()
    params = make_params(kind, (48, 32))
    expected = with_delta(source, x, [(1.0, *delta(params, source.weight.double()))])
    before = layer.weight.clone().view(torch.uint8)
    close(one(params, layer)(x), expected, 1e-5)
    assert torch.equal(before, layer.weight.view(torch.uint8)) and layer.weight.dtype == torch.float8_e4m3fn


def test_dora_follows_a_base_whose_values_change_in_place():
    layer, x = make_layer("linear")
    params = make_params("dora out", (48, 32))
    apply = one(params, layer)
    apply(x)
    with torch.no_grad():
        layer.weight.copy_(layer.weight * 2 + 0.1)
    close(apply(x), with_delta(layer, x, [(1.0, *delta(params, layer.weight))]), 1e-6)


@pytest.mark.parametrize("kind", ["lora", "loha", "lokr", "dora out", "oft", "boft", "ia3 out", "glora", "full"])
def test_tensors_that_do_not_fit_are_refused(kind):
    layer, _ = make_layer("linear")
    with pytest.raises(Mismatch):
        build_terms(make_params(kind, (80, 32) if kind != "lokr" else (48, 80)), Layer(layer))
    with pytest.raises(Mismatch):
        build_terms(make_params(kind, (48, 32)), Layer(nn.LayerNorm(48)))


def test_unknown_parts_are_refused():
    with pytest.raises(Mismatch, match="not known"):
        build_terms({"mystery": torch.zeros(3)}, Layer(nn.Linear(2, 2)))


def test_convolution_with_circular_padding():
    layer, x = make_layer("conv3x3")
    layer.padding_mode = "circular"
    params = make_params("lora", tuple(layer.weight.shape))
    close(one(params, layer)(x), with_delta(layer, x, [(1.0, *delta(params, layer.weight))]), 1e-12)
