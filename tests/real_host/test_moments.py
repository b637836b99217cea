"""What comes of a run in a real WebUI: drawn with while it trains, put where the WebUI looks, drawn by name, a grid;
and a run that outlives the WebUI, and its own trainer.

Works against AUTOMATIC1111, Forge and reForge. The trainers are those of this checkout (`ATHANOR_PYTHON` names another
Python).
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from a1111_fixtures import BASE, FLAGS
from patcher_fixtures import FLAGS as PATCHER_FLAGS
from server import PROMPT, Server
from training_helpers import make_pictures

NAME = "athanor-moments-test"
FORGE_FLAGS = (*PATCHER_FLAGS, "--nowebui")
FORGE_BASE = "athanor-random-sd15.safetensors"
CHECKS = ["amount", "quality", "buckets", "sameness", "dose", "rate", "learning", "captions", "trigger"]
SMALL = {"steps": 2, "width": 64, "height": 64}


class Host:
    """A WebUI that runs, its folder of LoRA files, and its queue."""

    def __init__(self, start: Callable[[], Server], webui: Path, base: Path, draws_hypernetworks: bool) -> None:
        self.start, self.webui, self.base = start, webui, base
        self.draws_hypernetworks = draws_hypernetworks
        self.server = start()
        self.folder = webui / "models" / "Lora"
        self.data = make_pictures(webui / "athanor" / "pictures" / NAME, 3)

    def train(self, **changes) -> str:
        job = {
            "method": "lora", "name": NAME, "base": str(self.base), "data": str(self.data), "trigger": "zkw ball",
            "resolution": 64, "steps": 80, "rank": 4, "learning_rate": 0.01, "device": "cpu", "threads": 1,
            "gpu_sharing": "side_by_side", "override_checks": CHECKS, "verdict": False, "sample_steps": 1, **changes,
        }  # fmt: skip
        return self.server.post("/athanor/v1/jobs", {"job": {k: v for k, v in job.items() if v is not None}})["id"]

    def run(self, run_id: str) -> dict:
        return self.server.get(f"/athanor/v1/jobs/{run_id}")

    def until(self, run_id: str, is_done, seconds: float = 400) -> dict:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            run = self.run(run_id)
            if is_done(run):
                return run
            assert run["state"] not in ("failed", "interrupted"), (run["problems"], run["log"][-15:])
            time.sleep(0.3)
        raise AssertionError((run["state"], run["doing"], run["log"][-15:]))

    def draw(self, tag: str):
        return self.server.draw(f"{PROMPT} {tag}", **SMALL)

    def tidy(self) -> None:
        for path in [*self.folder.glob(f"{NAME}*"), self.data]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        for run in (self.webui / "athanor" / "runs").glob(f"{NAME}*"):
            shutil.rmtree(run)


@pytest.fixture(scope="module")
def host(webui, kind_of_webui, host_python, tmp_path_factory):
    os.environ.setdefault("ATHANOR_PYTHON", sys.executable)
    is_forge = kind_of_webui == "forge"
    base = webui / "models" / "Stable-diffusion" / (FORGE_BASE if is_forge else BASE)
    if not base.exists():
        pytest.skip(f"needs {base.name} (test_forge.py makes it)")
    flags = (*FORGE_FLAGS, "--ckpt", str(base)) if is_forge else FLAGS
    logs = tmp_path_factory.mktemp("moments")

    def start() -> Server:
        server = Server(host_python, webui, logs / f"{len(list(logs.iterdir()))}.log", flags)
        try:
            server.wait()
            if not is_forge:
                server.post("/sdapi/v1/options", {"sd_model_checkpoint": BASE})
        except BaseException:
            server.stop()
            raise
        return server

    made = Host(start, webui, base, kind_of_webui == "a1111")
    try:
        yield made
    finally:
        made.server.stop()
        made.tidy()


def test_from_live_to_published_to_drawn_by_name(host):
    plain = host.draw("")
    # A model of SD1.5's size takes many times as long on a processor as the embedded base.
    steps = 80 if host.base.name == BASE else 24
    run = host.train(publish=True, steps=steps, save_every=steps // 2)
    host.until(run, lambda now: now["state"] == "training" and now["step"] >= 2)
    tag = host.server.post(f"/athanor/v1/jobs/{run}/live")["tag"]
    early = host.draw(tag)
    step = host.run(run)["live"]["step"]
    host.until(run, lambda now: now["step"] >= step + 5 or now["state"] == "done")
    late = host.draw(tag)
    assert early.away_from(plain) > 0 and late.away_from(early) > 0, "the snapshot is not what is drawn with"
    assert "there is no" not in late.infotext and "its file is used" not in late.infotext

    done = host.until(run, lambda now: now["published"] is not None)
    assert done["state"] == "done" and done["published"]["name"] == NAME
    assert json.loads((host.folder / f"{NAME}.json").read_text())["activation text"] == "zkw ball"
    named = host.draw(f"<lora:{NAME}:1>")
    assert named.away_from(plain) > 0 and "Lora hashes" in named.infotext

    def listed() -> bool:
        return any(one["name"] == NAME for one in host.server.get("/sdapi/v1/loras"))

    end = time.monotonic() + 60
    while not listed() and time.monotonic() < end:
        time.sleep(0.5)
    assert listed(), "the WebUI's own list does not know the file"


@pytest.mark.parametrize("method", ["textual_inversion", "hypernetwork"])
def test_what_is_no_lora_is_drawn_with_while_it_trains(host, method):
    plain = host.draw("")
    more = {"rank": None, "trigger": None, "name": "zkwx", "learning_rate": 0.05}
    run = host.train(method=method, steps=400, **more)
    at_work = host.until(run, lambda now: now["state"] == "training" and now["step"] >= 2)
    if method == "hypernetwork" and host.draws_hypernetworks:  # from finished files only
        assert "live" not in at_work["actions"]
        with pytest.raises(RuntimeError, match="only when its file is finished"):
            host.server.post(f"/athanor/v1/jobs/{run}/live")
        host.server.post(f"/athanor/v1/jobs/{run}/stop_now")
        host.until(run, lambda now: now["state"] == "stopped")
        shutil.rmtree(host.webui / "athanor" / "runs" / run)
        return
    assert "live" in at_work["actions"]
    tag = host.server.post(f"/athanor/v1/jobs/{run}/live")["tag"]
    early = host.draw(tag)
    step = host.run(run)["live"]["step"]
    host.until(run, lambda now: now["step"] >= step + 5)
    late = host.draw(tag)
    host.server.post(f"/athanor/v1/jobs/{run}/stop_now")
    assert early.away_from(plain) > 0 and late.away_from(early) > 0, (tag, late.infotext)
    assert "its file is used" not in late.infotext and host.draw("").away_from(plain) == 0
    host.until(run, lambda now: now["state"] == "stopped")
    shutil.rmtree(host.webui / "athanor" / "runs" / run)


def test_trained_again_under_the_same_name_it_takes_effect_at_once(host):
    before = host.draw(f"<lora:{NAME}:1>")
    run = host.train(publish=True, steps=15, seed=7)
    done = host.until(run, lambda now: now["published"] is not None)
    assert done["published"] == {"taken": NAME, "free": f"{NAME}-2"}
    assert host.draw(f"<lora:{NAME}:1>").away_from(before) == 0, "a taken name was written over"
    told = host.server.post(f"/athanor/v1/jobs/{run}/publish", {"replace": True})
    assert told["tag"] == f"<lora:{NAME}:1>"
    assert host.draw(f"<lora:{NAME}:1>").away_from(before) > 0


def test_a_grid_is_drawn_and_a_file_renamed(host):
    card = next(one for one in host.server.get("/athanor/v1/library")["entries"] if one["id"] and one["name"] == NAME)
    wish = {"id": card["id"], "prompts": [PROMPT], "weights": [0, 1], "steps": 2}
    grid = host.server.post("/athanor/v1/library/grid", wish)["id"]
    end = time.monotonic() + 900  # a processor needs a minute for a picture of SD1.5
    while (now := host.server.get(f"/athanor/v1/library/grid?name={grid}"))["drawing"] and time.monotonic() < end:
        time.sleep(0.5)
    assert (now["done"], now["problem"], now["reports"]) == (3, "", []), now
    place = host.webui / "athanor" / "grids" / grid
    pictures = {each["weight"]: (place / f"{each['cell']:04d}.png").read_bytes() for each in now["cells"][1:]}
    assert pictures[0] == (place / "0000.png").read_bytes() != pictures[1]  # the seed and all else stay
    shutil.rmtree(place)
    host.server.post("/athanor/v1/library/rename", {"id": card["id"], "name": f"{NAME}-renamed"})
    renamed = host.draw(f"<lora:{NAME}-renamed:1>")
    assert "there is no" not in renamed.infotext and (host.folder / f"{NAME}-renamed.json").exists()
    host.server.post("/athanor/v1/library/delete", {"id": card["id"].replace(NAME, f"{NAME}-renamed")})
    assert not list(host.folder.glob(f"{NAME}-renamed*"))


def _trainer(host, run: str) -> int:
    """The number of the process that trains it."""
    return json.loads((host.webui / "athanor" / "runs" / run / "process.json").read_text())["pid"]


def test_a_run_outlives_the_webui_and_a_killed_trainer_is_resumed(host):
    run = host.train(name=f"{NAME}-kept", steps=600, state_every=2, sample_prompts=["a ball"])
    host.until(run, lambda now: now["step"] >= 2)
    trainer = _trainer(host, run)
    host.server.kill()
    host.server = host.start()
    found = host.run(run)
    assert found["state"] == "training" and _trainer(host, run) == trainer, found
    host.until(run, lambda now: now["step"] > found["step"])

    os.kill(trainer, signal.SIGKILL)
    end = time.monotonic() + 60
    while (now := host.run(run))["state"] != "interrupted" and time.monotonic() < end:
        time.sleep(0.3)
    assert now["state"] == "interrupted" and now["problems"] and "resume" in now["actions"], now
    host.server.post(f"/athanor/v1/jobs/{run}/resume")
    host.until(run, lambda now: now["resumed_from"] and now["step"] >= now["resumed_from"] + 2)
    host.server.post(f"/athanor/v1/jobs/{run}/stop")
    ended = host.until(run, lambda now: now["state"] == "stopped")
    assert [each[0] for each in ended["losses"]] == list(range(1, ended["step"] + 1))
    assert ended["resumed_from"] >= found["step"] - 1 and _trainer(host, run) != trainer
