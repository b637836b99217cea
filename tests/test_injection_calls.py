"""Calls of the UNet: rows for whom they are meant, and regions as further rows."""

# ruff: noqa: F811

from __future__ import annotations

import pytest
import torch
from injection_cases import files, models, setup, traces, written  # noqa: F401
from injection_models import Processing, unet_inputs

from extension.injection import Row, Whom, constant_use
from extension.injection.calls import UNetCalls

torch.set_num_threads(1)
ROWS = [Row(), Row(negative=True)]


def call(model, **more):
    with torch.no_grad():
        return model.unet(**unet_inputs(model), **more)


def half(height, width):
    mask = torch.zeros(height, width)
    mask[:, : width // 2] = 1
    return mask


def drawn(setup, uses, rows=ROWS, masks=None, **more):
    model, injection, _, _ = setup
    owner = Processing()
    generation = injection.begin(owner, uses)
    with UNetCalls(model.unet, generation, lambda count: rows, masks):
        result = call(model, **more)
    injection.end(owner)
    assert traces(model.unet) == [] and not model.unet._forward_pre_hooks and not model.unet._forward_hooks
    return result[0] if isinstance(result, tuple) else result.sample


def test_rows_of_the_call(setup):
    one = setup[2]
    plain, both = drawn(setup, []), drawn(setup, [constant_use(one)])
    negative = drawn(setup, [constant_use(one, whom=Whom(negative=True))])
    assert torch.equal(negative[0], plain[0]) and torch.allclose(negative[1], both[1], atol=1e-4)
    unknown = drawn(setup, [constant_use(one, whom=Whom(negative=True))], rows=None)
    assert torch.equal(unknown, plain)
    wrong_number = drawn(setup, [constant_use(one, whom=Whom(negative=True))], rows=[Row()])
    assert torch.equal(wrong_number, plain)


@pytest.mark.parametrize("return_dict", [True, False])
def test_region_is_kept_inside_its_mask(setup, return_dict):
    one = setup[2]
    plain, both = drawn(setup, []), drawn(setup, [constant_use(one)])
    use = constant_use(one, whom=Whom(region="left"))
    inside = drawn(setup, [use], masks={"left": half}, return_dict=return_dict)
    width = plain.shape[-1] // 2
    assert torch.allclose(inside[..., :width], both[..., :width], atol=1e-4)
    assert torch.allclose(inside[..., width:], plain[..., width:], atol=1e-4)


def test_region_of_the_positive_rows_only_and_two_regions(setup):
    _, _, one, other = setup
    first, second = drawn(setup, [constant_use(one)]), drawn(setup, [constant_use(other)])
    plain = drawn(setup, [])
    uses = [
        constant_use(one, whom=Whom(region="left")),
        constant_use(other, whom=Whom(region="right", negative=True)),
    ]
    masks = {"left": half, "right": lambda h, w: 1 - half(h, w)}
    result = drawn(setup, uses, masks=masks)
    width = plain.shape[-1] // 2
    assert torch.allclose(result[:, ..., :width], first[..., :width], atol=1e-4)
    assert torch.allclose(result[1, ..., width:], second[1, ..., width:], atol=1e-4)
    assert torch.allclose(result[0, ..., width:], plain[0, ..., width:], atol=1e-4)
