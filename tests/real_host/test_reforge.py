"""The real reForge: pictures with our injection beside those of reForge alone; what it shares with the others is in
test_every_host.py."""

from __future__ import annotations

import re

import pytest
from kinds import write
from patcher_fixtures import tag
from server import PROMPT


@pytest.fixture
def ours(which_webui, patcher_servers):
    if which_webui != "reforge":
        pytest.skip("the WebUI is not reForge")
    return patcher_servers[0]


@pytest.fixture
def alone(patcher_servers):
    return patcher_servers[1]


def test_a_picture_without_tags_is_reforges_own(ours, alone):
    assert ours().away_from(alone()) == 0
    assert ours().infotext == alone().infotext


@pytest.mark.parametrize("kind", ["lora", "tucker", "loha", "lokr", "dora", "glora", "full_bias"])
def test_every_kind_draws_as_its_own_loader(ours, alone, kind):
    one, other = ours(tag(kind)), alone(tag(kind))
    assert one.away_from(other) <= 1 and one.away_from(ours()) > 2
    # Without hashing (see the servers' flags) its own loader writes no hashes.
    assert re.sub(r"Lora hashes: \"[^\"]*\", ", "", one.infotext) == other.infotext


@pytest.mark.parametrize("kind", ["oft", "ia3", "norm"])
def test_kinds_it_does_not_read_act_too(ours, kind):
    assert ours(tag(kind)).away_from(ours()) > 2


def test_weight_zero_is_no_tag(ours):
    assert ours(tag("lora", 0)).away_from(ours()) == 0


@pytest.mark.parametrize("prompt", ["a red circle TAG", "a red circle TAG AND a green square"], ids=["one part", "AND"])
def test_negative_rows_and_parts_together_are_all_rows(ours, prompt):
    everywhere = ours(f"{prompt.replace('TAG', '')} <lora:k_lora:0.7>")
    part = "<lora:k_lora:0.7:for=part>"
    split = f"{prompt.replace('TAG', part)} {part if 'AND' in prompt else ''}"
    assert ours(split, "blurry <lora:k_lora:0.7>").away_from(everywhere) <= 1
    assert ours(split).away_from(everywhere) > 2


def test_pictures_of_a_batch_have_tags_of_their_own(ours):
    one, other = (f"{PROMPT} <lora:k_{kind}:0.7:for=picture>" for kind in ("lora", "loha"))
    both = ours(f"(pictures: {one} | {other})", batch_size=2)
    apart = [ours(tag("lora")), ours(tag("loha"), seed=6)]
    for drawn, expected in zip(both.pictures, apart, strict=True):
        assert abs(drawn.astype(int) - expected.pictures[0].astype(int)).max() <= 1


def test_two_halves_of_the_run_and_of_the_picture_are_the_whole(ours):
    halves = f"{PROMPT} <lora:k_lora:0.7:start=0.5> <lora:k_lora:0.7:stop=0.5>"
    assert ours(halves).away_from(ours(tag("lora"))) <= 1

    def one(more):
        return f"<lora:k_lora:te=0:unet=0.8{more}>"

    both = ours(f"{PROMPT} {one(':mask=left')} {one(':mask=right')}")
    assert both.away_from(ours(f"{PROMPT} {one('')}")) <= 1
    assert ours(f"{PROMPT} {one(':mask=left')}").away_from(both) > 2


def test_the_hires_pass(ours, alone):
    hires = {"enable_hr": True, "hr_upscaler": "Latent", "denoising_strength": 0.6, "hr_scale": 2}
    drawn = ours(tag("lora"), **hires)
    assert drawn.away_from(alone(tag("lora"), **hires)) <= 1
    assert ours(tag("lora", more=":hr=0"), **hires).away_from(drawn) > 2


def test_a_retrained_file_of_the_same_name_takes_effect_at_once(ours, patcher_folders, patcher_state):
    path = patcher_folders["lora"] / "athanor_again.safetensors"
    text = f"{PROMPT} <lora:athanor_again:0.7>"
    write(path, "lora", patcher_state, seed=1)
    first = ours(text, fresh=True)
    write(path, "lora", patcher_state, seed=2)
    assert ours(text, fresh=True).away_from(first) > 2
    write(path, "lora", patcher_state, seed=1)
    assert ours(text, fresh=True).away_from(first) == 0


def test_the_models_weights_are_never_touched(ours):
    before = ours.server.get("/neighbour/model")
    ours.server.get("/neighbour/seen")
    for kind in ("lora", "dora", "oft"):
        ours(f"{tag(kind)} (checksum)")
    assert ours.server.get("/neighbour/seen")["checksums"] == [before["checksum"]]
    assert ours.server.get("/neighbour/model") == before


def test_an_exception_in_mid_sampling_leaves_nothing(ours, alone):
    before = ours.server.get("/neighbour/model")
    with pytest.raises(RuntimeError):
        ours(f"{tag('lora')} (trouble)", steps=4)
    assert ours(fresh=True).away_from(alone()) == 0
    assert ours.server.get("/neighbour/model") == before


def test_the_tags_go_back_to_reforge_and_come_again(ours, alone):
    try:
        ours.server.post("/sdapi/v1/options", {"athanor_lora": False})
        assert ours(tag("loha"), fresh=True).away_from(alone(tag("loha"))) == 0
        assert "there is no LoRA" not in ours(f"{PROMPT} <lora:k_locn:1>", fresh=True).infotext
    finally:
        ours.server.post("/sdapi/v1/options", {"athanor_lora": True})
    assert ours(fresh=True).away_from(alone()) == 0
    assert ours(tag("dora"), fresh=True).away_from(alone(tag("dora"))) <= 1
