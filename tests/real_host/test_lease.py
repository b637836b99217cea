"""Trainings that share the device with a real WebUI's model: attached to it, in its place, and beside it.

Run with `-s` to see the figures. The trainers are those of this checkout (`ATHANOR_PYTHON` names another Python).
On a card (`--device cuda`, or `--device stand-in` without one) that has to be one over the WebUI's own torch, as
`install.py` makes it for the extension.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
from a1111_fixtures import BASE, FLAGS
from kinds import write
from patcher_fixtures import FLAGS as PATCHER_FLAGS
from server import PROMPT, Server
from training_helpers import make_pictures

from trainers.formats import safetensors_io

MIB = 2**20
OURS = "athanor-lease-test"
FORGE_FLAGS = (*PATCHER_FLAGS, "--nowebui")
CHECKS = ["amount", "quality", "buckets", "sameness", "dose", "rate", "learning", "captions", "trigger"]


def resident(pid: int) -> int:
    """MiB of memory that a process has to itself or shares."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) // 1024


class Shared:
    """A WebUI that runs, the base that it draws with, and its queue."""

    def __init__(self, server: Server, webui: Path, base: Path, device: str) -> None:
        self.server, self.base, self.device = server, base, device
        self.runs = webui / "athanor" / "runs"
        self.data = make_pictures(webui / "athanor" / "pictures" / OURS, 3)

    def submit(self, sharing: str, **more) -> str:
        job = {
            "method": "lora", "name": OURS, "base": str(self.base), "data": str(self.data), "trigger": "ball",
            "resolution": 64, "steps": 2000, "rank": 4, "device": self.device, "threads": 1, "state_every": 20,
            "gpu_sharing": sharing, "override_checks": CHECKS, "pause_while_drawing": False, "verdict": False, **more,
        }  # fmt: skip
        return self.server.post("/athanor/v1/jobs", {"job": job})["id"]

    def run(self, run_id: str) -> dict:
        return self.server.get(f"/athanor/v1/jobs/{run_id}")

    def until(self, run_id: str, done, seconds: float = 300) -> dict:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            run = self.run(run_id)
            if done(run):
                return run
            assert run["state"] not in ("failed", "interrupted"), (run["problems"], run["log"][-15:])
            time.sleep(0.2)
        raise AssertionError((run["state"], run["doing"], run["log"][-15:]))

    def in_use(self) -> int:
        """MiB of the WebUI's process, or of the card."""
        if self.device == "cpu":
            return resident(self.server._process.pid)
        return self.server.get("/sdapi/v1/memory")["cuda"]["system"]["used"] // MIB

    def kill(self, run_id: str) -> None:
        """Ends the trainer as the system does that has no memory left."""
        pid = int((self.runs / run_id / "run.lock").read_text().split()[0])
        os.kill(pid, signal.SIGKILL)
        manifest = self.runs / run_id / "host_tensors.json"
        end = time.monotonic() + 30
        while (manifest.exists() or self.run(run_id)["state"] == "training") and time.monotonic() < end:
            time.sleep(0.1)
        assert not manifest.exists()


@pytest.fixture(scope="module")
def start(webui, kind_of_webui, host_python, device, tmp_path_factory):
    """Starts the WebUI."""
    given = FLAGS if kind_of_webui == "a1111" else FORGE_FLAGS

    def started() -> Server:
        log = tmp_path_factory.mktemp("host") / "log"
        return Server(host_python, webui, log, device.flags(given), variables=device.variables)

    return started


@pytest.fixture(scope="module")
def shared(start, webui, kind_of_webui, device):
    if sys.platform != "linux":
        pytest.skip("memory is shared on Linux only")
    os.environ.setdefault("ATHANOR_PYTHON", sys.executable)
    models = webui / "models" / "Stable-diffusion"
    is_a1111 = kind_of_webui == "a1111"
    base = models / BASE if is_a1111 else next(models.glob("athanor-random*.safetensors"))
    loras = webui / "models" / "Lora" / OURS
    loras.mkdir(parents=True, exist_ok=True)
    if is_a1111:
        write(loras / f"{OURS}.safetensors", "lora", safetensors_io.load(base)[0])
    other = models / f"{OURS}{base.suffix}"
    if is_a1111:
        tensors, metadata = safetensors_io.load(base)
        changed = {name: tensor * 0.9 if "attn1" in name else tensor for name, tensor in tensors.items()}
        safetensors_io.save(other, changed, metadata)
        for side in models.glob(f"{base.stem}.yaml"):
            shutil.copyfile(side, other.with_suffix(".yaml"))
    server = start()
    made = None
    try:
        server.wait()
        server.post("/sdapi/v1/options", {"sd_model_checkpoint": base.name})
        made = Shared(server, webui, base, device.name)
        made.other = other.name
        yield made
    finally:
        (made.server if made else server).stop()
        for one in [other, other.with_suffix(".yaml")]:
            one.unlink(missing_ok=True)
        shutil.rmtree(loras)
        if made is not None:
            shutil.rmtree(made.data)
            for run in made.runs.glob(f"{OURS}*"):
                shutil.rmtree(run)


def test_attached_to_the_webuis_own_model(shared, kind_of_webui):
    server = shared.server
    if kind_of_webui == "a1111":  # its own loader merges something into the weights first, and leaves it there
        server.post("/sdapi/v1/options", {"athanor_lora": False})
        merged = server.draw(f"{PROMPT} <lora:{OURS}:1>")
        server.post("/sdapi/v1/options", {"athanor_lora": True})
    plain = server.draw()
    if kind_of_webui == "a1111":
        assert merged.away_from(plain) > 0
    run_id = shared.submit("attach")
    run = shared.until(run_id, lambda run: run["step"] >= 2)
    assert run["sharing"]["mode"] == "attach" and run["sharing"]["attached"], (
        run["sharing"],
        run["notes"],
        run["log"][-8:],
    )
    told = run["sharing"]["attached"]
    print(f"\nattached: {told['bytes'] / MIB:.0f} MiB, of which {told['private_bytes'] / MIB:.0f} the trainer's own;",
          f"{told['tensors']} tensors; {run['sharing']['reason']}")  # fmt: skip
    assert server.draw().away_from(plain) == 0
    if kind_of_webui == "a1111":
        drawn = server.draw(f"{PROMPT} <lora:{OURS}:1>")
        assert drawn.away_from(merged) <= 1 and server.draw().away_from(plain) == 0
        # Another model is loaded meanwhile: the trainer keeps the tensors that it has.
        step = shared.run(run_id)["step"]
        elsewhere = server.draw(settings={"sd_model_checkpoint": shared.other})
        assert elsewhere.away_from(plain) > 0
        shared.until(run_id, lambda run: run["step"] > step + 2)
        server.post("/sdapi/v1/options", {"sd_model_checkpoint": shared.base.name})
    shared.kill(run_id)
    assert server.draw().away_from(plain) == 0
    assert shared.run(run_id)["state"] == "interrupted"


def test_the_result_is_that_of_the_file(shared):
    names = {}
    for sharing in ("attach", "side_by_side"):
        run_id = shared.submit(sharing, steps=3)
        run = shared.until(run_id, lambda run: run["state"] == "done")
        assert run["sharing"]["mode"] == sharing, run["sharing"]
        names[sharing] = shared.runs / run_id / f"{OURS}.safetensors"
    ours, theirs = (safetensors_io.load(path)[0] for path in names.values())
    apart = max(float((ours[key].float() - theirs[key].float()).abs().max()) for key in theirs)
    print(f"\nattached and from the file, largest difference: {apart:g}")
    assert apart < 1e-3


def test_handed_over_and_back(shared):
    server = shared.server
    plain = server.draw()
    before = shared.in_use()
    run_id = shared.submit("hand_over", steps=2000)
    run = shared.until(run_id, lambda run: run["state"] == "training")
    freed = run["sharing"]["freed_bytes"] / MIB
    print(f"\nhanded over: {freed:.0f} MiB came free; there were {before} MiB, there are {shared.in_use()} MiB")
    assert run["sharing"]["mode"] == "hand_over" and freed > shared.base.stat().st_size / MIB * 0.8
    shared.kill(run_id)
    end = time.monotonic() + 60
    while shared.in_use() < before * 0.8 and time.monotonic() < end:
        time.sleep(0.2)
    print(f"back: {shared.in_use()} MiB")
    assert server.draw().away_from(plain) == 0


def test_the_webui_is_killed_and_its_cards_memory_with_it(shared, start):
    if shared.device == "cpu":
        pytest.skip("the computer's memory outlives the WebUI; test_moments kills it there")
    run_id = shared.submit("attach")
    run = shared.until(run_id, lambda run: run["step"] >= 2)
    assert run["sharing"]["attached"]["kind"] == "cuda"
    shared.server.kill()
    ended = shared.runs / run_id / "ended.json"
    end = time.monotonic() + 120
    while not ended.exists() and time.monotonic() < end:
        time.sleep(0.2)
    saved = int((shared.runs / run_id / "state" / "current").read_text())
    assert ended.exists() and saved >= 2
    shared.server = start().wait()
    found = shared.run(run_id)
    print(f"\nthe WebUI was killed; saved at step {saved}, {found['state']}: {found['problems'] or found['notes']}")
    assert found["state"] == "stopped" and found["step"] == saved
    shared.server.post(f"/athanor/v1/jobs/{run_id}/resume")
    assert shared.until(run_id, lambda run: run["step"] >= saved + 2)["resumed_from"] == saved
    shared.kill(run_id)
