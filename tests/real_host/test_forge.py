"""The real Forge, where it differs from the others; what it shares with them is in test_every_host.py."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from host_fixtures import tag
from server import PROMPT

from trainers.formats import safetensors_io


@pytest.fixture
def ours(which_webui, hosts):
    if which_webui != "forge":
        pytest.skip("the WebUI is not Forge")
    return hosts.ours


def test_negative_rows_are_left_out_where_guidance_does_not_look_at_them(ours):
    tagged = ours(PROMPT, "blurry <lora:k_lora:0.7>", cfg_scale=1)
    assert tagged.away_from(ours(cfg_scale=1)) == 0


def test_a_tag_of_one_picture_of_a_prompt_matrix(ours):
    more = {"script_name": "Prompt matrix", "script_args": [False, False, "positive", "comma", 0], "batch_size": 2}
    _, first, second = ours(f"{PROMPT}|<lora:k_lora:0.7:for=picture>", **more).pictures
    for drawn, expected in ((first, ours()), (second, ours(f"{PROMPT}, <lora:k_lora:0.7>"))):
        assert abs(drawn.astype(int) - expected.pictures[0].astype(int)).max() <= 1


def test_a_switch_to_a_refiner(ours, hosts):
    """Another model takes over in mid-run: the tag acts on it too, and the first one is as it was."""
    name = "athanor-random-refiner"
    path = hosts.folder / "models" / "Stable-diffusion" / f"{name}.safetensors"
    state = dict(hosts.state)
    state["model.diffusion_model.out.2.weight"] = state["model.diffusion_model.out.2.weight"] * 1.5
    safetensors_io.save(path, state, {})
    try:
        for drawing in (ours, hosts.alone):
            drawing.server.post("/sdapi/v1/refresh-checkpoints")
        more = {"refiner_checkpoint": name, "refiner_switch_at": 0.5, "steps": 4}
        tagged, plain = ours(tag("lora"), **more), ours(**more)
        assert f"Refiner: {name}" in tagged.infotext
        assert tagged.away_from(hosts.alone(tag("lora"), **more)) <= 1 and tagged.away_from(plain) > 2
        assert plain.away_from(hosts.alone(**more)) == 0 and plain.away_from(ours(steps=4)) > 2
        halves = f"{PROMPT} <lora:k_lora:0.7:mask=left> <lora:k_lora:0.7:mask=right>"
        assert ours(halves, **more).away_from(tagged) <= 1
        assert ours(fresh=True).away_from(hosts.alone()) == 0
    finally:
        path.unlink()


def test_sd2_and_sdxl_in_its_own_patchers(which_webui, webui, host_python, tmp_path):
    """Forge knows their files at full size only, so its networks are built small: see `forge_families.py`."""
    if which_webui != "forge":
        pytest.skip("the WebUI is not Forge")
    script = Path(__file__).with_name("forge_families.py")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    subprocess.run([host_python, str(script), str(tmp_path)], cwd=webui, env=environment, check=True)
    found = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert len(found) == 10
    for name, one in found.items():
        assert one["apart"] < 1e-4 and one["acts"] > 0.1, (name, one)
        assert one["left"] == one["forge_left"] == 0 and not one["unread_by_forge"] and not one["said"], (name, one)
