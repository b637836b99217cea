"""The real Forge: pictures with our injection beside those of Forge alone, on a random model of SD1.5's shapes."""

from __future__ import annotations

import pytest
import torch
from kinds import write
from older_methods import NAME, write_older
from patcher_fixtures import OF_OURS_ONLY, THEIRS, tag
from server import PROMPT

from trainers.formats import safetensors_io


@pytest.fixture
def ours(which_webui, patcher_servers):
    if which_webui != "forge":
        pytest.skip("the WebUI is not Forge")
    return patcher_servers[0]


@pytest.fixture
def alone(patcher_servers):
    return patcher_servers[1]


def test_a_picture_without_tags_is_forges_own(ours, alone):
    assert ours().away_from(alone()) == 0
    assert ours().infotext == alone().infotext


@pytest.mark.parametrize("kind", THEIRS)
def test_every_kind_it_reads_draws_as_its_own_loader(ours, alone, kind):
    drawn = ours(tag(kind))
    assert drawn.away_from(alone(tag(kind))) <= 1
    assert drawn.away_from(ours()) > 2
    assert f"Lora hashes: k_{kind}: " in drawn.infotext or f'Lora hashes: "k_{kind}: ' in drawn.infotext


@pytest.mark.parametrize("kind", OF_OURS_ONLY)
def test_kinds_it_does_not_read_act_too(ours, kind):
    assert ours(tag(kind)).away_from(ours()) > 2


def test_nothing_is_left_behind(ours, alone):
    ours(tag("lora"))
    assert ours(fresh=True).away_from(alone()) == 0


def test_weight_zero_is_no_tag(ours):
    assert ours(tag("lora", 0)).away_from(ours()) == 0


def test_text_and_unet_weights_apart(ours, alone):
    text = f"{PROMPT} <lora:k_lora:0.3:0.9>"
    assert ours(text).away_from(alone(text)) <= 1


def test_a_batch_of_pictures_and_parts(ours, alone):
    text = f"{PROMPT} AND a green square:0.5 <lora:k_lora:0.7>"
    one, other = ours(text, batch_size=2), alone(text, batch_size=2)
    assert one.away_from(other) <= 1 and abs(one.pictures[1].astype(int) - other.pictures[1].astype(int)).max() <= 1


@pytest.mark.parametrize("prompt", ["a red circle TAG", "a red circle TAG AND a green square"], ids=["one part", "AND"])
def test_negative_rows_and_parts_together_are_all_rows(ours, prompt):
    everywhere = ours(f"{prompt.replace('TAG', '')} <lora:k_lora:0.7>")
    part = "<lora:k_lora:0.7:for=part>"
    split = f"{prompt.replace('TAG', part)} {part if 'AND' in prompt else ''}"
    assert ours(split, "blurry <lora:k_lora:0.7>").away_from(everywhere) <= 1
    assert ours(split).away_from(everywhere) > 2


def test_a_tag_in_the_negative_prompt_acts_on_its_rows_only(ours):
    drawn = ours(PROMPT, "blurry <lora:k_lora:0.7>")
    assert drawn.away_from(ours()) > 2
    assert drawn.away_from(ours(tag("lora"))) > 2
    # Without guidance Forge leaves the negative rows out, so nothing of it is seen.
    assert ours(PROMPT, "blurry <lora:k_lora:0.7>", cfg_scale=1).away_from(ours(cfg_scale=1)) == 0


def test_a_tag_of_one_picture_acts_on_that_picture(ours):
    more = {"script_name": "Prompt matrix", "script_args": [False, False, "positive", "comma", 0], "batch_size": 2}
    _, first, second = ours(f"{PROMPT}|<lora:k_lora:0.7:for=picture>", **more).pictures
    for drawn, expected in ((first, ours()), (second, ours(f"{PROMPT}, <lora:k_lora:0.7>"))):
        assert abs(drawn.astype(int) - expected.pictures[0].astype(int)).max() <= 1


def test_two_halves_of_the_run_are_the_whole(ours):
    halves = f"{PROMPT} <lora:k_lora:0.7:start=0.5> <lora:k_lora:0.7:stop=0.5>"
    assert ours(halves).away_from(ours(tag("lora"))) <= 1
    assert ours(tag("lora", more=":start=0.5")).away_from(ours(tag("lora"))) > 2


def test_two_halves_of_the_picture_are_the_whole(ours):
    def one(more):
        return f"<lora:k_lora:te=0:unet=0.8{more}>"

    both = ours(f"{PROMPT} {one(':mask=left')} {one(':mask=right')}")
    assert both.away_from(ours(f"{PROMPT} {one('')}")) <= 1
    assert ours(f"{PROMPT} {one(':mask=left')}").away_from(both) > 2


def test_the_hires_pass(ours, alone):
    hires = {"enable_hr": True, "hr_upscaler": "Latent", "denoising_strength": 0.6, "hr_scale": 2, "hr_cfg": 5}
    hires["hr_additional_modules"] = ["Use same choices"]
    drawn = ours(tag("lora"), **hires)
    assert drawn.away_from(alone(tag("lora"), **hires)) <= 1
    assert ours(tag("lora", more=":hr=0"), **hires).away_from(drawn) > 2


def test_a_missing_file_is_reported_with_the_nearest_name(ours):
    drawn = ours(f"{PROMPT} <lora:k_locn:1>")
    assert 'there is no LoRA \\"k_locn\\"; did you mean \\"k_locon\\"?' in drawn.infotext
    assert drawn.away_from(ours()) == 0


def test_a_retrained_file_of_the_same_name_takes_effect_at_once(ours, patcher_folders, patcher_state):
    path = patcher_folders["lora"] / "athanor_again.safetensors"
    text = f"{PROMPT} <lora:athanor_again:0.7>"
    write(path, "lora", patcher_state, seed=1)
    first = ours(text, fresh=True)
    write(path, "lora", patcher_state, seed=2)
    assert ours(text, fresh=True).away_from(first) > 2
    write(path, "lora", patcher_state, seed=1)
    assert ours(text, fresh=True).away_from(first) == 0


def test_embeddings(ours, patcher_folders):
    generator = torch.Generator().manual_seed(3)
    vectors = torch.randn(2, 768, generator=generator) * 0.05
    path = patcher_folders["embedding"] / "athanorword.safetensors"
    safetensors_io.save(path, {"emb_params": vectors}, {})
    plain, named = ours("a drawing of "), ours("a drawing of athanorword")
    assert named.away_from(plain) > 2
    assert ours("a drawing of <ti:athanorword>").away_from(named) == 0
    assert ours("a drawing of <ti:athanorword:0>").away_from(plain) == 0
    safetensors_io.save(path, {"emb_params": -vectors}, {})
    assert ours("a drawing of athanorword", fresh=True).away_from(named) > 0
    path.unlink()
    assert ours("a drawing of athanorword", fresh=True).away_from(named) > 0


def test_older_methods(ours, alone, webui, patcher_state):
    """Forge does nothing about hypernetworks any more, and never had aesthetic gradients."""
    files = write_older(webui, patcher_state)
    gradient = f"<aesthetic:{NAME}:1:lr=1e-3>"
    try:
        for tag in (f"<hypernet:{NAME}:0.7>", gradient):
            acting = ours(f"{PROMPT} {tag}")
            assert acting.away_from(ours()) > 2 and "Athanor:" not in acting.infotext, acting.infotext
            assert ours(f"{PROMPT} {tag.replace(':0.7', ':0').replace(':1:', ':0:')}").away_from(ours()) == 0
            assert ours(PROMPT, f"blurry {tag}").away_from(ours()) > 2
        assert alone(f"{PROMPT} <hypernet:{NAME}:0.7>").away_from(alone()) == 0
        lora = f"{PROMPT} <lora:k_lora:0.7>"
        both = ours(f"{lora}{gradient}")
        assert "Athanor:" not in both.infotext and both.away_from(ours(lora)) > 2
        assert ours(fresh=True).away_from(alone()) == 0
    finally:
        for file in files:
            file.unlink()


def test_a_broken_file_is_reported_and_stays_where_it_is(ours, patcher_folders):
    path = patcher_folders["lora"] / "broken.safetensors"
    path.write_bytes(b"x" * 5000)
    drawn = ours(f"{PROMPT} <lora:broken:1>", fresh=True)
    assert drawn.away_from(ours()) == 0 and "broken" in drawn.infotext.split("Athanor: ")[1]
    assert str(path.parent) not in drawn.infotext  # pictures are shown to other people
    assert path.exists()  # Forge renames files that fail in its own readers
    path.unlink()


def test_the_tags_go_back_to_forge_and_come_again(ours, alone):
    try:
        ours.server.post("/sdapi/v1/options", {"athanor_lora": False})
        assert ours(tag("loha"), fresh=True).away_from(alone(tag("loha"))) == 0
        assert "there is no LoRA" not in ours(f"{PROMPT} <lora:k_locn:1>", fresh=True).infotext
    finally:
        ours.server.post("/sdapi/v1/options", {"athanor_lora": True})
    assert ours(fresh=True).away_from(alone()) == 0
    assert ours(tag("dora"), fresh=True).away_from(alone(tag("dora"))) <= 1


def test_nothing_of_ours_was_in_an_error(ours):
    said = ours.server.said()
    assert "athanor_extension" not in said and "Error calling" not in said and "corrupted" not in said
