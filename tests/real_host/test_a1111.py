"""The real AUTOMATIC1111: pictures with our injection beside those of the host alone."""

from __future__ import annotations

import hashlib
import threading
import time

import pytest
import torch
from kinds import KINDS, write
from older_methods import NAME
from server import PROMPT

from trainers.formats import safetensors_io


def tag(kind, weight=0.7, more=""):
    return f"{PROMPT} <lora:k_{kind}:{weight}{more}>"


def test_a_picture_without_tags_is_the_hosts_own(ours, alone):
    one, other = ours.draw(), alone.drawn()
    assert one.away_from(other) == 0
    assert one.infotext == other.infotext


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_draws_as_the_hosts_own_loader(ours, alone, kind):
    one, other = ours.draw(tag(kind)), alone.drawn(tag(kind))
    assert one.away_from(other) <= 1
    assert one.away_from(alone.drawn()) > 10
    assert one.infotext == other.infotext  # `Lora hashes` too


def test_weight_zero_is_no_tag(ours):
    assert ours.draw(tag("lora", 0)).away_from(ours.draw()) == 0


def test_text_and_unet_weights_apart(ours, alone):
    text = f"{PROMPT} <lora:k_lora:0.3:0.9>"
    assert ours.draw(text).away_from(alone.drawn(text)) <= 1


def test_two_at_once(ours, alone):
    text = f"{PROMPT} <lora:k_lora:0.5> <lora:k_loha:0.4>"
    assert ours.draw(text).away_from(alone.drawn(text)) <= 1


@pytest.mark.parametrize("settings", [{}, {"batch_cond_uncond": False}, {"skip_early_cond": 0.6}], ids=str)
@pytest.mark.parametrize("prompt", [PROMPT, "a red circle TAG AND a green square"], ids=["one part", "AND"])
def test_negative_rows_and_parts_together_are_all_rows(ours, settings, prompt):
    everywhere = ours.draw(f"{prompt.replace('TAG', '')} <lora:k_lora:0.7>", settings=settings)
    part = "<lora:k_lora:0.7:for=part>"
    split = f"{prompt.replace('TAG', part)} {part}"
    assert ours.draw(split, "blurry <lora:k_lora:0.7>", settings=settings).away_from(everywhere) <= 1
    only = ours.draw(split, settings=settings)
    assert only.away_from(everywhere) > 2 or "skip_early_cond" in settings


def test_a_tag_in_the_negative_prompt_acts_on_its_rows_only(ours):
    drawn = ours.draw(PROMPT, "blurry <lora:k_lora:0.7>")
    assert drawn.away_from(ours.draw()) > 2
    assert drawn.away_from(ours.draw(tag("lora"))) > 2
    assert "Lora hashes" in drawn.infotext


def test_pictures_of_a_batch_have_tags_of_their_own(ours):
    one, other = (f"{PROMPT} <lora:k_{kind}:0.7:for=picture>" for kind in ("lora", "loha"))
    both = ours.draw(f"(pictures: {one} | {other})", batch_size=2)
    alone = [ours.draw(tag("lora")), ours.draw(tag("loha"), seed=6)]
    for drawn, expected in zip(both.pictures, alone, strict=True):
        assert abs(drawn.astype(int) - expected.pictures[0].astype(int)).max() <= 1


@pytest.mark.parametrize("sampler", ["Euler", "Heun", "DDIM"])
def test_two_halves_of_the_run_are_the_whole(ours, sampler):
    whole = ours.draw(tag("lora"), sampler_name=sampler)
    halves = f"{PROMPT} <lora:k_lora:0.7:start=0.5> <lora:k_lora:0.7:stop=0.5>"
    assert ours.draw(halves, sampler_name=sampler).away_from(whole) <= 1
    assert ours.draw(tag("lora", more=":start=0.5"), sampler_name=sampler).away_from(whole) > 2


def test_two_halves_of_the_picture_are_the_whole(ours):
    def one(more):
        return f"<lora:k_lora:te=0:unet=0.8{more}>"

    both = ours.draw(f"{PROMPT} {one(':mask=left')} {one(':mask=right')}")
    assert both.away_from(ours.draw(f"{PROMPT} {one('')}")) <= 1
    assert ours.draw(f"{PROMPT} {one(':mask=left')}").away_from(both) > 2


def test_the_hires_pass(ours, alone):
    hires = {"enable_hr": True, "hr_upscaler": "Latent", "denoising_strength": 0.6}
    drawn = ours.draw(tag("lora"), **hires)
    assert drawn.away_from(alone.drawn(tag("lora"), **hires)) <= 1
    assert ours.draw(tag("lora", more=":hr=0"), **hires).away_from(drawn) > 2
    assert ours.draw(tag("lora", 0, ":hr=0"), **hires).away_from(ours.draw(PROMPT, **hires)) == 0


def test_a_missing_file_is_reported_with_the_nearest_name(ours):
    drawn = ours.draw(f"{PROMPT} <lora:k_locn:1>")
    assert 'there is no LoRA \\"k_locn\\"; did you mean \\"k_locon\\"?' in drawn.infotext
    assert drawn.away_from(ours.draw()) == 0


def test_a_retrained_file_of_the_same_name_takes_effect_at_once(ours, a1111_folders, state):
    path = a1111_folders["lora"] / "again.safetensors"
    write(path, "lora", state, seed=1)
    text = f"{PROMPT} <lora:again:0.7>"
    first = ours.draw(text)
    assert first.away_from(ours.draw()) > 2
    write(path, "lora", state, seed=2)
    second = ours.draw(text)
    assert second.away_from(first) > 2
    write(path, "lora", state, seed=1)
    assert ours.draw(text).away_from(first) == 0


def test_embeddings(ours, a1111_folders, state):
    generator = torch.Generator().manual_seed(3)
    width = state["cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"].shape[1]
    for name in ("athanorword", "athanorodd"):
        vectors = torch.randn(2, width, generator=generator)
        tensors = {"emp_params": vectors, "note": torch.zeros(1)} if name == "athanorodd" else {"emb_params": vectors}
        safetensors_io.save(a1111_folders["embedding"] / f"{name}.safetensors", tensors, {})
    plain = ours.draw("a drawing of ")
    for name in ("athanorword", "athanorodd"):  # the second one only we can read
        named = ours.draw(f"a drawing of {name}")
        assert named.away_from(plain) > 2
        assert f"{name}: " in named.infotext  # TI hashes
        assert ours.draw(f"a drawing of <ti:{name}>").away_from(named) == 0
        assert ours.draw(f"a drawing of <ti:{name}:0>").away_from(plain) == 0
        assert ours.draw(f"a drawing of <ti:{name}:0.5>").away_from(named) > 0
        halves = ours.draw(f"a drawing of <ti:{name}:1:stop=0.5>")
        assert halves.away_from(named) > 0 and halves.away_from(plain) > 0
    safetensors_io.save(a1111_folders["embedding"] / "athanorword.safetensors", {"emb_params": vectors}, {})
    assert ours.draw("a drawing of athanorword").away_from(ours.draw("a drawing of athanorodd")) == 0


def test_the_tags_go_back_to_the_host_and_come_again(ours, alone):
    try:
        ours.post("/sdapi/v1/options", {"athanor_lora": False})
        assert ours.draw(tag("lora")).away_from(alone.drawn(tag("lora"))) == 0
        assert "there is no LoRA" not in ours.draw(f"{PROMPT} <lora:k_locn:1>").infotext
        ours.draw(tag("lora"))
    finally:
        ours.post("/sdapi/v1/options", {"athanor_lora": True})
    assert ours.draw().away_from(alone.drawn()) == 0
    assert ours.draw(tag("dora")).away_from(alone.drawn(tag("dora"))) <= 1


def test_another_checkpoint_load_leaves_nothing(ours):
    first = ours.draw(tag("lora"))
    ours.post("/sdapi/v1/reload-checkpoint")
    assert ours.draw(tag("lora")).away_from(first) == 0


def test_an_interrupted_picture_leaves_nothing(ours):
    drawing = threading.Thread(target=ours.draw, args=(tag("lora"),), kwargs={"steps": 60})
    drawing.start()
    time.sleep(1.5)
    ours.post("/sdapi/v1/interrupt")
    drawing.join()


def test_neighbours_with_packages_of_the_same_names(ours):
    model = ours.get("/neighbour/model")
    assert model["packages"] == {"extension": "aa-neighbour", "trainers": "zz-neighbour"}
    assert model["lora"].startswith("athanor_extension.")


def test_the_models_weights_are_never_touched(ours):
    before = ours.get("/neighbour/model")
    ours.get("/neighbour/seen")
    for kind in ("lora", "dora", "oft"):
        ours.draw(f"{tag(kind)} (checksum)")
    assert ours.get("/neighbour/seen")["checksums"] == [before["checksum"]]
    assert ours.get("/neighbour/model") == before


def test_older_methods(ours, alone):
    """Its own hypernetworks stay its own; aesthetic gradients act through us, on a copy of the text encoder."""
    text = f"{PROMPT} <hypernet:{NAME}:0.7>"
    assert ours.draw(text).away_from(alone.draw(text)) == 0 and alone.draw(text).away_from(alone.drawn()) > 10
    before = ours.get("/neighbour/model")
    gradient = f"<aesthetic:{NAME}:1:lr=1e-3>"
    acting = ours.draw(f"{PROMPT} {gradient}")
    assert acting.away_from(ours.draw()) > 10 and "Athanor:" not in acting.infotext
    assert ours.draw(PROMPT, f"blurry {gradient}").away_from(ours.draw()) > 2
    assert ours.draw(f"{PROMPT} <aesthetic:{NAME}:0>").away_from(ours.draw()) == 0
    both = ours.draw(f"{PROMPT} <lora:k_lora:0.7>{gradient}")
    assert both.away_from(acting) > 2 and both.away_from(ours.draw(f"{PROMPT} <lora:k_lora:0.7>")) > 2
    assert ours.get("/neighbour/model") == before
    assert "did you mean" in ours.draw(f"{PROMPT} <aesthetic:{NAME}s:1>").infotext


def test_an_exception_in_mid_sampling_leaves_nothing(ours):
    before = ours.get("/neighbour/model")
    with pytest.raises(RuntimeError):
        ours.draw(f"{tag('lora')} (trouble)")
    ours.draw()
    assert ours.get("/neighbour/model") == before


def test_generations_inside_generations(ours):
    def inside(text, around):
        ours.get("/neighbour/seen")
        drawn = ours.draw(f"{around} (inside: {text})", n_iter=2)
        return drawn, ours.get("/neighbour/seen")["inside"]

    def digest(drawn):
        return hashlib.sha256(drawn.pictures[0].tobytes()).hexdigest()

    plain, tagged = digest(ours.draw(PROMPT)), digest(ours.draw(tag("loha")))
    around = f"{PROMPT} <lora:k_lora:0.7>"
    drawn, inner = inside(PROMPT, around)
    assert inner == [plain, plain]
    other, inner = inside(tag("loha"), around)
    assert inner == [tagged, tagged]
    # The outer prompts have other words, but what is drawn inside must not matter for what is drawn after it.
    again = ours.draw(f"{around} (inside: {PROMPT})", seed=6)
    assert (drawn.pictures[-1] == again.pictures[-1]).all()
    assert other.pictures


def test_nothing_of_ours_was_in_an_error(ours):
    assert "athanor_extension" not in ours.said() and "Error calling" not in ours.said()
