"""Forge's calls of the UNet: rows travel with the conditionings, whatever order and slices Forge lays them out in."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from extension.hosts.forge_rows import KEY, MarkedChunks, RowReader, Rows, marking
from extension.injection import Row

torch.set_num_threads(1)


class Tensors:
    """A tensor as Forge carries it."""

    def __init__(self, value):
        self.value = value

    def process_cond(self, batch_size, device, **_):
        return self

    def can_concat(self, other):
        return self.value.shape == other.value.shape

    def concat(self, others):
        return torch.cat([self.value, *(one.value for one in others)])


class UNet(nn.Module):
    """Remembers whom each row it saw was for; Forge's takes keyword arguments it does not know."""

    def __init__(self):
        super().__init__()
        self.seen = []
        self.extra = []
        self.options = None

    def forward(self, x, timesteps=None, context=None, transformer_options=None, **more):
        self.extra.append(set(more))
        self.options = transformer_options
        self.seen += context[:, 0, 0].tolist()
        return x


def step(unet, reader, modifier, positive, negative, pictures, room):
    """One step as Forge takes it: entries from back to front, as many per call as there is room for.

    Every row's context holds its own number. Returns `{number: row}`.
    """
    x, sigma = torch.zeros(pictures, 4, 2, 2), torch.ones(pictures)

    def entry(part):
        numbers = torch.arange(pictures, dtype=torch.float32) + 100 * part
        return {"model_conds": {"c_crossattn": Tensors(numbers[:, None, None].repeat(1, 3, 5))}}

    cond = [entry(part) for part in range(positive)]
    uncond = [entry(9) for _ in range(negative)]
    _, _, _, uncond, cond, *_ = modifier(None, x, sigma, uncond, cond, 7.0, {}, 1)
    waiting = [(one, 0) for one in cond] + [(one, 1) for one in uncond]
    found = {}
    while waiting:
        taken, waiting = waiting[::-1][:room], waiting[: max(len(waiting) - room, 0)]
        made = [{k: v.process_cond(pictures, "cpu") for k, v in one["model_conds"].items()} for one, _ in taken]
        kwargs = {name: made[0][name].concat([one[name] for one in made[1:]]) for name in made[0]}
        context = kwargs.pop("c_crossattn")
        marks = [kind for _, kind in taken]
        options = {"cond_or_uncond": marks, "sigmas": sigma}
        unet(torch.cat([x] * len(taken)), context=context, transformer_options=options, **kwargs)
        rows = reader.rows_of(len(context))
        found.update(zip(context[:, 0, 0].tolist(), rows, strict=True))
    return found


@pytest.mark.parametrize("room", [1, 2, 3, 9])
@pytest.mark.parametrize(("positive", "pictures"), [(1, 1), (1, 3), (2, 2), (3, 2)])
def test_rows_are_known_in_any_order_and_slices(room, positive, pictures):
    unet = UNet()
    reader = RowReader(unet)
    reader.attach()
    found = step(unet, reader, marking(), positive, 1, pictures, room)
    expected = {100.0 * part + picture: Row(picture, part) for part in range(positive) for picture in range(pictures)}
    expected |= {900.0 + picture: Row(picture, negative=True) for picture in range(pictures)}
    assert found == expected
    assert all(KEY not in extra for extra in unet.extra)


def test_without_negative_rows():
    unet = UNet()
    reader = RowReader(unet)
    reader.attach()
    found = step(unet, reader, marking(), 1, 0, 2, 9)
    assert found == {0.0: Row(0), 1.0: Row(1)}


def test_calls_without_marks_have_no_rows():
    unet = UNet()
    reader = RowReader(unet)
    reader.attach()
    unet(torch.zeros(2, 4, 2, 2), context=torch.zeros(2, 3, 5))
    assert reader.rows_of(2) is None
    unet(torch.zeros(2, 4, 2, 2), context=torch.zeros(2, 3, 5), athanor_rows=(Row(),))
    assert reader.rows_of(2) is None and reader.rows_of(1) == (Row(),)


def test_nothing_stays_on_the_unet():
    unet = UNet()
    watchers = [RowReader(unet), MarkedChunks(unet)]
    for one in watchers:
        one.attach()
    assert len(unet._forward_pre_hooks) == 2
    for one in watchers:
        one.remove()
        one.remove()
    assert not unet._forward_pre_hooks


def test_forge_copies_options_deeply_and_the_marks_still_work():
    modifier = copy.deepcopy({"conditioning_modifiers": [marking()]})["conditioning_modifiers"][0]
    unet = UNet()
    reader = RowReader(unet)
    reader.attach()
    assert step(unet, reader, modifier, 1, 1, 1, 9) == {0.0: Row(), 900.0: Row(negative=True)}


def test_rows_of_fewer_pictures_are_repeated_like_tensors():
    rows = Rows([Row(0), Row(1)]).process_cond(5, "cpu").rows
    assert rows == (Row(0), Row(1), Row(0), Row(1), Row(0))


def test_additional_rows_of_regions_are_marked():
    unet = UNet()
    watcher = MarkedChunks(unet)
    watcher.attach()
    # Two pictures, one positive and one negative entry (laid out from back to front), and two rows of a region.
    options = {
        "cond_or_uncond": [1, 0],
        "sigmas": torch.ones(2),
        "cond_mark": torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0, 0.0]),
    }
    unet(torch.zeros(6, 4, 2, 2), context=torch.zeros(6, 3, 5), transformer_options=options)
    assert unet.options["cond_or_uncond"] == [1, 0, 0]
    assert unet.options["cond_indices"] == [2, 3, 4, 5] and unet.options["uncond_indices"] == [0, 1]
    assert options["cond_or_uncond"] == [1, 0]
