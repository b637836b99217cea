"""Calls of the UNet: rows for whom they are meant, and regions as further rows."""

# ruff: noqa: F811

from __future__ import annotations

import pytest
import torch
from injection_cases import files, models, setup, traces, written  # noqa: F401
from injection_models import Processing, unet_inputs

from extension.injection import Row, Whom, constant_use
from extension.injection.calls import UNetCalls
from extension.injection.contexts import Context, fitted, with_contexts

torch.set_num_threads(1)
ROWS = [Row(), Row(negative=True)]


def call(model, **more):
    with torch.no_grad():
        return model.unet(**{**unet_inputs(model), **more})


def half(height, width):
    mask = torch.zeros(height, width)
    mask[:, : width // 2] = 1
    return mask


def drawn(setup, uses, rows=ROWS, masks=None, contexts=lambda row: None, **more):
    model, injection, _, _ = setup
    owner = Processing()
    generation = injection.begin(owner, uses)
    with UNetCalls(model.unet, generation, lambda count: rows, masks, contexts):
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


def test_a_region_is_told_what_its_prompt_means_there(setup):
    model, _, one, _ = setup
    inside = torch.randn(77, model.unet.config.cross_attention_dim, generator=torch.Generator().manual_seed(4))
    use = constant_use(one, whom=Whom(region="left"))
    contexts = {Row(region="left"): Context(inside)}
    result = drawn(setup, [use], masks={"left": half}, contexts=contexts.get)
    plain, same_words = drawn(setup, []), drawn(setup, [constant_use(one)])
    hidden = unet_inputs(model)["encoder_hidden_states"].clone()
    hidden[0] = inside
    other_words = drawn(setup, [constant_use(one)], encoder_hidden_states=hidden)
    width = plain.shape[-1] // 2
    assert torch.allclose(result[0, ..., :width], other_words[0, ..., :width], atol=1e-4)
    assert torch.allclose(result[1, ..., :width], same_words[1, ..., :width], atol=1e-4)
    assert torch.allclose(result[..., width:], plain[..., width:], atol=1e-4)
    assert (other_words[0] - same_words[0]).abs().max() > 1e-2


def test_a_conditioning_gets_the_length_that_the_host_gave_the_others():
    mine, theirs, empty = torch.randn(3, 2), torch.randn(3, 2), torch.randn(2, 2)
    assert torch.equal(fitted(mine, theirs), mine) and torch.equal(fitted(mine, theirs[:2]), mine[:2])
    assert torch.equal(fitted(mine, theirs.repeat(2, 1)), mine.repeat(2, 1))
    last = fitted(mine, torch.cat([theirs, theirs[-1:], theirs[-1:]]))
    assert torch.equal(last, torch.cat([mine, mine[-1:], mine[-1:]]))
    assert torch.equal(fitted(mine, torch.cat([theirs, empty])), torch.cat([mine, empty]))


@pytest.mark.parametrize("by_name", [True, False])
def test_a_conditioning_is_put_where_each_kind_of_unet_reads_it(by_name):
    rows, y = torch.zeros(2, 3, 4), torch.zeros(2, 5)
    mine = Context(torch.ones(3, 4), torch.ones(5))
    args, kwargs = (1, 2, rows), {"y": y, "added_cond_kwargs": {"text_embeds": y, "time_ids": y}}
    if by_name:
        args, kwargs["context"] = (1, 2), rows
    args, kwargs = with_contexts(args, kwargs, {1: mine})
    hidden = kwargs["context"] if by_name else args[2]
    added = kwargs["added_cond_kwargs"]
    assert hidden[0].eq(0).all() and hidden[1].eq(1).all() and rows.eq(0).all()
    assert kwargs["y"][1].eq(1).all() and added["text_embeds"][1].eq(1).all() and added["time_ids"].eq(0).all()
