"""Encoding prompts in AUTOMATIC1111 with weights that differ by row and by step."""

from __future__ import annotations

import importlib

import a1111_stand_ins as stand_ins
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from extension.injection import Injection
from extension.injection.embeddings import EmbeddingStore
from extension.listing import Listing
from extension.wanted import Library, read_wanted

CALLS = 10


class TextModel(nn.Module):
    """One layer under the name a CLIP text model has for it."""

    def __init__(self):
        super().__init__()
        layer = nn.Module()
        layer.mlp = nn.Module()
        layer.mlp.fc1 = nn.Linear(4, 4, bias=False)
        nn.init.zeros_(layer.mlp.fc1.weight)
        self.text_model = nn.Module()
        self.text_model.encoder = nn.Module()
        self.text_model.encoder.layers = nn.ModuleList([layer])

    def forward(self, rows):
        return self.text_model.encoder.layers[0].mlp.fc1(torch.ones(rows, 4))


@pytest.fixture
def setup(monkeypatch, tmp_path):
    """`encode(prompts, negatives) -> (positive, negative)`: each encoding is (text, text-encoder weight)."""
    stand_ins.install(monkeypatch)
    conditioning = importlib.import_module("extension.hosts.a1111_conditioning")
    name = "lora_te_text_model_encoder_layers_0_mlp_fc1"
    tensors = {f"{name}.lora_down.weight": torch.full((1, 4), 0.25), f"{name}.lora_up.weight": torch.ones(4, 1)}
    (tmp_path / "Lora").mkdir()
    save_file(tensors, tmp_path / "Lora" / "cat.safetensors")
    (tmp_path / "embeddings").mkdir()
    save_file({"emb_params": torch.ones(2, 64)}, tmp_path / "embeddings" / "shiny.safetensors")
    library = Library(Listing([tmp_path / "Lora"]), EmbeddingStore([tmp_path / "embeddings"]))
    library.rescan()
    model, unet, owner = TextModel(), nn.Module(), stand_ins.Processing(["a"], [""])

    def schedules(model, prompts, *rest):
        weight = round(float(model(1).detach()[0, 0]), 4)
        return [[stand_ins.Scheduled(CALLS, (text.strip(), weight))] for text in prompts]

    def multicond(model, prompts, *rest):
        parts = [[(text, *schedules(model, [text])) for text in prompt.split("AND")] for prompt in prompts]
        batch = [[stand_ins.Composable(schedule) for _, schedule in found] for found in parts]
        return stand_ins.Multicond((len(prompts),), batch)

    def encode(prompts, negatives, change=lambda text: text):
        wanted = read_wanted(prompts, negatives, library, kinds=("lora", "ti"))
        injection = Injection("sd1", {"unet": unet, "text_encoder": model})
        generation = injection.begin(owner, wanted.uses("sd1"))
        sampling = conditioning.Pass(CALLS, CALLS)
        encoder = conditioning.Encoder(
            generation, wanted.batch.prompts, wanted.batch.negatives, library.embeddings, sampling
        )

        def texts(parsed, negative):
            shown = [conditioning.weighted_text(one, library.embeddings, 0, CALLS) for one in parsed]
            return stand_ins.SdConditioning(map(change, shown), is_negative_prompt=negative)

        positive = encoder.encode(multicond, model, texts(wanted.batch.prompts, False), CALLS)
        negative = encoder.encode(schedules, model, texts(wanted.batch.negatives, True), CALLS)
        injection.end(owner)
        return positive, negative

    return encode


def plain(schedule):
    return [(entry.end_at_step, entry.cond) for entry in schedule]


def test_one_weight_for_everything_is_one_call(setup):
    positive, negative = setup(["a <lora:cat:0.5>"], ["n"])
    assert plain(positive.batch[0][0].schedules) == [(CALLS, ("a", 0.5))]
    assert plain(negative[0]) == [(CALLS, ("n", 0.5))]


def test_a_negative_tag_acts_on_the_negative_prompt_only(setup):
    positive, negative = setup(["a"], ["n <lora:cat:0.5>"])
    assert positive.batch[0][0].schedules[-1].cond == ("a", 0.0)
    assert negative[0][-1].cond == ("n", 0.5)


def test_and_parts_and_pictures_have_weights_of_their_own(setup):
    positive, negative = setup(["a <lora:cat:0.5:for=part> AND b", "c <lora:cat:0.25:for=picture>"], ["n", "n"])
    got = [[part.schedules[-1].cond for part in picture] for picture in positive.batch]
    assert got == [[("a", 0.5), ("b", 0.0)], [("c", 0.25)]]
    assert [schedule[-1].cond for schedule in negative] == [("n", 0.0), ("n", 0.25)]


def test_equal_texts_can_have_other_weights(setup):
    positive, _ = setup(["a <lora:cat:0.5:for=picture>", "a"], ["", ""])
    assert [picture[0].schedules[-1].cond for picture in positive.batch] == [("a", 0.5), ("a", 0.0)]


def test_rows_of_regions_are_encoded_beside_the_hosts(setup):
    from extension.hosts.a1111_conditioning import contexts_at
    from extension.injection import Row

    positive, negative = setup(["a <lora:cat:0.5:mask=left:stop=4> AND b"], ["n <lora:cat:0.25:mask=top>"])
    assert [part.schedules[-1].cond for part in positive.batch[0]] == [("a", 0.0), ("b", 0.0)]
    assert negative[0][-1].cond == ("n", 0.0)
    for call, weight in ((3, 0.5), (4, 0.0)):
        found = contexts_at(positive, call)
        assert {row: one.hidden for row, one in found.items()} == {
            Row(0, 0, region="left"): ("a", weight),
            Row(0, 1, region="left"): ("b", weight),
        }
    # A tag of the positive prompt is for every row, the negative ones too; one of the negative prompt for those only.
    assert contexts_at(negative, 3)[Row(0, negative=True, region="left")].hidden == ("n", 0.5)
    assert contexts_at(negative, 9)[Row(0, negative=True, region="top")].hidden == ("n", 0.25)
    assert contexts_at(setup(["a <lora:cat:0.5>"], ["n"])[0], 0) == {}


def test_a_window_cuts_the_encoding_where_it_opens(setup):
    positive, negative = setup(["a <lora:cat:0.5:start=0.4>"], ["n"])
    assert plain(positive.batch[0][0].schedules) == [(3, ("a", 0.0)), (9, ("a", 0.5))]
    assert [entry.end_at_step for entry in negative[0]] == [3, 9]


def test_an_embeddings_window_changes_the_text(setup):
    positive, _ = setup(["a <ti:shiny:1:stop=3>"], [""])
    assert plain(positive.batch[0][0].schedules) == [(2, ("a shiny", 0.0)), (9, ("a", 0.0))]


def test_a_text_that_another_extension_changed_stays_changed(setup):
    positive, _ = setup(["a <ti:shiny:1:stop=3>"], [""], change=lambda text: text + " more")
    schedules = positive.batch[0][0].schedules
    assert {entry.cond[0] for entry in schedules} == {"a shiny more"}


def test_prompt_editing_and_windows_together():
    from extension.hosts.a1111_conditioning import Segment, _merge

    first = [stand_ins.Scheduled(4, "x0"), stand_ins.Scheduled(10, "y0")]
    second = [stand_ins.Scheduled(4, "x1"), stand_ins.Scheduled(10, "y1")]
    merged = _merge([(Segment(0, 2, 0), first), (Segment(3, 9, 3), second)])
    assert [(one.end_at_step, one.cond) for one in merged] == [(2, "x0"), (4, "x1"), (9, "y1")]
