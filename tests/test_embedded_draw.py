"""Pictures of the embedded host: what a tag changes, and what it must leave alone."""

from __future__ import annotations

import shutil
import threading

import numpy as np
import pytest
import torch
from embedded_helpers import QUICK, apart, array, draw, make_studio, one, write_embedding, write_lora
from PIL import Image

from extension.hosts.embedded.conditioning import Text
from extension.hosts.embedded.engine import Studio
from extension.hosts.embedded.host import EmbeddedHost
from extension.hosts.embedded.places import Places
from extension.hosts.embedded.request import Request, settle
from extension.injection import Row
from trainers.bases.text import encode_prompts
from trainers.errors import InputError

PROMPT = "a red circle on a blue background"


@pytest.fixture(scope="module")
def studio(tmp_path_factory):
    studio = make_studio(tmp_path_factory.mktemp("data"))
    write_lora(studio.places.adapters / "noisy.safetensors", studio)
    write_lora(studio.places.adapters / "wordy.safetensors", studio, unet=False, text=True, size=0.5)
    write_embedding(studio.places.embeddings / "blotword.safetensors")
    write_embedding(studio.places.embeddings / "widething.safetensors", width=768)
    return studio


@pytest.fixture(scope="module")
def plain(studio):
    return one(studio, PROMPT)


# --- conditioning


def test_a_prompt_without_weights_is_encoded_as_the_trainers_do(studio):
    model = studio.model
    for prompt in (PROMPT, "", "thing, " * 60):
        cond = model.conditioner.encode(Text(prompt, Row()))
        with torch.no_grad():
            reference = encode_prompts(model.base, [prompt], 1)[0].hidden
        assert torch.allclose(cond.hidden, reference, atol=1e-6)
    weighted = model.conditioner.encode(Text("a (red:1.0) circle", Row()))
    assert torch.equal(weighted.hidden, model.conditioner.encode(Text("a red circle", Row())).hidden)


def test_sizes_come_from_the_model(studio):
    assert settle(Request(), studio.model.native_size).width == 64 == studio.model.native_size[1]


# --- tags


def test_a_lora_changes_the_picture_and_nothing_at_weight_zero(studio, plain):
    assert apart(one(studio, f"{PROMPT}<lora:noisy:1>"), plain) > 20
    assert apart(one(studio, f"{PROMPT}<lora:noisy:0>"), plain) == 0
    assert apart(one(studio, PROMPT), plain) == 0


def test_a_text_encoder_lora_acts_through_the_conditioning(studio, plain):
    assert apart(one(studio, f"{PROMPT}<lora:wordy:1>"), plain) > 5
    assert apart(one(studio, f"{PROMPT}<lora:wordy:te=0>"), plain) == 0


def test_a_window_acts_on_its_steps_only(studio, plain):
    early, late = one(studio, f"{PROMPT}<lora:wordy:1:step=0-1>"), one(studio, f"{PROMPT}<lora:wordy:1:step=1-3>")
    whole = one(studio, f"{PROMPT}<lora:wordy:1>")
    assert apart(early, plain) > 0 and apart(early, whole) > 0 and apart(early, late) > 0
    assert apart(one(studio, f"{PROMPT}<lora:wordy:1:step=0-3>"), whole) == 0
    assert apart(one(studio, f"{PROMPT}<lora:noisy:1:step=3-5>"), plain) == 0


def test_a_tag_in_the_negative_prompt_acts_on_the_negative_side(studio, plain):
    negative = one(studio, PROMPT, negative_prompt="<lora:noisy:1>")
    both = one(studio, f"{PROMPT}<lora:noisy:1>")
    assert apart(negative, plain) > 20 and apart(negative, both) > 20
    # Without guidance nobody looks at the negative side.
    assert (
        apart(one(studio, PROMPT, negative_prompt="<lora:noisy:1>", cfg_scale=1), one(studio, PROMPT, cfg_scale=1)) == 0
    )


def test_a_tag_for_one_picture_leaves_the_others_alone(studio):
    prompts = [PROMPT, f"{PROMPT}<lora:noisy:1:for=picture>", PROMPT]
    drawn = [picture.image for picture in draw(studio, prompts, batch_size=3).pictures]
    alone = [picture.image for picture in draw(studio, [PROMPT] * 3, batch_size=3).pictures]
    assert [apart(a, b) > 20 for a, b in zip(drawn, alone, strict=True)] == [False, True, False]
    assert apart(drawn[0], alone[0]) <= 1 and apart(drawn[2], alone[2]) <= 1


def test_a_tag_for_one_part_of_the_prompt_acts_on_that_part(studio):
    parts = "a red circle{} AND a green square{} :0.0"
    first, second = parts.format("<lora:noisy:1:for=part>", ""), parts.format("", "<lora:noisy:1:for=part>")
    bare = one(studio, parts.format("", ""))
    assert apart(one(studio, first), bare) > 20
    assert apart(one(studio, second), bare) <= 1  # it acts on a part that has no say


def test_a_region_changes_its_part_of_the_picture(studio, plain):
    drawn = one(studio, f"{PROMPT}<lora:noisy:1:mask=left>")
    difference = abs(array(drawn) - array(plain)).mean(axis=2)
    assert difference[:, :24].mean() > 2 * difference[:, 40:].mean()


@pytest.mark.parametrize("name", ["noisy", "wordy"], ids=["UNet's part", "text encoder's part"])
def test_two_halves_of_the_picture_are_the_whole(studio, plain, name):
    whole = one(studio, f"{PROMPT}<lora:{name}:1>")
    both = one(studio, f"{PROMPT}<lora:{name}:1:mask=left><lora:{name}:1:mask=right>")
    assert apart(both, whole) <= 1 and apart(one(studio, f"{PROMPT}<lora:{name}:1:mask=left>"), both) > 2
    negative = one(studio, PROMPT, negative_prompt=f"<lora:{name}:1:mask=left><lora:{name}:1:mask=right>")
    assert apart(negative, one(studio, PROMPT, negative_prompt=f"<lora:{name}:1>")) <= 1
    assert apart(negative, plain) > 2


def test_the_same_lora_twice_adds_up(studio):
    twice = one(studio, f"{PROMPT}<lora:noisy:0.25><lora:noisy:0.25>")
    assert apart(twice, one(studio, f"{PROMPT}<lora:noisy:0.5>")) <= 1


def test_a_file_that_is_trained_again_takes_effect(studio, plain):
    path = studio.places.adapters / "again.safetensors"
    write_lora(path, studio, size=0.1)
    first = one(studio, f"{PROMPT}<lora:again>")
    write_lora(path, studio, size=0.2)
    assert apart(one(studio, f"{PROMPT}<lora:again>"), first) > 5
    path.unlink()
    said = draw(studio, f"{PROMPT}<lora:again>")
    assert apart(said.pictures[0].image, plain) == 0 and "again" in said.reports[0]


def test_the_result_of_a_run_is_found_where_it_lies(studio, plain):
    runs = studio.places.data / "runs"
    write_lora(runs / "one" / "fresh.safetensors", studio)
    write_lora(runs / "one" / "state" / "10" / "deeper.safetensors", studio)
    (runs / "one" / "prior.pt").write_bytes(b"what forgetting is measured on")
    write_embedding(runs / "two" / "word.safetensors", module="athanor.textual_inversion")
    try:
        assert apart(one(studio, f"{PROMPT}<lora:fresh>"), plain) > 20
        assert not {"word", "deeper", "prior"} & set(studio.library.adapters.names())
    finally:
        shutil.rmtree(runs)


def test_embeddings_by_name_and_by_tag(studio):
    named = one(studio, "a blotword circle")
    assert apart(named, one(studio, "a blot circle")) > 0
    assert apart(named, one(studio, "a <ti:blotword> circle")) == 0
    assert apart(named, one(studio, "a BLOTWORD circle")) == 0
    assert apart(named, one(studio, "a <ti:blotword:0.3> circle")) > 0
    assert apart(one(studio, "a <ti:blotword:0> circle"), one(studio, "a circle")) == 0
    half = one(studio, "a <ti:blotword:1:stop=1> circle")
    assert apart(half, named) > 0 and apart(half, one(studio, "a circle")) > 0


def test_what_does_not_fit_is_said_with_the_picture(studio):
    drawn = draw(studio, "a widething circle <lora:noisi:1> <lora:noisy:x> <ti:blotwort>")
    said = "\n".join(drawn.reports)
    for words in ('"widething"', 'did you mean "noisy"', '"x"', 'did you mean "blotword"'):
        assert words in said
    assert "Athanor: " in drawn.pictures[0].infotext
    assert "<lora:noisi:1>" in drawn.pictures[0].infotext.splitlines()[0]


def test_hashes_of_what_was_used_are_written(studio):
    text = draw(studio, f"{PROMPT}, blotword <lora:noisy:0.5>").pictures[0].infotext
    assert "Lora hashes: " in text and "noisy: " in text
    assert "TI hashes: " in text and "blotword: " in text


def test_nothing_is_left_on_the_model(studio):
    before = {name: value.clone() for name, value in studio.model.base.unet.state_dict().items()}
    draw(studio, f"{PROMPT}<lora:noisy:1><lora:wordy:1:mask=left>")
    assert all(torch.equal(value, before[name]) for name, value in studio.model.base.unet.state_dict().items())
    modules = [*studio.model.base.unet.modules(), *studio.model.base.text_encoders[0].modules()]
    hooks = [hook for one in modules for hook in [*one._forward_hooks.values(), *one._forward_pre_hooks.values()]]
    # transformers keeps hooks of its own on a text model.
    assert not [hook for hook in hooks if getattr(hook, "__module__", type(hook).__module__).startswith("extension")]
    assert studio.model.injection.current is None


def test_the_rest_of_the_extension_sees_a_host(studio):
    host = EmbeddedHost(studio)
    model = host.model()
    assert (host.name, model.family, model.widths) == ("embedded", "sd1", {"text_encoder": 64})
    assert set(model.parts) == {"unet", "text_encoder"} and "circle</w>" in model.vocabulary
    assert host.folders().adapters[0] == studio.places.adapters and host.register() is None
    assert host.option("none such", 3) == 3


# --- batches, seeds, parts


def test_a_picture_does_not_depend_on_its_neighbours(studio):
    long = f"{PROMPT}, " + "thing, " * 50
    together = draw(studio, [PROMPT, long, PROMPT], batch_size=3, sampler_name="Euler a").pictures
    for number, picture in enumerate(together):
        prompt = long if number == 1 else PROMPT
        alone = one(studio, prompt, seed=QUICK["seed"] + number, sampler_name="Euler a")
        assert picture.seed == QUICK["seed"] + number and apart(picture.image, alone) <= 1
    split = draw(studio, PROMPT, batch_size=1, n_iter=2).pictures
    assert apart(split[1].image, one(studio, PROMPT, seed=QUICK["seed"] + 1)) == 0


def test_parts_of_a_prompt_and_their_weights(studio):
    single = one(studio, "a red circle")
    assert apart(one(studio, "a red circle AND a red circle :0"), single) <= 1
    assert apart(one(studio, "a red circle :0.5 AND a red circle :0.5"), single) <= 1
    assert apart(one(studio, "a red circle AND a blue square"), single) > 10


def test_prompt_editing_changes_the_text_in_mid_run(studio):
    edited = one(studio, "a [red circle:blue square:1]")
    assert apart(edited, one(studio, "a red circle")) > 5 and apart(edited, one(studio, "a blue square")) > 5
    assert apart(one(studio, "a [red circle:blue square:0]"), one(studio, "a blue square")) == 0


def test_picture_to_picture_by_strength(studio):
    start = Image.new("RGB", (64, 64), (220, 40, 40))
    small = one(studio, "a blue square", init_images=[start], denoising_strength=0.0, steps=5)
    large = one(studio, "a blue square", init_images=[start], denoising_strength=1.0, steps=5)
    assert abs(array(small) - array(start)).mean() < 25 < abs(array(large) - array(start)).mean()
    wide = one(studio, "a blue square", init_images=[start.resize((100, 50))], resize_mode=1)
    assert wide.size == (64, 64)


def test_the_hires_pass_is_larger_and_has_its_own_weight(studio):
    larger = {"enable_hr": True, "hr_scale": 1.5, "denoising_strength": 0.7}
    bare = draw(studio, PROMPT, **larger).pictures[0]
    assert bare.image.size == (96, 96) and "Hires upscale: 1.5" in bare.infotext
    off = one(studio, f"{PROMPT}<lora:noisy:0:hr=0>", **larger)
    only_then = one(studio, f"{PROMPT}<lora:noisy:0:hr=1>", **larger)
    assert apart(off, bare.image) == 0 and apart(only_then, bare.image) > 20


def test_the_strip_goes_from_noise_to_the_result(studio):
    picture = draw(studio, PROMPT, steps=4, strip=True).pictures[0]
    strip = np.asarray(picture.strip)
    assert strip.shape[0] == 64 and strip.shape[1] > 4 * 64
    assert (strip[:, -64:] == np.asarray(picture.image)).all()


def test_a_job_can_be_stopped(studio):
    result = {}
    thread = threading.Thread(target=lambda: result.update(drawn=draw(studio, PROMPT, steps=200, n_iter=3)))
    thread.start()
    while not studio.progress.step and thread.is_alive():
        threading.Event().wait(0.01)
    studio.progress.stop()
    thread.join(30)
    assert result["drawn"].stopped and len(result["drawn"].pictures) == 1
    assert studio.progress.fraction == 0 and not studio.progress.job


def test_what_will_not_do_is_said_before_anything_is_drawn():
    for wrong in ({"steps": 0}, {"width": 60}, {"sampler_name": "none such"}, {"cfg_scale": float("nan")}):
        with pytest.raises(InputError):
            settle(Request(**wrong), (64, 64))


@pytest.mark.parametrize(("family", "layout"), [("sd1", "diffusers"), ("sd2", "ldm"), ("sdxl", "ldm")])
def test_other_families_and_folders_draw(tiny_base, tmp_path, family, layout):
    other = Studio(tiny_base(family, layout), Places(tmp_path), device="cpu")
    assert other.model.family == family and other.model.native_size[0] >= 512
    prompt = "a (red:1.2) circle, " + "thing, " * 40
    size = {"width": 64, "height": 64, "steps": 2}
    first = one(other, prompt, **size)
    assert first.size == (64, 64) and apart(first, one(other, prompt, **size)) == 0
    with torch.no_grad():
        cond = other.model.conditioner.encode(Text("a circle", Row()))
        reference = encode_prompts(other.model.base, ["a circle"], other.model.base.family.default_clip_skip)[0]
    assert torch.allclose(cond.hidden, reference.hidden, atol=1e-6)
    assert cond.pooled is None or torch.allclose(cond.pooled, reference.pooled, atol=1e-6)
    if family != "sdxl":
        return  # the others' regions are drawn above; here they have a pooled text of their own too
    write_lora(other.places.adapters / "zog.safetensors", other, text=True)
    whole = one(other, f"{prompt}<lora:zog>", **size)
    halves = one(other, f"{prompt}<lora:zog:1:mask=left><lora:zog:1:mask=right>", **size)
    assert apart(halves, whole) <= 1 and apart(whole, first) > 2
