"""Frozen layers: the same numbers as plain ones, with less held until the backward pass."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from trainers.engine.frozen import (
    FP8,
    FrozenConv2d,
    FrozenLinear,
    check_fp8,
    freeze_module_weights,
    quantize,
    recast,
)
from trainers.errors import InputError

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
STORED = [FP8, BF16, FP16, FP32]
# One rounding of the output in each format, and some more for the order of the sums.
TOLERANCE = {FP32: 2e-6, BF16: 1.5e-2, torch.float64: 1e-12}


def _frozen(layer):
    return layer.requires_grad_(False)


LAYERS = {
    "linear": lambda: nn.Linear(48, 24),
    "linear without bias": lambda: nn.Linear(48, 24, bias=False),
    "conv 3x3": lambda: nn.Conv2d(8, 12, 3, padding=1),
    "conv 1x1": lambda: nn.Conv2d(8, 12, 1, bias=False),
    "strided, dilated, grouped": lambda: nn.Conv2d(8, 12, 3, stride=2, padding=2, dilation=2, groups=4),
    "uneven stride": lambda: nn.Conv2d(8, 12, (3, 2), stride=(3, 2), padding=(0, 1)),
    "same": lambda: nn.Conv2d(8, 12, (4, 3), padding="same"),
    "reflected": lambda: nn.Conv2d(8, 12, 3, padding=1, padding_mode="reflect"),
}


def _input(layer, dtype):
    g = torch.Generator().manual_seed(1)
    shape = (2, 7, 48) if isinstance(layer, nn.Linear) else (2, 8, 11, 10)
    return torch.randn(shape, generator=g).to(dtype).requires_grad_()


def _values(layer):
    """What the frozen layer's weight stands for, in float64."""
    return recast(layer.weight, layer.weight_scale, torch.float64)


def _relative(a, b):
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("compute", [FP32, BF16])
def test_outputs_and_gradients_are_the_plain_layers(name, stored, compute):
    torch.manual_seed(0)
    layer = _frozen(LAYERS[name]())
    plain = copy.deepcopy(layer).double()
    if stored == compute:
        layer = layer.to(FP16 if stored == BF16 else BF16)  # so that there is something to do
    freeze_module_weights(layer, stored, compute)
    assert isinstance(layer, (FrozenLinear, FrozenConv2d) if stored != compute else (nn.Linear, nn.Conv2d))
    if stored != compute:
        assert layer.weight.dtype == stored
        plain.weight.data.copy_(_values(layer))
    else:
        plain.weight.data.copy_(layer.weight)
    if layer.bias is not None:
        plain.bias.data.copy_(layer.bias)
    x = _input(layer, compute)
    reference = x.detach().double().requires_grad_()
    out, wanted = layer(x), plain(reference)
    g = torch.Generator().manual_seed(2)
    gradient = torch.randn(wanted.shape, generator=g).to(compute)
    out.backward(gradient)
    wanted.backward(gradient.double())
    assert out.dtype == compute
    assert x.grad.dtype == compute
    assert _relative(out, wanted) < TOLERANCE[compute]
    assert _relative(x.grad, reference.grad) < TOLERANCE[compute]


@pytest.mark.parametrize("name", ["linear", "conv 3x3", "strided, dilated, grouped"])
def test_gradients_pass_gradcheck(name):
    torch.manual_seed(0)
    layer = _frozen(LAYERS[name]())
    freeze_module_weights(layer, BF16, torch.float64)
    small = torch.randn((2, 48) if name == "linear" else (1, 8, 5, 5), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (small,))


def test_eight_bits_keep_the_quality_that_is_claimed():
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(400, 400, generator=g) * 0.03
    assert _relative(recast(*quantize(weight), FP32), weight) == pytest.approx(0.027, abs=0.001)
    thin = weight / 6  # a standard deviation of 0.005
    assert _relative(recast(*quantize(thin), FP32), thin) == pytest.approx(0.027, abs=0.001)
    assert _relative(thin.to(FP8), thin) == pytest.approx(0.11, abs=0.01)
    weight[::100] *= 1e5
    values, scale = quantize(weight)
    assert values.dtype == FP8
    ordinary = torch.arange(400) % 100 != 0
    assert _relative(recast(values, scale, FP32)[ordinary], weight[ordinary]) < 0.028
    assert torch.equal(torch.exp2(torch.log2(scale)), scale)  # powers of two
    for dtype in (BF16, FP16):
        assert torch.equal(recast(values, scale, dtype).float(), recast(values, scale, FP32))


def test_every_eight_bit_value_is_cast_as_torch_casts_it():
    values = torch.arange(256, dtype=torch.int16).to(torch.uint8).view(FP8)[None]
    wanted = values.float()
    usual = wanted.isfinite()  # quantize never makes the two NaN
    scale = torch.tensor([[2.0**-7]])
    for dtype in (BF16, FP16, FP32, torch.float64):
        assert torch.equal(recast(values, scale, dtype)[usual], (wanted[usual] * 2.0**-7).to(dtype))


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-6, 1.0, 447.9, 448.0, 1e4, 1e30])
def test_eight_bits_bear_every_size(size):
    weight = torch.linspace(-1, 1, 64).view(2, 32) * size
    values, scale = quantize(weight)
    back = recast(values, scale, FP32)
    assert back.isfinite().all()
    assert (back - weight).abs().max() <= max(size * 0.0625, 2.0**-33)


def _held_bytes(run):
    """Bytes that autograd keeps for the backward pass of `run()`, each storage once."""
    seen = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = run()
    return sum(seen.values()), out


def _block(bias=False):
    torch.manual_seed(0)
    return _frozen(nn.Sequential(*[nn.Linear(256, 256, bias=bias) for _ in range(4)]))


def test_the_backward_pass_holds_only_the_stored_weights():
    weights = 4 * 256 * 256
    x = torch.randn(2, 256, requires_grad=True)
    plain, mixed, small = _block(), _block(), _block()

    def autocast(module):
        with torch.autocast("cpu", BF16):
            return module(x)

    held, _ = _held_bytes(lambda: autocast(plain))
    assert held >= 2 * weights  # a bfloat16 copy of every weight, beside the float32 ones
    freeze_module_weights(mixed, None, BF16)
    held, _ = _held_bytes(lambda: autocast(mixed))
    assert held == 4 * weights  # these are the weights themselves
    assert {p.untyped_storage().data_ptr() for p in mixed.parameters()} == _held_pointers(lambda: autocast(mixed))
    freeze_module_weights(small, FP8, BF16)
    held, out = _held_bytes(lambda: autocast(small))
    assert held == weights
    out.sum().backward()
    assert x.grad is not None

    naive = [p.detach().to(FP8) for p in _block().parameters()]

    def cast_on_the_fly():
        y = x.to(BF16)
        for weight in naive:
            y = torch.nn.functional.linear(y, weight.to(BF16))
        return y

    held, _ = _held_bytes(cast_on_the_fly)
    assert held >= 2 * weights  # what storing 8 bits costs without these layers


def _held_pointers(run):
    pointers = set()

    def pack(tensor):
        pointers.add(tensor.untyped_storage().data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return pointers


@pytest.mark.parametrize("stored", [FP8, None])
def test_under_checkpointing_and_autocast(stored):
    block = _block(bias=True)
    freeze_module_weights(block, stored, BF16)
    grads = []
    for again in (False, True):
        x = torch.randn(3, 256, generator=torch.Generator().manual_seed(4), requires_grad=True)
        with torch.autocast("cpu", BF16):
            out = checkpoint(block, x, use_reentrant=False) if again else block(x)
            loss = out.float().square().mean()
        loss.backward()
        grads.append(x.grad)
    assert torch.equal(*grads)


def test_inside_peft_layers():
    from peft import LoraConfig, inject_adapter_in_model

    torch.manual_seed(0)
    model = nn.ModuleDict({"a": nn.Linear(32, 32), "b": nn.Conv2d(32, 32, 3, padding=1), "c": nn.Linear(32, 8)})
    _frozen(model)
    model = inject_adapter_in_model(LoraConfig(r=4, target_modules=["a", "b"], init_lora_weights=False), model)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters() if "lora_" in name}
    done = freeze_module_weights(model, FP8, FP32)
    assert done.layers == 3
    assert done.bytes_after < 0.3 * done.bytes_before
    assert isinstance(model["a"].base_layer, FrozenLinear) and isinstance(model["a"].base_layer, nn.Linear)
    assert isinstance(model["b"].base_layer, FrozenConv2d)
    assert type(model["a"].lora_A["default"]) is nn.Linear
    x = torch.randn(1, 32, 4, 4, requires_grad=True)
    y = model["c"](model["a"](model["b"](x).flatten(2).transpose(1, 2)))
    y.square().sum().backward()
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert set(trained) == set(before)
    assert all(parameter.grad.abs().sum() > 0 for parameter in trained.values())
    assert all(torch.equal(parameter, before[name]) for name, parameter in trained.items())
    assert x.grad.isfinite().all()


def test_nothing_changes_where_nothing_is_to_do():
    block = _block()
    weights = [layer.weight for layer in block]
    for storage, compute in ((FP32, FP32), (None, None), (None, FP32), (FP32, None)):
        assert freeze_module_weights(block, storage, compute).layers == 0
    assert all(
        type(layer) is nn.Linear and layer.weight is weight for layer, weight in zip(block, weights, strict=True)
    )


def test_sensitive_layers_and_trained_layers_are_left_out():
    model = nn.ModuleDict({"conv_in": nn.Conv2d(4, 8, 3), "inner": nn.Linear(8, 8), "trained": nn.Linear(8, 8)})
    _frozen(model)
    model["trained"].requires_grad_(True)
    freeze_module_weights(model, FP8, BF16)
    assert model["conv_in"].weight.dtype == BF16
    assert model["inner"].weight.dtype == FP8
    assert type(model["trained"]) is nn.Linear and model["trained"].weight.dtype == FP32


def test_shared_and_inference_tensors():
    """Weights handed over by a host may be inference tensors, which autograd refuses to save."""
    with torch.inference_mode():
        model = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.Conv2d(8, 8, 1))
    _frozen(model)
    pointers = [model[i].weight.data_ptr() for i in (0, 2)]
    kept = [model[i].weight.clone() for i in (0, 2)]
    x = torch.randn(1, 8, 4, 4, requires_grad=True)
    freeze_module_weights(model, None, None)
    model(x).sum().backward()
    assert x.grad.abs().sum() > 0
    assert [model[i].weight.data_ptr() for i in (0, 2)] == pointers  # not copied
    assert all(torch.equal(model[i].weight, then) for i, then in zip((0, 2), kept, strict=True))  # not written


def test_moving_a_model_keeps_the_stored_format():
    layer = _frozen(nn.Linear(16, 16))
    freeze_module_weights(layer, FP8, BF16)
    values, scale = layer.weight.detach().clone(), layer.weight_scale.clone()
    for move in (lambda: layer.to(FP16), layer.float, layer.double, lambda: layer.to("cpu")):
        move()
        assert layer.weight.dtype == FP8 and layer.weight_scale.dtype == FP32
        assert torch.equal(layer.weight.float(), values.float())
        assert torch.equal(layer.weight_scale, scale)
    assert not layer.weight.requires_grad


def test_a_machine_without_eight_bit_floats_is_told(monkeypatch):
    check_fp8()
    monkeypatch.setattr("trainers.engine.frozen.FP8", None)
    with pytest.raises(InputError, match="base_dtype"):
        check_fp8()
