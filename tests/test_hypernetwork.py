"""Hypernetworks: A1111's file layout, what is trained, and that bad files are refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from training_helpers import events_of, job_values, killed_and_resumed, make_pictures

from trainers import running, spec
from trainers.errors import InputError
from trainers.formats import hypernetworks
from trainers.formats.hypernetworks import Hypernetwork, Structure


@pytest.fixture
def train(tiny_base, tmp_path):
    pictures = make_pictures(tmp_path / "pictures", 3, caption="a zog on a table")

    def run(family="sd1", folder="run", **changes):
        values = {**job_values(tiny_base(family), pictures, steps=3, save_dtype="fp32", learning_rate=1e-2), **changes}
        for name in ("rank", "alpha"):
            values.pop(name, None)
        values |= {"method": "hypernetwork", "name": "zog"}
        return running.start(spec.parse(values), tmp_path / folder), tmp_path / folder

    return run


def random_network(structure, widths=(8, 12), seed=0):
    draw = torch.Generator().manual_seed(seed)
    pairs = {}
    for width in widths:
        pairs[width] = tuple(hypernetworks.build(width, structure) for _ in range(2))
        for one in pairs[width]:
            hypernetworks.initialise(one, structure, draw)
    return Hypernetwork("zog", structure, pairs, 7, "base")


def test_layers_are_numbered_as_in_a1111():
    """Every part counts, those without weights too."""
    s = Structure((1, 2, 2, 1), "relu", False, True, (0, 0.3, 0.1, 0), "Normal")
    kinds = [type(layer).__name__ for layer in hypernetworks.build(4, s)]
    assert kinds == ["Linear", "ReLU", "LayerNorm", "Dropout"] * 2 + ["Linear", "LayerNorm"]
    plain = [
        type(layer).__name__ for layer in hypernetworks.build(4, Structure(activation="swish", activate_output=True))
    ]
    assert plain == ["Linear", "Hardswish", "Linear", "Hardswish"]


@pytest.mark.parametrize(
    "structure",
    [
        Structure(),
        Structure((1, 2, 2, 1), "swish", True, True, (0, 0.3, 0.1, 0), "KaimingNormal"),
        Structure((1, 1.5, 1), "leakyrelu", initialisation="XavierUniform"),
    ],
)
def test_file_round_trip(tmp_path, structure):
    one = random_network(structure)
    hypernetworks.save(tmp_path / "a.pt", one)
    hypernetworks.save(tmp_path / "b.pt", one)
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()
    other = hypernetworks.read(tmp_path / "a.pt")
    assert other.structure == structure and other.step == 7 and other.name == "zog" and other.checkpoint == "base"
    for width, pair in one.pairs.items():
        for mine, theirs in zip(pair, other.pairs[width], strict=True):
            x = torch.randn(2, 3, width)
            assert torch.equal(mine.eval()(x), theirs(x))
    content = torch.load(tmp_path / "a.pt", weights_only=True)
    assert {8, 12, "layer_structure", "activation_func", "is_layer_norm", "dropout_structure"} <= set(content)
    assert all(name.startswith("linear.") for name in content[8][0])


def test_old_files(tmp_path):
    """The first files named their two layers otherwise and described nothing."""
    first, second = nn.Linear(4, 8), nn.Linear(8, 4)
    table = {"linear1.weight": first.weight, "linear1.bias": first.bias,
             "linear2.weight": second.weight, "linear2.bias": second.bias}  # fmt: skip
    table = {name: tensor.detach() for name, tensor in table.items()}
    torch.save({4: (table, table), "step": 3, "name": "old"}, tmp_path / "old.pt")
    x = torch.randn(1, 4)
    torch.testing.assert_close(hypernetworks.read(tmp_path / "old.pt").pairs[4][0](x), second(first(x)))


@pytest.mark.parametrize(
    "content",
    [
        {"step": 1},
        {4: ({}, {}), "layer_structure": [1, 2, 1]},
        {4: ({}, {}), "layer_structure": [2, 1]},
        {4: ({}, {}), "layer_structure": "no numbers"},
        {4: ({}, {}), "activation_func": "unknown"},
        {4: [1], "layer_structure": [1, 2, 1]},
        {4: ({}, {}), "layer_structure": [1, 1e9, 1]},
    ],
)
def test_bad_files_are_refused_in_a_sentence(tmp_path, content):
    torch.save(content, tmp_path / "bad.pt")
    with pytest.raises(InputError, match=r"bad\.pt"):
        hypernetworks.read(tmp_path / "bad.pt")


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_trains_every_width_and_nothing_else(train, family):
    code, folder = train(family, layer_structure=["1", "2", "1"], activation="relu", validation_split=0.4)
    assert code == 0
    network = hypernetworks.read(folder / "zog.pt")
    assert network.step == 3 and len(network.pairs) >= 2
    assert all(p.abs().sum() > 0 for pair in network.pairs.values() for one in pair for p in one.parameters())
    first, last = (events_of(folder, "validation")[i] for i in (0, -1))
    assert first["loss"] == first["base_loss"] == last["base_loss"] != last["loss"]


def test_resumes_to_the_same_bytes_and_goes_on_from_a_file(train, monkeypatch):
    options = dict(steps=4, layer_dropout=["0", "0.2", "0"], layer_norm=True)
    whole, broken = killed_and_resumed(train, monkeypatch, **options)
    assert (whole / "zog.pt").read_bytes() == (broken / "zog.pt").read_bytes()
    still = {"learning_rate": 0.0, "override_checks": ["amount", "learning"], "init_from": str(whole / "zog.pt")}
    code, more = train(folder="more", **{**options, **still})
    assert code == 0
    one, other = hypernetworks.read(whole / "zog.pt"), hypernetworks.read(more / "zog.pt")
    for width in one.pairs:
        assert all(
            torch.equal(a, b)
            for a, b in zip(one.pairs[width][0].parameters(), other.pairs[width][0].parameters(), strict=True)
        )
    with pytest.raises(InputError, match="built otherwise"):
        train(folder="other", layer_structure=["1", "3", "1"], init_from=str(whole / "zog.pt"))


@pytest.mark.parametrize(
    "changes", [{"layer_structure": ["2", "1"]}, {"layer_structure": ["1", "x", "1"]}, {"layer_dropout": ["0.1"]}]
)
def test_refusals(changes):
    with pytest.raises(InputError, match=next(iter(changes))):
        spec.parse({"method": "hypernetwork", "base": "b", "data": "d", "name": "zog", "steps": 1, **changes})
