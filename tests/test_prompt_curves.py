"""Curves, windows, block weights and regions as numbers."""

from __future__ import annotations

import pytest

from extension.prompt import PRESETS, REGIONS, Blocks, Curve, Weights, block_of, effective, parse_prompt, schedule
from extension.prompt.blocks import TABLES
from extension.prompt.regions import ALIASES, named_region


def tag_of(text: str):
    parsed = parse_prompt(text)
    assert parsed.errors == ()
    return parsed.tags[0]


def unet(text: str, total: int) -> list[float]:
    return [round(weights.unet, 6) for weights in schedule(tag_of(text), total)]


def test_fractions_run_from_the_first_step_to_the_last():
    assert unet("<lora:x:0@0,1@1>", 5) == [0, 0.25, 0.5, 0.75, 1]
    assert unet("<lora:x:0@0,1@0.5>", 5) == [0, 0.5, 1, 1, 1]
    assert unet("<lora:x:0@0;1@.5;0~1>", 5) == [0, 0.5, 1, 0.5, 0]
    assert unet("<lora:x:0@0,1>", 3) == [0, 0.5, 1]
    assert unet("<lora:x:0@0,1@1>", 1) == [0]


def test_positions_beyond_one_are_steps():
    assert unet("<lora:x:0.75@0;0.5@3;1@6>", 9) == [0.75, 0.666667, 0.583333, 0.5, 0.666667, 0.833333, 1, 1, 1]
    assert unet("<lora:x:0.5@5,1.0@10>", 12) == [0.5] * 6 + [0.6, 0.7, 0.8, 0.9, 1, 1]


def test_order_does_not_matter_and_negative_weights_count():
    assert tag_of("<lora:x:1@1,-1@0>") == tag_of("<lora:x:-1@0,1@1>")
    assert unet("<lora:x:-1@0,1@1>", 3) == [-1, 0, 1]


def test_a_place_that_stands_twice_is_a_jump():
    assert unet("<lora:x:0@0,0@2,1@2,1@4>", 5) == [0, 0, 1, 1, 1]


def test_a_curve_of_one_point_is_constant():
    assert tag_of("<lora:x:0.8@0.5>").te == Curve.flat(0.8)
    assert tag_of("<lora:x:0.8@0,0.8@1>").te.constant == 0.8


def test_curves_agree_with_numpy():
    numpy = pytest.importorskip("numpy")
    points = ((0.0, 0.3), (2.5, -1.0), (4.0, 2.0), (9.0, 0.0))
    curve = Curve(points, in_steps=True)
    for step in range(12):
        expected = numpy.interp(step, [p for p, _ in points], [w for _, w in points])
        assert curve.at(step, 12) == pytest.approx(expected, abs=1e-12)


def test_windows_count_steps_already_done():
    assert unet("<lora:x:1:step=5-15>", 20) == [0] * 5 + [1] * 10 + [0] * 5
    assert unet("<lora:x:1:start=2>", 4) == [0, 0, 1, 1]
    assert unet("<lora:x:1:stop=1>", 4) == [1, 0, 0, 0]
    assert unet("<lora:x:1:start=0.25:stop=0.75>", 8) == [0, 0, 1, 1, 1, 1, 0, 0]
    assert unet("<lora:x:1:stop=1.0>", 3) == [1, 1, 1]
    assert unet("<lora:x:0@0,1@1:start=2>", 5) == [0, 0, 0.5, 0.75, 1]
    assert effective(tag_of("<lora:x:0.5:0.7:stop=1>"), 0, 4) == Weights(0.5, 0.7)
    assert effective(tag_of("<lora:x:0.5:0.7:stop=1>"), 1, 4) == Weights(0.0, 0.0)


def test_adjoining_windows_share_a_run():
    for total in (7, 10, 33, 100):
        for part in range(1, 100):
            first, second = unet(f"<lora:x:1:stop=0.{part:02}>", total), unet(f"<lora:x:1:start=0.{part:02}>", total)
            assert [a + b for a, b in zip(first, second, strict=True)] == [1] * total
    assert unet("<lora:x:1:stop=0.29>", 100) == [1] * 29 + [0] * 71


# The presets of sd-webui-lora-block-weight on the 17 blocks of a plain SD1 LoRA.
LBW_17 = {
    "NONE": "0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0",
    "ALL": "1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1",
    "INS": "1,1,1,1,0,0,0,0,0,0,0,0,0,0,0,0,0",
    "IND": "1,0,0,0,1,1,1,0,0,0,0,0,0,0,0,0,0",
    "INALL": "1,1,1,1,1,1,1,0,0,0,0,0,0,0,0,0,0",
    "MIDD": "1,0,0,0,1,1,1,1,1,1,1,1,0,0,0,0,0",
    "OUTD": "1,0,0,0,0,0,0,0,1,1,1,1,0,0,0,0,0",
    "OUTS": "1,0,0,0,0,0,0,0,0,0,0,0,1,1,1,1,1",
    "OUTALL": "1,0,0,0,0,0,0,0,1,1,1,1,1,1,1,1,1",
}


@pytest.mark.parametrize("preset", sorted(LBW_17))
def test_presets_equal_those_people_know(preset):
    by_name = tag_of(f"<lora:x:1:lbw={preset.lower()}>").blocks.weights("sd1")
    by_number = tag_of(f"<lora:x:1:lbw={LBW_17[preset]}>").blocks.weights("sd1")
    assert [by_name[block] for block in TABLES[17]] == [by_number[block] for block in TABLES[17]]
    assert set(PRESETS) == set(LBW_17)


def test_presets_cover_every_family():
    for family, count in (("sd1", 26), ("sd2", 26), ("sdxl", 20)):
        assert list(Blocks(preset="ALL").weights(family).values()) == [1.0] * count
        assert list(Blocks(preset="NONE").weights(family).values()) == [0.0] * count
    deep, shallow = Blocks(preset="OUTD").weights("sdxl"), Blocks(preset="OUTS").weights("sdxl")
    outputs = [block for block in deep if block.startswith("OUT")]
    assert all(deep[block] + shallow[block] == 1 for block in outputs)


def test_numbers_of_each_length_reach_their_blocks():
    for length, names in TABLES.items():
        values = ",".join(str(index) for index in range(length))
        blocks = tag_of(f"<lora:x:1:lbw={values}>").blocks
        family = "sdxl" if length in (12, 20) else "sd1"
        weights = blocks.weights(family)
        assert [weights[name] for name in names] == list(range(length))
        assert all(weights[name] == 0 for name in weights if name not in names)
        assert blocks.fits(family) and not blocks.fits("sd1" if family == "sdxl" else "sdxl")


def test_blocks_of_layers():
    assert block_of("input_blocks.4.1.transformer_blocks.0.attn1.to_q") == "IN04"
    assert block_of("model.diffusion_model.output_blocks.11.0.in_layers.2") == "OUT11"
    assert block_of("middle_block.1.proj_in") == "M00"
    assert block_of("time_embed.0") is None and block_of("out.2") is None and block_of("input_blocks") is None


def test_every_unet_layer_has_a_block_of_its_family():
    from trainers.formats.families import FAMILIES
    from trainers.formats.sites import unet_sites

    for name, family in FAMILIES.items():
        blocks = Blocks(preset="ALL").weights(name)
        assert {block_of(site.ldm_path) for site in unet_sites(family, conv3x3=True)} <= blocks.keys() | {None}
        with_attention = {block_of(site.ldm_path) for site in unet_sites(family)}
        assert with_attention == set(TABLES[12 if name == "sdxl" else 17]) - {"BASE"}


def test_regions():
    assert named_region("Left").cells(64, 48) == (0, 0, 32, 48)
    assert named_region("centre") == named_region("center") and named_region("Top_Third") == named_region("top third")
    assert named_region("nowhere") is None
    assert all(target in REGIONS for target in ALIASES.values())
    for left, top, right, bottom in REGIONS.values():
        assert 0 <= left < right <= 1 and 0 <= top < bottom <= 1


@pytest.mark.parametrize(
    "names",
    [
        ("left", "right"),
        ("top", "bottom"),
        ("left-third", "middle-third", "right-third"),
        ("top-third", "middle-row", "bottom-third"),
        ("top-left", "top-right", "bottom-left", "bottom-right"),
    ],
)
def test_neighbouring_regions_cover_the_picture_once(names):
    for width, height in ((64, 64), (61, 47), (7, 5)):
        seen = [[0] * width for _ in range(height)]
        for name in names:
            left, top, right, bottom = named_region(name).cells(width, height)
            for row in range(top, bottom):
                for column in range(left, right):
                    seen[row][column] += 1
        assert all(cell == 1 for row in seen for cell in row)
