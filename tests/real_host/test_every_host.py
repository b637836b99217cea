"""What tags do in every real WebUI: pictures with our injection beside those of the WebUI alone."""

from __future__ import annotations

import numpy as np
import pytest
from host_fixtures import MERGED, READS, TILES, tag, without_hashes
from kinds import KINDS
from older_methods import NAME
from server import PROMPT

PART = "<lora:k_lora:0.7:for=part>"


def test_a_picture_without_tags_is_the_hosts_own(hosts):
    assert hosts.ours().away_from(hosts.alone()) == 0
    assert hosts.ours().infotext == hosts.alone().infotext


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_draws_as_the_hosts_own_loader(hosts, kind):
    """Kinds that this WebUI's own loader does not read act too."""
    drawn = hosts.ours(tag(kind))
    assert drawn.away_from(hosts.ours()) > 2
    assert f"k_{kind}: " in drawn.infotext.partition("Lora hashes: ")[2]
    if kind in hosts.reads:
        other = hosts.alone(tag(kind))
        assert drawn.away_from(other) <= 1
        assert without_hashes(drawn.infotext) == without_hashes(other.infotext)


def test_weight_zero_is_no_tag(hosts):
    assert hosts.ours(tag("lora", 0)).away_from(hosts.ours()) == 0


def test_text_and_unet_weights_apart_and_two_at_once(hosts):
    for text in (f"{PROMPT} <lora:k_lora:0.3:0.9>", f"{PROMPT} <lora:k_lora:0.5> <lora:k_loha:0.4>"):
        assert hosts.ours(text).away_from(hosts.alone(text)) <= 1


def test_a_batch_of_pictures_and_parts(hosts):
    text = f"{PROMPT} AND a green square:0.5 <lora:k_lora:0.7>"
    one, other = hosts.ours(text, batch_size=2), hosts.alone(text, batch_size=2)
    assert one.away_from(other) <= 1 and apart(one.pictures[1], other.pictures[1]) <= 1


def apart(one: np.ndarray, other: np.ndarray) -> int:
    return int(np.abs(one.astype(int) - other.astype(int)).max())


@pytest.mark.parametrize("prompt", ["a red circle TAG", "a red circle TAG AND a green square"], ids=["one part", "AND"])
def test_negative_rows_and_parts_together_are_all_rows(hosts, prompt):
    everywhere = hosts.ours(f"{prompt.replace('TAG', '')} <lora:k_lora:0.7>")
    split = f"{prompt.replace('TAG', PART)} {PART if 'AND' in prompt else ''}"
    assert hosts.ours(split, "blurry <lora:k_lora:0.7>").away_from(everywhere) <= 1
    assert hosts.ours(split).away_from(everywhere) > 2


def test_a_tag_in_the_negative_prompt_acts_on_its_rows_only(hosts):
    drawn = hosts.ours(PROMPT, "blurry <lora:k_lora:0.7>")
    assert drawn.away_from(hosts.ours()) > 2 and drawn.away_from(hosts.ours(tag("lora"))) > 2
    assert "Lora hashes" in drawn.infotext


def test_pictures_of_a_batch_have_tags_of_their_own(hosts):
    one, other = (f"{PROMPT} <lora:k_{kind}:0.7:for=picture>" for kind in ("lora", "loha"))
    both = hosts.ours(f"(pictures: {one} | {other})", batch_size=2)
    expected = [hosts.ours(tag("lora")), hosts.ours(tag("loha"), seed=6)]
    assert all(apart(a, b.pictures[0]) <= 1 for a, b in zip(both.pictures, expected, strict=True))


def test_two_halves_of_the_run_are_the_whole(hosts):
    halves = f"{PROMPT} <lora:k_lora:0.7:start=0.5> <lora:k_lora:0.7:stop=0.5>"
    assert hosts.ours(halves).away_from(hosts.ours(tag("lora"))) <= 1
    assert hosts.ours(tag("lora", more=":start=0.5")).away_from(hosts.ours(tag("lora"))) > 2


@pytest.mark.parametrize("weights", ["te=0:unet=0.8", "te=0.8:unet=0", "0.8"], ids=["UNet", "text encoder", "both"])
@pytest.mark.parametrize("more", [{}, {"batch_size": 2}], ids=["one picture", "two"])
def test_two_halves_of_the_picture_are_the_whole(hosts, weights, more):
    """The row of each half has the prompt as it is read with its tag, so together they are the tag everywhere."""
    left, right = (f"<lora:k_lora:{weights}:mask={side}>" for side in ("left", "right"))
    whole, both = f"{PROMPT} AND a green square <lora:k_lora:{weights}>", f"{PROMPT} AND a green square {left} {right}"
    drawn = hosts.ours(both, **more)
    assert drawn.away_from(hosts.ours(whole, **more)) <= 1 and "Athanor:" not in drawn.infotext
    half = hosts.ours(f"{PROMPT} AND a green square {left}", **more)
    assert half.away_from(drawn) > 2 and half.away_from(hosts.ours(f"{PROMPT} AND a green square", **more)) > 2


def test_regions_in_prompts_of_other_lengths_and_with_windows(hosts):
    """Where the rows of a call are made equally long, those of regions are too."""
    long = "blurry, " + "ugly, " * 80
    left, right = (f"<lora:k_lora:0.8:mask={side}:stop=0.5>" for side in ("left", "right"))
    for settings in ({}, {"pad_cond_uncond": True}):
        both = hosts.ours(f"{PROMPT} {left} {right}", long, settings=settings)
        whole = hosts.ours(f"{PROMPT} <lora:k_lora:0.8:stop=0.5>", long, settings=settings)
        assert both.away_from(whole) <= 1 and both.away_from(hosts.ours(PROMPT, long, settings=settings)) > 2


@pytest.mark.parametrize("way", [{name: MERGED for name in READS}, TILES], ids=["merged tokens", "tiles"])
def test_where_attention_sees_fewer_tokens_or_more_rows(hosts, way):
    """Token merging leaves out some of a row's tokens, hypertile makes several rows of one: each keeps its tags."""
    if hosts.kind not in way:
        pytest.skip(f"{hosts.kind} has no hypertile")
    close = 4 if way is not TILES else 1  # which token is most like another is a choice that rounding may change
    way = way[hosts.kind]
    on, off = ({"width": 256, "height": 256, **way[switch]} for switch in ("on", "off"))
    try:
        drawn = hosts.ours(tag("lora"), **on)
        assert drawn.away_from(hosts.alone(tag("lora"), **on)) <= close
        assert hosts.ours(f"{PROMPT} {PART}", "blurry <lora:k_lora:0.7>", **on).away_from(drawn) <= close
        negative = hosts.ours(PROMPT, "blurry <lora:k_lora:0.7>", **on)
        assert negative.away_from(drawn) > 2 * close and negative.away_from(hosts.ours(**on)) > 2 * close
        assert drawn.away_from(hosts.ours(tag("lora"), **off)) > close  # it does something here
    finally:
        hosts.ours(**off), hosts.alone(**off)


def test_the_hires_pass(hosts):
    drawn = hosts.ours(tag("lora"), **hosts.hires)
    assert drawn.away_from(hosts.alone(tag("lora"), **hosts.hires)) <= 1
    assert hosts.ours(tag("lora", more=":hr=0"), **hosts.hires).away_from(drawn) > 2
    assert hosts.ours(tag("lora", 0, ":hr=0"), **hosts.hires).away_from(hosts.ours(**hosts.hires)) == 0


def test_older_methods(hosts):
    """A1111's own hypernetworks stay its own; its relatives do nothing about them. None has aesthetic gradients."""
    before, hyper, gradient = hosts.model(), f"<hypernet:{NAME}:0.7>", f"<aesthetic:{NAME}:1:lr=1e-2>"
    own = hosts.alone(f"{PROMPT} {hyper}")
    expected = hosts.ours(f"{PROMPT} {hyper}") if hosts.kind == "a1111" else hosts.alone()
    assert own.away_from(expected) == 0 and hosts.ours(f"{PROMPT} {hyper}").away_from(hosts.ours()) > 2
    for one in [gradient] if hosts.kind == "a1111" else [gradient, hyper]:
        acting, zero = hosts.ours(f"{PROMPT} {one}"), one.replace(":0.7", ":0").replace(":1:", ":0:")
        assert acting.away_from(hosts.ours()) > 2 and "Athanor:" not in acting.infotext, acting.infotext
        assert hosts.ours(f"{PROMPT} {zero}").away_from(hosts.ours()) == 0
        assert hosts.ours(PROMPT, f"blurry {one}").away_from(hosts.ours()) > 2
        halves = "".join(f"{one[:-1]}:mask={side}>" for side in ("top", "bottom"))
        assert hosts.ours(f"{PROMPT} {halves}").away_from(acting) <= 1
    both = hosts.ours(f"{tag('lora')}{gradient}")
    assert "Athanor:" not in both.infotext and both.away_from(hosts.ours(tag("lora"))) > 2
    assert "did you mean" in hosts.ours(f"{PROMPT} <aesthetic:{NAME}s:1>").infotext
    assert hosts.ours(fresh=True).away_from(hosts.alone()) == 0 and hosts.model() == before


# --- the model


def test_the_models_weights_are_never_touched(hosts):
    before = hosts.model()
    hosts.ours.server.get("/neighbour/seen")
    for kind in ("lora", "dora", "oft"):
        hosts.ours(f"{tag(kind)} (checksum)")
    assert hosts.ours.server.get("/neighbour/seen")["checksums"] == [before["checksum"]]
    assert hosts.model() == before


def test_an_exception_in_mid_sampling_leaves_nothing(hosts):
    before = hosts.model()
    with pytest.raises(RuntimeError):
        hosts.ours(f"{tag('lora', more=':mask=left')} <lora:k_dora:0.7> (trouble)", steps=4)
    assert hosts.ours(fresh=True).away_from(hosts.alone()) == 0
    assert hosts.model() == before


def test_the_tags_go_back_to_the_host_and_come_again(hosts):
    with hosts.given_back():
        assert hosts.ours(tag("loha"), fresh=True).away_from(hosts.alone(tag("loha"))) == 0
        assert "there is no LoRA" not in hosts.ours(f"{PROMPT} <lora:k_locn:1>", fresh=True).infotext
    assert hosts.ours(fresh=True).away_from(hosts.alone()) == 0
    assert hosts.ours(tag("dora"), fresh=True).away_from(hosts.alone(tag("dora"))) <= 1


def test_a_model_of_an_unknown_kind_is_left_to_the_hosts_own_loader(hosts):
    if hosts.kind == "reforge":
        pytest.skip("reForge's models are told apart by their parts, which cannot be disguised")
    before = hosts.model()
    drawn = hosts.ours(f"{tag('lora')} (foreign)")
    assert "<lora:k_lora:0.7> went to the WebUI's own loader" in drawn.infotext
    assert "Lora hashes: " in drawn.infotext or hosts.kind == "forge"  # which writes none where it makes none
    with hosts.given_back():
        expected = hosts.ours(f"{tag('lora')} (foreign)", fresh=True)
    assert drawn.away_from(expected) == 0 and drawn.away_from(hosts.ours(f"{PROMPT} (foreign)")) > 2
    hosts.ours(fresh=True)
    assert hosts.model() == before


def test_nothing_of_ours_was_in_an_error(hosts):
    said = hosts.ours.server.said()
    ours = [line for line in said.splitlines() if "athanor_extension" in line]
    assert ours == [] and "corrupted" not in said
