"""The bank: sums, rows, repeats, steps, number formats; on single layers and through a whole UNet."""

from __future__ import annotations

import pytest
import torch
from injection_helpers import NEEDS_HALF, delta, make_layer, make_params, with_delta, write_adapter
from injection_models import Processing, random_lora, unet_inputs
from tiny_models import tiny_modules
from torch import nn

from extension.injection import AdapterFiles, Injection, Row, Use, Whom, constant_use
from extension.injection.bank import SiteBank, SiteMix
from extension.injection.from_tags import use_of
from extension.injection.kinds import build_terms
from extension.injection.layer import Layer
from extension.injection.scales import step_weights
from extension.injection.weights import StepWeights
from extension.prompt import parse_prompt
from trainers.formats.sites import Site

torch.set_num_threads(1)
SITE = Site("lora_unet_x", "unet", "x", "x", "linear")


def mix_of(layer, adapters, notes=None, ranks=None):
    """One use at weight 1 of each of several adapters on one layer."""
    live = Layer(layer)
    terms = [(index, term) for index, params in enumerate(adapters) for term in build_terms(params, live)]
    note = notes.append if notes is not None else print
    return SiteMix(SiteBank(SITE, live, terms), len(adapters), lambda a: [(a, 1.0, ranks)], note)


def close(got, expected, tolerance=1e-6):
    error = (got.double() - expected).abs().max() / expected.abs().max()
    assert error < tolerance, float(error)


MIXED = {
    "linear": ("lora", "lora", "loha", "lokr", "dora out", "oft", "full"),
    "conv3x3": ("lora", "tucker", "loha, large rank", "lokr tucker", "dora in", "boft", "glora"),
    "layer_norm": ("norm", "norm"),
}


@pytest.mark.parametrize("where", MIXED)
def test_several_equal_the_sum_of_their_deltas(where):
    layer, x = make_layer(where)
    adapters = [make_params(kind, tuple(layer.weight.shape), seed) for seed, kind in enumerate(MIXED[where])]
    weights = [0.7 - 0.3 * index for index in range(len(adapters))]
    expected = [(w, *delta(params, layer.weight)) for w, params in zip(weights, adapters, strict=True)]
    got = mix_of(layer, adapters).add(x, layer(x), StepWeights(weights))
    close(got, with_delta(layer, x, expected))


@pytest.mark.parametrize("where", MIXED)
def test_weight_zero_gives_the_output_itself(where):
    layer, x = make_layer(where)
    mix = mix_of(layer, [make_params(kind, tuple(layer.weight.shape)) for kind in MIXED[where]])
    y = layer(x)
    assert mix.add(x, y, StepWeights([0.0] * len(MIXED[where]))) is y
    assert mix.add(x, y, StepWeights([[0.0] * len(MIXED[where])] * 3, per_row=True)) is y


@pytest.mark.parametrize("repeat", [1, 4])
@pytest.mark.parametrize("where", MIXED)
def test_rows(where, repeat):
    """Each row has its own weights; a layer that sees each row cut into tiles gives all of them the row's weight."""
    layer, x = make_layer(where)
    x = x.repeat_interleave(repeat, 0)
    adapters = [make_params(kind, tuple(layer.weight.shape), seed) for seed, kind in enumerate(MIXED[where])]
    torch.manual_seed(3)
    table = torch.randn(3, len(adapters)).round(decimals=1)
    table[1] = 0
    got = mix_of(layer, adapters).add(x, layer(x), StepWeights(table.tolist(), per_row=True))
    for row in range(3):
        part = slice(row * repeat, (row + 1) * repeat)
        changes = [(float(w), *delta(p, layer.weight)) for w, p in zip(table[row], adapters, strict=True)]
        close(got[part], with_delta(layer, x[part], changes))
    assert torch.equal(got[repeat : 2 * repeat], layer(x)[repeat : 2 * repeat])


def test_rows_that_cannot_be_told_apart_are_reported():
    layer, x = make_layer("linear")
    notes: list[str] = []
    adapters = [make_params("lora", (48, 32), seed) for seed in (1, 2)]
    mix = mix_of(layer, adapters, notes)
    got = mix.add(x, layer(x), StepWeights([[1.0, 0.5], [0.0, 0.5]], per_row=True))
    close(got, with_delta(layer, x, [(0.5, *delta(adapters[1], layer.weight))]))
    assert notes == ["3 rows came where 2 were expected; what is for single rows does nothing there"]


def test_only_the_first_ranks():
    layer, x = make_layer("linear")
    params = make_params("lora", (48, 32))
    got = mix_of(layer, [params], ranks=2).add(x, layer(x), StepWeights([1.0]))
    fewer = {"lora_down": params["lora_down"][:2], "lora_up": params["lora_up"][:, :2], "alpha": params["alpha"] / 2}
    close(got, with_delta(layer, x, [(1.0, *delta(fewer, layer.weight))]))


@pytest.mark.parametrize("where", ["linear", "conv1x1", "conv3x3"])
def test_where_it_may_not_write_it_does_not(where):
    layer, x = make_layer(where)
    mix = mix_of(layer, [make_params("lora", tuple(layer.weight.shape))])
    fresh = layer(x)
    expected = mix.add(x, layer(x), StepWeights([1.0]))
    if where != "linear":
        strided = fresh.to(memory_format=torch.channels_last)
        kept = strided.clone(memory_format=torch.preserve_format)
        close(mix.add(x, strided, StepWeights([1.0])), expected)
        assert torch.equal(strided, kept)
    recorded = fresh.clone().requires_grad_()
    changed = mix.add(x, recorded, StepWeights([1.0]))
    close(changed.detach(), expected)
    changed.sum().backward()
    assert torch.equal(recorded.grad, torch.ones_like(recorded))
    with torch.inference_mode():
        close(mix.add(x, layer(x), StepWeights([1.0])).clone(), expected)


@NEEDS_HALF
def test_number_format_follows_the_output():
    layer, x = make_layer("linear", dtype=torch.float32)
    params = {k: v.half() if v.dim() else v for k, v in make_params("lora", (48, 32)).items()}
    mix = mix_of(layer, [params])
    expected = with_delta(layer, x, [(1.0, *delta(params, layer.weight.double()))])
    for dtype, tolerance in (
        (torch.float32, 1e-6),
        (torch.bfloat16, 0.02),
        (torch.float32, 0.01),
        (torch.float16, 0.01),
    ):
        moved = nn.Linear(32, 48)
        moved.load_state_dict(layer.state_dict())
        moved = moved.to(dtype).requires_grad_(False)
        y = moved(x.to(dtype))
        got = mix.add(x.to(dtype), y, StepWeights([1.0]))
        assert got.dtype == dtype and mix.bank.rows.nbytes() == 4 * (32 + 48) * dtype.itemsize
        close(got, expected, tolerance)


def test_autocast():
    layer, x = make_layer("linear", dtype=torch.float32)
    params = [make_params(kind, (48, 32)) for kind in ("lora", "dora in", "glora", "lokr", "boft")]
    changes = [(1.0, *delta(p, layer.weight.double())) for p in params]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
        assert y.dtype == torch.bfloat16
        got = mix_of(layer, params).add(x, y, StepWeights([1.0] * 5))
    assert got.dtype == torch.bfloat16
    close(got, with_delta(layer, x, changes), 0.03)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: the bank follows a model between devices")
def test_follows_the_model_between_devices():
    layer, x = make_layer("linear", dtype=torch.float32)
    kinds = ("lora", "dora out", "loha", "oft", "ia3 in")
    params = [make_params(kind, (48, 32)) for kind in kinds]
    mix = mix_of(layer, params)
    expected = with_delta(layer, x, [(1.0, *delta(p, layer.weight.double())) for p in params])
    for device in ("cpu", "cuda", "cpu", "cuda"):
        layer.to(device)
        close(mix.add(x.to(device), layer(x.to(device)), StepWeights([1.0] * len(kinds))).cpu(), expected, 1e-4)


# --- whole UNet


@pytest.fixture(scope="module")
def unet_and_files(tmp_path_factory):
    model = tiny_modules("sd1", unet_widths=(32, 32, 32, 32))
    folder = tmp_path_factory.mktemp("adapters")
    paths = [write_adapter(folder / f"{seed}.safetensors", random_lora(model, "sd1", seed=seed)) for seed in (1, 2)]
    files = AdapterFiles()
    return model, [files.get(path) for path in paths]


def run(model, batch=4, rows=None, **inputs):
    arguments = {**unet_inputs(model, batch), **inputs}
    if rows is not None:
        arguments = {k: v[rows] if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}
    with torch.no_grad():
        return model.unet(**arguments).sample


BATCH = [Row(0, 0), Row(0, 1), Row(1, 0), Row(0, negative=True)]
"""Two AND parts of one picture, one of another, and a negative row."""


@pytest.mark.parametrize(
    ("whom", "acted"),
    [
        (Whom(), [0, 1, 2, 3]),
        (Whom(negative=True), [3]),
        (Whom(negative=False), [0, 1, 2]),
        (Whom(part=1), [1]),
        (Whom(part=0), [0, 2]),
        (Whom(picture=0), [0, 1, 3]),
        (Whom(part=0, picture=1), [2]),
    ],
)
def test_acts_on_exactly_its_rows(unet_and_files, whom, acted):
    model, (one, _) = unet_and_files
    injection, p = Injection("sd1", {"unet": model.unet}), Processing()
    plain = run(model)
    injection.begin(p, [constant_use(one)])
    everywhere = run(model)
    generation = injection.begin(p, [constant_use(one, whom=whom)])
    generation.set_rows(BATCH)
    got = run(model)
    for row in range(4):
        expected = everywhere if row in acted else plain
        assert torch.allclose(got[row], expected[row], atol=1e-5), row
        assert not torch.allclose(got[row], (plain if row in acted else everywhere)[row], atol=1e-3), row
    # the same rows one by one (cond and uncond apart), and without the negative one (skipped uncond)
    for chosen in ([3], [0, 1, 2], [1, 3]):
        generation.set_rows([BATCH[row] for row in chosen])
        assert torch.allclose(run(model, rows=chosen), got[chosen], atol=1e-5)
    injection.end(p)


def test_without_rows_a_use_for_some_does_nothing(unet_and_files):
    model, (one, other) = unet_and_files
    injection, p = Injection("sd1", {"unet": model.unet}), Processing()
    plain = run(model)
    injection.begin(p, [constant_use(one, whom=Whom(negative=True))])
    assert torch.equal(run(model), plain)
    injection.begin(p, [constant_use(one), constant_use(other, whom=Whom(negative=True))])
    both = run(model)
    injection.begin(p, [constant_use(one)])
    assert torch.allclose(run(model), both, atol=1e-6)
    injection.end(p)


def test_steps_change_only_the_scale(unet_and_files):
    """A curve and a window against constant weights of the same value, step by step and in both passes."""
    model, (one, other) = unet_and_files
    injection, p, q = Injection("sd1", {"unet": model.unet}), Processing(), Processing()

    def curve(component, step, total, hires):
        return 0.25 if hires else step / total

    def window(component, step, total, hires):
        return 1.0 if step >= 2 else 0.0

    generation = injection.begin(p, [Use(one, curve), Use(other, window)])
    plan = generation.plan
    for step, hires, weights in (
        (0, False, (0, 0)),
        (1, False, (0.25, 0)),
        (3, False, (0.75, 1)),
        (3, True, (0.25, 1)),
    ):
        generation.set_step(step, 4, hires)
        got = run(model)
        injection.begin(q, [constant_use(one, weights[0]), constant_use(other, weights[1])])
        assert torch.allclose(got, run(model), atol=1e-6)
        injection.end(q)
        assert injection.current is generation and generation.plan is plan
    injection.end(p)


def test_the_same_adapter_twice_adds_up(unet_and_files):
    model, (one, _) = unet_and_files
    injection, p = Injection("sd1", {"unet": model.unet}), Processing()
    generation = injection.begin(p, [constant_use(one, 0.3), constant_use(one, 0.5)])
    assert len(generation.plan.adapters) == 1
    twice = run(model)
    injection.begin(p, [constant_use(one, 0.8)])
    assert torch.allclose(run(model), twice, atol=1e-6)
    injection.end(p)


def tag_of(text):
    (tag,) = parse_prompt(text).tags
    return tag


def test_tags_become_uses(unet_and_files):
    _, (one, _) = unet_and_files
    use = use_of(tag_of("<lora:x:0@0,1@1:stop=0.5:dyn=2>"), one, "sd1", picture=3)
    assert (use.ranks, use.constant, use.whom) == (2, False, Whom())
    assert [use.weight("unet", step, 5, False) for step in range(5)] == [0.0, 0.25, 0.0, 0.0, 0.0]
    assert use_of(tag_of("<lora:x:0.8>"), one, "sd1").constant
    assert use_of(tag_of("<lora:x:0.5:0.9>"), one, "sd1").weight("text_encoder", 0, 5, False) == 0.5
    assert use_of(tag_of("<lora:x:0.8:for=picture>"), one, "sd1", picture=3).whom == Whom(picture=3)
    hires = use_of(tag_of("<lora:x:0.8:hr=0.4>"), one, "sd1")
    assert not hires.constant and hires.weight("unet", 0, 5, True) == 0.4
    assert use_of(tag_of("<lora:x:1:mask=left>"), one, "sd1").whom.region == "left"


def test_block_weights(unet_and_files):
    """lbw=MIDD: the layers outside its blocks do nothing, and with every block it is the plain adapter."""
    model, (one, _) = unet_and_files
    injection, p = Injection("sd1", {"unet": model.unet}), Processing()
    injection.begin(p, [use_of(tag_of("<lora:x:0.8:lbw=ALL>"), one, "sd1")])
    everything = run(model)
    injection.begin(p, [constant_use(one, 0.8)])
    assert torch.equal(run(model), everything)
    generation = injection.begin(p, [use_of(tag_of("<lora:x:0.8:lbw=MIDD>"), one, "sd1")])
    acting = {
        name
        for name, mix in generation.mixes.items()
        if not mix.prepared(generation.weights["unet"], 4, torch.device("cpu")).idle
    }
    injection.end(p)
    assert "lora_unet_mid_block_attentions_0_proj_in" in acting
    assert "lora_unet_down_blocks_0_attentions_0_proj_in" not in acting  # IN01
    assert 0 < len(acting) < 192


def test_regions_are_rows():
    use = constant_use(None, whom=Whom(region="left"))
    weights = step_weights([use], "unet", 0, 1, False, [Row(), Row(region="left"), Row(region="right")])
    assert weights.rows == ((0.0,), (1.0,), (0.0,))


def test_rows_that_agree_are_one(unet_and_files):
    _, (one, _) = unet_and_files
    assert step_weights([constant_use(one)], "unet", 0, 1, False, BATCH).rows is None
