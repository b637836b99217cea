"""Stands for `python -m trainers` in the tests of the queue: events, commands, states and endings without a model.

What it does is written in the job's `comment`: `pause=0.05; at=3; do=kill; times=2` (or oom, spill, child, …).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from trainers import spec
from trainers.events import EventLog, read_events, take_commands


def _wishes(job: dict) -> dict[str, str]:
    pairs = (part.partition("=") for part in str(job.get("comment", "")).split(";"))
    return {name.strip(): value.strip() for name, _, value in pairs if name.strip()}


def _misbehave(wish: str, run: Path) -> None:
    if wish == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if wish == "crash":
        raise RuntimeError("the furnace is cold")
    if wish == "oom":
        print("torch.cuda.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB", flush=True)
        os._exit(1)
    if wish == "child":
        helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
        (run / "helper.pid").write_text(str(helper.pid))


def _times(file: Path) -> int:
    return len(file.read_text()) if file.exists() else 0


def _done_steps(run: Path) -> int:
    state = run / "state.json"
    return json.loads(state.read_text())["step"] if state.exists() else 0


def device_told(job: dict) -> str:
    """The device that the trainer would be told to train on."""
    return os.environ[spec.AUTO_DEVICE] if job["device"] == "auto" else job["device"]


def train(run: Path, resuming: bool) -> int:
    job = spec.read_yaml(run / "job.yaml")
    wishes, total, first = _wishes(job), int(job["steps"]), _done_steps(run)
    time.sleep(float(wishes.get("load", 0)))
    take_commands(run)
    with (run / "counts.txt").open("a") as file:
        file.write(f"{os.getpid()} from {first}\n")
    events = EventLog(run / "events.jsonl")
    about = {"method": job["method"], "name": job["name"], "device": device_told(job)}
    events.emit("start", **about, steps=total, resumed_from=first if resuming else None)
    for step in range(first + 1, total + 1):
        time.sleep(float(wishes.get("pause", 0.01)))
        if step == int(wishes.get("at", 0)) and _times(run / "misbehaved") < int(wishes.get("times", 1)):
            with (run / "misbehaved").open("a") as file:
                file.write("x")
            if wishes["do"] == "spill":
                events.emit("stopped", step=step - 1, why="Stopped by the check.", check="memory")
                return 3
            _misbehave(wishes["do"], run)
        events.emit("step", step=step, steps=total, epoch=1, loss=1 / step, loss_average=1 / step, seconds=0.01, eta=1)
        (run / "state.json").write_text(json.dumps({"step": step}))
        (run / "state").mkdir(exist_ok=True)
        (run / "state" / "current").write_text(f"{step:08d}")
        commands = take_commands(run)
        if "sample" in commands:
            (run / "samples").mkdir(exist_ok=True)
            (run / "samples" / f"{step}.png").write_bytes(b"\x89PNG\r\n\x1a\n")
            events.emit("sample", step=step, path=f"samples/{step}.png", prompt="a ball", seed=1)
        if commands & {"save", "stop"}:
            (run / f"{job['name']}-{step:06d}.safetensors").write_bytes(b"x")
            events.emit("saved", step=step, kind="intermediate", path=f"{job['name']}-{step:06d}.safetensors")
        if "stop" in commands and step < total:
            events.emit("stopped", step=step)
            return 3
    (run / f"{job['name']}.safetensors").write_bytes(b"x")
    events.emit("saved", step=total, kind="result", path=f"{job['name']}.safetensors")
    events.emit("done", step=total, path=f"{job['name']}.safetensors", seconds=1)
    assert read_events(run / "events.jsonl")[0]
    return 0


def check(job: dict) -> int:
    """A job whose `comment` says do=stop has a red finding."""
    checks = [{"id": "captions", "severity": "ok", "text": "Fine.", "pictures": [], "what_to_do": ""}]
    if _wishes(job).get("do") == "stop":
        pictures = [path.name for path in sorted(Path(job["data"]).glob("*.png"))]
        checks.insert(
            0, {"id": "amount", "severity": "stop", "text": "Too few.", "pictures": pictures, "what_to_do": "More."}
        )
    folder = {"purpose": "", "pictures": 3, "captioned": 3, "skipped": [], "notes": []}
    memory = {"peak_bytes": 1e9, "free_bytes": 2e9, "fits": True}
    facts = {
        "family": "sd1", "title": "Stable Diffusion 1", "prediction": "epsilon", "resolution": 64, "device": "cpu",
        "steps": int(job["steps"]), "steps_are_exact": True, "exposures": 9, "folders": [folder], "checks": checks,
        "memory": memory,
    }  # fmt: skip
    print(json.dumps(facts))
    return 0


def main(words: list[str]) -> int:
    if words[0] == "check":
        return check(spec.read_yaml(Path(words[1])))
    if words[0] == "resume":
        return train(Path(words[1]), resuming=True)
    run = Path(words[3])
    job = spec.read_yaml(Path(words[1]))
    if _wishes(job).get("do") == "reject":
        print("data: the folder is empty.", file=sys.stderr)
        return 2
    (run / "job.yaml").write_text(Path(words[1]).read_text(encoding="utf-8"), encoding="utf-8")
    return train(run, resuming=False)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
