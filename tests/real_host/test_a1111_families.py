"""The real AUTOMATIC1111 with tiny random SD2 and SDXL models, another checkpoint in mid-run, and little memory."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from a1111_fixtures import BASE, FLAGS
from kinds import write
from server import PROMPT, Server

from trainers.formats import safetensors_io

MAKE = Path(__file__).with_name("make_models.py")


@pytest.fixture(scope="module")
def checkpoints(webui, host_python, a1111_folders):
    """Tiny SD2 and SDXL, and a second base with the same weights; there before the servers list them."""
    folder = webui / "models" / "Stable-diffusion"
    encoder = folder / "athanor-base-text-encoder"
    subprocess.run([host_python, str(MAKE), str(folder), str(encoder)], cwd=webui, check=True, capture_output=True)
    for ending in (".safetensors", ".yaml"):
        shutil.copyfile(folder / f"athanor-base{ending}", folder / f"athanor-tiny-other{ending}")
    yield folder
    for path in folder.glob("athanor-tiny-*"):
        path.unlink()


@pytest.fixture(scope="module")
def pair(checkpoints, servers, a1111_folders):
    """Both servers with their checkpoints listed again."""
    for server in servers:
        server.post("/sdapi/v1/refresh-checkpoints")
    yield servers
    for server in servers:
        server.post("/sdapi/v1/options", {"sd_model_checkpoint": BASE})


@pytest.mark.parametrize("family", ["sd2", "sdxl"])
def test_other_families(pair, checkpoints, a1111_folders, family):
    name = f"athanor-tiny-{family}"
    state = safetensors_io.load(checkpoints / f"{name}.safetensors")[0]
    write(a1111_folders["lora"] / f"k_{family}.safetensors", "lora", state, family=family)
    for server in pair:
        server.post("/sdapi/v1/options", {"sd_model_checkpoint": f"{name}.safetensors"})
    ours, alone = pair
    plain = ours.draw()
    assert plain.away_from(alone.draw()) == 0
    text = f"{PROMPT} <lora:k_{family}:0.7>"
    tagged = ours.draw(text)
    assert tagged.away_from(plain) > 2
    assert tagged.away_from(alone.draw(text)) <= 1
    split = ours.draw(f"{PROMPT} <lora:k_{family}:0.7:for=part>", f"blurry <lora:k_{family}:0.7>")
    assert split.away_from(tagged) <= 1
    halves = "".join(f"<lora:k_{family}:0.7:mask={side}>" for side in ("left", "right"))
    assert ours.draw(f"{PROMPT} {halves}").away_from(tagged) <= 1
    foreign = ours.draw(f"{PROMPT} <lora:k_lora:0.7>")
    assert foreign.away_from(plain) == 0 and "does nothing" in foreign.infotext


def test_a_refiner_of_the_same_family_gets_the_tags_too(pair):
    ours = pair[0]
    ours.post("/sdapi/v1/options", {"sd_model_checkpoint": BASE})
    text = f"{PROMPT} <lora:k_lora:0.7>"
    switched = ours.draw(text, refiner_checkpoint="athanor-tiny-other", refiner_switch_at=0.5)
    assert "Refiner: " in switched.infotext
    assert switched.away_from(ours.draw(text)) == 0


def test_little_memory(webui, host_python, adapters, servers, tmp_path_factory):
    hires = {"enable_hr": True, "hr_upscaler": "Latent", "denoising_strength": 0.6}
    text = f"{PROMPT} <lora:k_lora:0.7:hr=0.3>"
    log = tmp_path_factory.mktemp("medvram") / "host.log"
    server = Server(host_python, webui, log, (*FLAGS, "--medvram"))
    try:
        server.wait()
        assert server.draw(text, **hires).away_from(servers[0].draw(text, **hires)) <= 1
    finally:
        server.stop()
