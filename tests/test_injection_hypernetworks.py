"""Hypernetworks beside a live model, against the formula put into the layers by hand."""

# ruff: noqa: F811

from __future__ import annotations

import os

import pytest
import torch
from injection_cases import files, models, setup, traces, written  # noqa: F401
from injection_models import Processing, unet_inputs
from torch import nn

from extension.injection import Row, Whom
from extension.injection.hypernetworks import NetworkAttachment, NetworkFiles, NetworkUse
from trainers.errors import InputError
from trainers.formats import hypernetworks
from trainers.formats.hypernetworks import Hypernetwork, Structure

torch.set_num_threads(1)
STRUCTURE = Structure((1, 2, 1), "relu", initialisation="XavierNormal")


def network_for(unet, seed=0):
    draw, pairs = torch.Generator().manual_seed(seed), {}
    for name, module in unet.named_modules():
        if name.endswith(("attn1.to_k", "attn2.to_k")) and module.in_features not in pairs:
            pair = tuple(hypernetworks.build(module.in_features, STRUCTURE).eval() for _ in range(2))
            for one in pair:
                hypernetworks.initialise(one, STRUCTURE, draw)
            pairs[module.in_features] = pair
    return Hypernetwork("zog", STRUCTURE, pairs)


def steady(weight):
    return lambda component, step, total, hires: weight


class Changed(nn.Module):
    def __init__(self, layer, network, weight):
        super().__init__()
        self.layer, self.network, self.weight = layer, network, weight

    def forward(self, x):
        return self.layer(x + self.weight * self.network(x))


def by_hand(unet, uses):
    """Each layer wrapped; the first use stands nearest the input."""
    import copy

    changed = copy.deepcopy(unet)
    for name, module in list(changed.named_modules()):
        for side, last in enumerate(("to_k", "to_v")):
            if name.endswith((f"attn1.{last}", f"attn2.{last}")):
                wrapped, width = module, module.in_features
                for use, weight in reversed(uses):
                    wrapped = Changed(wrapped, use.pairs[width][side], weight)
                parent, _, own = name.rpartition(".")
                setattr(changed.get_submodule(parent), own, wrapped)
    return changed


def call(unet, model):
    with torch.no_grad():
        return unet(**unet_inputs(model)).sample


def drawn(setup, uses, rows=None):
    model, injection, _, _ = setup
    owner = Processing()
    generation = injection.begin(owner, [])
    generation.set_rows(rows)
    attachment = NetworkAttachment(model.unet, generation, uses)
    attachment.attach()
    result = call(model.unet, model)
    attachment.remove()
    injection.end(owner)
    assert traces(model.unet) == []
    return result


def test_equals_the_formula_one_after_the_other(setup):
    model = setup[0]
    one, other = network_for(model.unet, 1), network_for(model.unet, 2)
    ours = drawn(setup, [NetworkUse(one, steady(0.7)), NetworkUse(other, steady(-0.4))])
    theirs = call(by_hand(model.unet, [(one, 0.7), (other, -0.4)]), model)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    plain = call(model.unet, model)
    assert not torch.allclose(ours, plain, atol=1e-4)
    assert torch.equal(drawn(setup, [NetworkUse(one, steady(0.0))]), plain)


def test_rows(setup):
    model = setup[0]
    one = network_for(model.unet)
    both, plain = drawn(setup, [NetworkUse(one, steady(1.0))]), call(model.unet, model)
    use = NetworkUse(one, steady(1.0), Whom(negative=True))
    negative = drawn(setup, [use], rows=[Row(), Row(negative=True)])
    torch.testing.assert_close(negative[0], plain[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(negative[1], both[1], rtol=1e-4, atol=1e-5)
    assert torch.equal(drawn(setup, [use]), plain)


def test_files_are_read_again_when_they_change(setup, tmp_path):
    model, known = setup[0], NetworkFiles()
    hypernetworks.save(tmp_path / "zog.pt", network_for(model.unet))
    first = known.get(tmp_path / "zog.pt")
    assert known.get(tmp_path / "zog.pt") is first
    os.utime(tmp_path / "zog.pt", ns=(1, 1))
    assert known.get(tmp_path / "zog.pt") is not first
    with pytest.raises(InputError, match="no such file"):
        known.get(tmp_path / "none.pt")
