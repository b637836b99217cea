"""The real AUTOMATIC1111, where it differs from the others; what it shares with them is in test_every_host.py."""

from __future__ import annotations

import hashlib
import threading
import time

import pytest
import torch
from server import PROMPT

from trainers.formats import safetensors_io


def tag(kind, weight=0.7, more=""):
    return f"{PROMPT} <lora:k_{kind}:{weight}{more}>"


@pytest.mark.parametrize("settings", [{"batch_cond_uncond": False}, {"skip_early_cond": 0.6}], ids=str)
@pytest.mark.parametrize("prompt", [PROMPT, "a red circle TAG AND a green square"], ids=["one part", "AND"])
def test_negative_rows_and_parts_together_are_all_rows(ours, settings, prompt):
    everywhere = ours.draw(f"{prompt.replace('TAG', '')} <lora:k_lora:0.7>", settings=settings)
    part = "<lora:k_lora:0.7:for=part>"
    split = f"{prompt.replace('TAG', part)} {part}"
    assert ours.draw(split, "blurry <lora:k_lora:0.7>", settings=settings).away_from(everywhere) <= 1
    only = ours.draw(split, settings=settings)
    assert only.away_from(everywhere) > 2 or "skip_early_cond" in settings


@pytest.mark.parametrize("sampler", ["Euler", "Heun", "DDIM"])
def test_two_halves_of_the_run_are_the_whole(ours, sampler):
    whole = ours.draw(tag("lora"), sampler_name=sampler)
    halves = f"{PROMPT} <lora:k_lora:0.7:start=0.5> <lora:k_lora:0.7:stop=0.5>"
    assert ours.draw(halves, sampler_name=sampler).away_from(whole) <= 1
    assert ours.draw(tag("lora", more=":start=0.5"), sampler_name=sampler).away_from(whole) > 2


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
