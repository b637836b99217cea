"""Schedules, optimizers, the running average, device and number format."""

from __future__ import annotations

import io
import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainers.engine import lr_schedules, optimizers, precision
from trainers.engine.ema import Ema
from trainers.engine.lion import Lion
from trainers.errors import InputError


def _job(optimizer="adamw", arguments=(), **values):
    defaults = {
        "method": "lora", "optimizer": optimizer, "optimizer_args": list(arguments), "weight_decay": 0.01,
        "learning_rate": None, "text_encoder_lr": None, "schedule": "cosine",
    }  # fmt: skip
    return SimpleNamespace(**{**defaults, **values})


# --- schedules


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine"])
def test_without_warmup_the_schedules_are_transformers_own(kind):
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = get_scheduler(kind, optimizer, num_warmup_steps=0, num_training_steps=40)
    for step in range(40):
        assert lr_schedules.factor(step, 40, kind) == pytest.approx(theirs.get_last_lr()[0], abs=1e-9)
        optimizer.step()
        theirs.step()


@settings(max_examples=100, deadline=None)
@given(
    kind=st.sampled_from(lr_schedules.KINDS), total=st.integers(1, 500), warmup=st.integers(0, 600),
    cycles=st.integers(1, 20), data=st.data(),
)  # fmt: skip
def test_factors_stay_between_zero_and_one(kind, total, warmup, cycles, data):
    step = data.draw(st.integers(0, total))
    value = lr_schedules.factor(step, total, kind, warmup, cycles)
    assert 0.0 <= value <= 1.0
    if step < total:
        assert value > 0.0
    if step == warmup < total:
        assert value == 1.0


def test_restarts_and_warmup():
    values = [lr_schedules.factor(step, 90, "cosine_restarts", cycles=3) for step in range(90)]
    assert [values[i] for i in (0, 30, 60)] == pytest.approx([1.0, 1.0, 1.0])
    assert values[29] < 0.01
    assert lr_schedules.factor(0, 100, "cosine", warmup=9) == pytest.approx(0.1)
    assert lr_schedules.factor(50, 100, "polynomial") == pytest.approx(0.25)
    with pytest.raises(ValueError, match="schedule"):
        lr_schedules.factor(0, 1, "cosinus")


def test_schedulefree_is_not_scheduled_down():
    assert lr_schedules.kind_for(_job("schedulefree")) == "constant"
    assert lr_schedules.kind_for(_job("adamw")) == "cosine"


# --- optimizers

AVAILABLE = ["adamw", "prodigy", "adafactor", "lion", "schedulefree"]


def _model(seed=0):
    g = torch.Generator().manual_seed(seed)
    return [
        torch.nn.Parameter(torch.randn(4, 12, generator=g)),
        torch.nn.Parameter(torch.zeros(10, 4)),
        torch.nn.Parameter(torch.randn(3, 2, 3, 3, generator=g)),
    ]


def _groups(parameters, rate):
    return [{"params": parameters[:2], "lr": rate, "name": "unet"}, {"params": parameters[2:], "lr": rate}]


def _step(optimizer, parameters, step):
    g = torch.Generator().manual_seed(100 + step)
    for parameter in parameters:
        parameter.grad = parameter.detach() * 0.1 + torch.randn(parameter.shape, generator=g)
    optimizers.set_rates(optimizer, [group["base"] for group in optimizer.param_groups], 1.0 - step / 20)
    optimizer.step()


def _start(name):
    parameters = _model()
    groups = _groups(parameters, optimizers.default_learning_rate(_job(name), "sd1"))
    groups = [{**group, "base": group["lr"]} for group in groups]
    return parameters, optimizers.make_optimizer(groups, _job(name))


@pytest.mark.parametrize("name", AVAILABLE)
def test_resumed_steps_are_bit_equal(name):
    parameters, optimizer = _start(name)
    for step in range(5):
        _step(optimizer, parameters, step)
    first, optimizer = _start(name)
    for step in range(3):
        _step(optimizer, first, step)
    file = io.BytesIO()
    torch.save({"weights": first, "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    second, optimizer = _start(name)
    with torch.no_grad():
        for parameter, value in zip(second, saved["weights"], strict=True):
            parameter.copy_(value)
    optimizer.load_state_dict(saved["optimizer"])
    for step in (3, 4):
        _step(optimizer, second, step)
    assert all(torch.equal(a, b) for a, b in zip(parameters, second, strict=True))
    assert not torch.equal(parameters[0], first[0])


@pytest.mark.parametrize("name", AVAILABLE)
def test_every_optimizer_finds_a_minimum(name):
    parameter = torch.nn.Parameter(torch.full((4, 4), 2.0))
    arguments = ["d0=1e-3"] if name == "prodigy" else []
    rate = 1.0 if name == "prodigy" else 0.05
    job = _job(name, arguments, weight_decay=0.0)
    optimizer = optimizers.make_optimizer([{"params": [parameter], "lr": rate}], job)
    for _ in range(300):
        optimizer.zero_grad()
        (parameter - 1.0).square().sum().backward()
        optimizer.step()
    with optimizers.evaluation_weights(optimizer):
        assert (parameter - 1.0).abs().max() < 0.1


@pytest.mark.parametrize("name", AVAILABLE)
def test_looking_at_the_evaluation_weights_changes_nothing(name):
    plain, looked = (_start(name) for _ in range(2))
    for step in range(4):
        _step(plain[1], plain[0], step)
        _step(looked[1], looked[0], step)
        with optimizers.evaluation_weights(looked[1]):
            pass
    assert all(torch.equal(a, b) for a, b in zip(plain[0], looked[0], strict=True))


def test_schedulefree_evaluates_its_average():
    parameters, optimizer = _start("schedulefree")
    for step in range(4):
        _step(optimizer, parameters, step)
    with optimizers.evaluation_weights(optimizer, parameters[:1]):
        ours = [parameter.detach().clone() for parameter in parameters]
    training = [parameter.detach().clone() for parameter in parameters]
    optimizer.eval()
    torch.testing.assert_close(ours[0], parameters[0].detach())
    assert not torch.equal(ours[0], training[0])
    assert torch.equal(ours[1], training[1])  # not asked for


def test_evaluation_weights_come_back_after_an_error():
    parameters, optimizer = _start("schedulefree")
    _step(optimizer, parameters, 0)
    _step(optimizer, parameters, 1)
    before = [parameter.detach().clone() for parameter in parameters]
    with pytest.raises(RuntimeError), optimizers.evaluation_weights(optimizer):
        raise RuntimeError
    assert all(torch.equal(a, b) for a, b in zip(before, parameters, strict=True))


def test_lion_against_its_formula():
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))
    optimizer = Lion([weight], lr=0.1, betas=(0.9, 0.99), weight_decay=0.5)
    w, m = weight.detach().double().clone(), torch.zeros(3, dtype=torch.float64)
    for gradient in ([1.0, -1.0, 0.5], [-3.0, 0.2, 0.5], [0.1, 0.1, -9.0]):
        g = torch.tensor(gradient, dtype=torch.float64)
        w = w - 0.1 * ((0.9 * m + 0.1 * g).sign() + 0.5 * w)
        m = 0.99 * m + 0.01 * g
        weight.grad = g.float()
        optimizer.step()
    torch.testing.assert_close(weight.detach().double(), w, rtol=1e-6, atol=1e-6)


def test_default_rates():
    rate = optimizers.default_learning_rate
    assert rate(_job("adamw"), "sd1") == 2 * rate(_job("adamw"), "sdxl")
    assert rate(_job("prodigy"), "sdxl") == 1.0
    assert rate(_job("lion"), "sd1") == pytest.approx(rate(_job("adamw"), "sd1") / 3)
    assert rate(_job("lion", learning_rate=0.5), "sd1") == 0.5
    assert rate(_job("adamw", method="another"), "sd1") > 0
    text = optimizers.default_text_encoder_lr
    assert text(_job("adamw"), "sd1") == rate(_job("adamw"), "sd1") / 4
    assert text(_job("prodigy"), "sd1") == 1.0
    assert text(_job("adamw", text_encoder_lr=0.0), "sd1") == 0.0


def test_arguments_are_converted_and_used():
    parameters = _model()
    arguments = ["betas=0.8, 0.9", "eps=1e-6", "amsgrad=True"]
    group = optimizers.make_optimizer(_groups(parameters, 0.1), _job("adamw", arguments)).param_groups[0]
    assert (group["betas"], group["eps"], group["amsgrad"]) == ((0.8, 0.9), 1e-6, True)
    assert (group["weight_decay"], group["name"]) == (0.01, "unet")
    arguments = ["scale_parameter=true", "beta1=0.9", "eps=(1e-20, 1e-2)"]
    group = optimizers.make_optimizer(_groups(parameters, 0.1), _job("adafactor", arguments)).param_groups[0]
    assert (group["scale_parameter"], group["beta1"], group["eps"]) == (True, 0.9, (1e-20, 1e-2))


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("beta=0.9,0.99", 'Did you mean "betas"'),
        ("betas=0.9", "2 numbers"),
        ("betas=0.9,x", "2 numbers"),
        ("betas=1.5,0.9", "does not take"),
        ("eps=tiny", "a number"),
        ("eps=nan", "a number"),
        ("amsgrad=2", "true or false"),
        ("amsgrad", "name=value"),
        ("=1", "name=value"),
        ("lr=1", "learning_rate"),
        ("weight_decay=1", "option weight_decay"),
        ("eps=__import__('os')", "a number"),
        ("params=1", "no argument"),
    ],
)
def test_wrong_arguments_are_said(argument, said):
    with pytest.raises(InputError, match=None) as error:
        optimizers.make_optimizer(_groups(_model(), 0.1), _job("adamw", [argument]))
    assert said in str(error.value)
    assert "optimizer_args" in str(error.value)


def test_prodigy_takes_one_rate_only(capsys):
    groups = _groups(_model(), 1.0)
    optimizers.make_optimizer(groups, _job("prodigy"))
    assert capsys.readouterr().out == ""
    groups[1]["lr"] = 0.25
    with pytest.raises(InputError, match="same one"):
        optimizers.make_optimizer(groups, _job("prodigy"))


def test_prodigy_shows_its_real_rate():
    parameters, optimizer = _start("prodigy")
    for step in range(3):
        _step(optimizer, parameters, step)
    d = optimizer.param_groups[0]["d"]
    assert optimizers.effective_rates(optimizer)[0] == pytest.approx(d * optimizer.param_groups[0]["lr"])


def test_a_missing_package_is_said(monkeypatch):
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="CUDA"):
            optimizers.check(_job("adamw8bit"))
    monkeypatch.setitem(__import__("sys").modules, "prodigyopt", None)
    with pytest.raises(InputError, match="prodigyopt"):
        optimizers.check(_job("prodigy"))


def test_the_table_matches_the_options():
    from trainers.options import OPTIMIZERS, SCHEDULES

    assert set(OPTIMIZERS) == set(optimizers.OPTIMIZERS)
    assert set(SCHEDULES) == set(lr_schedules.KINDS)


# --- running average


def test_ema_against_its_formula_and_resumes():
    parameters = [torch.nn.Parameter(torch.zeros(3))]
    ema, wanted = Ema(parameters, 0.9), torch.zeros(3, dtype=torch.float64)
    for step in range(1, 30):
        with torch.no_grad():
            parameters[0].fill_(float(step))
        ema.update(parameters)
        decay = min(0.9, step / (9 + step))
        wanted = decay * wanted + (1 - decay) * step
        if step == 10:
            file = io.BytesIO()
            torch.save(ema.state_dict(), file)
            file.seek(0)
            other = Ema(parameters, 0.5)
            other.load_state_dict(torch.load(file, weights_only=True))
        elif step > 10:
            other.update(parameters)
    torch.testing.assert_close(ema.averages[0].double(), wanted, rtol=1e-5, atol=0)
    assert torch.equal(ema.averages[0], other.averages[0])


def test_ema_swap_restores_the_bits():
    parameters = [torch.nn.Parameter(torch.randn(50).to(dtype)) for dtype in (torch.float32, torch.bfloat16)]
    ema = Ema(parameters, 0.9)
    before = [parameter.detach().clone() for parameter in parameters]
    with torch.no_grad():
        for average in ema.averages:
            average.add_(math.pi)
    with pytest.raises(KeyError), ema.averaged(parameters):
        assert all((now - then).abs().min() > 3 for now, then in zip(parameters, before, strict=True))
        raise KeyError
    assert all(torch.equal(now, then) for now, then in zip(parameters, before, strict=True))
    with pytest.raises(ValueError, match="another"):
        ema.load_state_dict({"decay": 0.9, "updates": 1, "averages": [torch.zeros(2)] * 2})


# --- device and number format


def test_devices():
    assert precision.device_for("cpu") == torch.device("cpu")
    assert precision.device_for("auto").type in precision.DEVICE_TYPES
    for wrong in ("gpu", "cuda:x", "cuda:", "", "cup"):
        if wrong == "cuda:" and torch.cuda.is_available():
            continue
        with pytest.raises(InputError, match="device"):
            precision.device_for(wrong)
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="cuda"):
            precision.device_for("cuda")
    with pytest.raises(InputError, match="cpu:3"):
        precision.device_for("cpu:3")


def test_number_formats():
    cpu = torch.device("cpu")
    assert precision.resolve("auto", cpu) == torch.float32
    assert precision.resolve("bf16", cpu) == torch.bfloat16
    with pytest.raises(InputError, match="fp16"):
        precision.resolve("fp16", cpu)
    assert precision.resolve("auto", torch.device("mps")) == torch.float32
    assert precision.needs_loss_scaling(torch.float16)
    assert not precision.needs_loss_scaling(torch.bfloat16)
    assert precision.loss_scaler(torch.bfloat16, cpu) is None
    assert precision.loss_scaler(torch.float16, cpu).state_dict() is not None
    assert [precision.name_of(precision.DTYPES[name]) for name in precision.DTYPES] == ["fp32", "bf16", "fp16"]
