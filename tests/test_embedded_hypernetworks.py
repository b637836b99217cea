"""Hypernetworks by tag in the embedded host."""

from __future__ import annotations

import pytest
import torch
from embedded_helpers import apart, draw, make_studio, one

from trainers.formats import hypernetworks
from trainers.formats.hypernetworks import Hypernetwork, Structure


@pytest.fixture(scope="module")
def studio(tmp_path_factory):
    torch.set_num_threads(1)
    made = make_studio(tmp_path_factory.mktemp("data"))
    structure, pairs = Structure((1, 2, 1), "relu", initialisation="XavierNormal"), {}
    drawn = torch.Generator().manual_seed(0)
    for width in {m.in_features for n, m in made.model.base.unet.named_modules() if n.endswith(".to_k")}:
        pairs[width] = tuple(hypernetworks.build(width, structure) for _ in range(2))
        for network in pairs[width]:
            hypernetworks.initialise(network, structure, drawn)
    hypernetworks.save(made.places.hypernetworks / "zog.pt", Hypernetwork("zog", structure, pairs))
    return made


def test_acts_and_leaves_nothing(studio):
    plain = one(studio, "a red star")
    assert apart(one(studio, "a red star <hypernet:zog>"), plain) > 8
    assert apart(one(studio, "a red star <hypernet:zog:0>"), plain) == 0
    assert apart(one(studio, "a red star"), plain) == 0


def test_negative_only_and_a_missing_name(studio):
    plain, everywhere = one(studio, "a red star"), one(studio, "a red star <hypernet:zog>")
    negative = one(studio, "a red star", negative_prompt="<hypernet:zog>")
    assert apart(negative, plain) > 0 and apart(negative, everywhere) > 0
    both = one(studio, "a red star <hypernet:zog:1:mask=top> <hypernet:zog:1:mask=bottom>")
    assert apart(both, everywhere) <= 1 and apart(one(studio, "a red star <hypernet:zog:1:mask=top>"), both) > 2
    assert any('did you mean "zog"' in line for line in draw(studio, "a red star <hypernet:zug>").reports)
