"""Training on another process's CUDA memory: what it costs, that nothing is lost, and that everything comes back.

    python benchmarks/attach.py --quick                      (a small model: mapping, a killed trainer, a killed host)
    python benchmarks/attach.py [--widths 320 640 1280 1280] [--parts attach killed over host] [--device cuda]

One process draws as a WebUI does (the embedded host without its page), over a random model of SD1.5's size in
float16. Trainers are processes of their own, started by the queue. Shown: memory of the card beside the host, with a
trainer that attached and with one that loaded the file; that pictures stay the same meanwhile; how far the results are
apart; that the memory comes back after a trainer was killed, and after a hand-over; what happens when the host is
killed.

`--quick --device cpu --side 64` tries the script itself.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
BEGAN = time.monotonic()
if __name__ == "__main__" and "--host" not in sys.argv:
    # On a fresh machine a trainer's modules come slowly from the disk; another core fetches them meanwhile.
    subprocess.Popen([sys.executable, "-c", "import trainers.running, trainers.methods.lora"], cwd=ROOT)

import torch  # noqa: E402
from training_helpers import events_of, make_pictures  # noqa: E402

from extension.hosts.embedded.engine import Studio  # noqa: E402
from extension.hosts.embedded.lease import EmbeddedLender  # noqa: E402
from extension.hosts.embedded.places import Places  # noqa: E402
from extension.hosts.embedded.request import Request  # noqa: E402
from extension.hosts.lease import in_use, return_memory  # noqa: E402
from extension.jobs.environment import Environment  # noqa: E402
from extension.jobs.manager import Jobs  # noqa: E402

MIB = 2**20
CHECKS = ["amount", "quality", "buckets", "sameness", "dose", "rate", "learning"]
QUICK = {"widths": [64, 128, 192, 192], "context": 256, "vae": (64, 64, 128, 128)}
SAID_EVERY = 5.0
ENDED = ("done", "failed", "stopped", "interrupted")


def make_base(path: Path, widths: list[int], device: str, context: int = 768, vae=(128, 256, 512, 512)) -> Path:
    """A random model of these widths in float16, by default with SD1.5's text encoder and autoencoder."""
    from tiny_models import _text_config, _unet_config, _vae_config

    from trainers.bases import build, export
    from trainers.formats.families import FAMILIES

    family = FAMILIES["sd1"]
    modules = [
        build.make_unet(_unet_config(family, tuple(widths), context)),
        build.make_text_encoder(_text_config(family.text_encoders[0], context, 49408), False),
        build.make_vae(_vae_config(family.latent_scale, vae, 2)),
    ]
    torch.manual_seed(0)
    for module in modules:
        module.to_empty(device=device).requires_grad_(False).eval()
        for name, parameter in module.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.02 if "embedding" in name else parameter[0].numel() ** -0.5)
            else:
                parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
    base = argparse.Namespace(family=family, unet=modules[0], text_encoders=[modules[1]], vae=modules[2])
    for module in modules:
        module.cpu()
    return_memory(torch.device(device))  # what they took must not count as the host's
    # A processor computes in float16 many times slower.
    export.save_single_file(base, path, torch.float16 if device == "cuda" else torch.float32)
    return path


class Bench:
    """A host with its queue, in one folder."""

    def __init__(self, folder: Path, device: str, side: int) -> None:
        self.device, self.side = torch.device(device), side
        self.folder, self.base = folder, folder / "base.safetensors"
        self.before = self.used()
        self.studio = Studio(self.base, Places(folder / "host"), device)
        found = os.environ.get("PYTHONPATH", "").split(os.pathsep)
        paths = (ROOT, *(Path(each) for each in found if each))  # what this process has, trainers have to find too
        environment = Environment(
            Path(sys.executable), paths=paths, variables={"OMP_NUM_THREADS": "4" if device == "cuda" else "1"}
        )
        self.jobs = Jobs(folder / "runs", environment, auto_device="cuda:0" if device == "cuda" else device)
        self.jobs.borrow_from(EmbeddedLender(self.studio, environment))
        self.studio.turn = self.jobs.turns.drawing

    def used(self) -> int:
        """MiB in use on the card, by everybody."""
        return in_use(self.device) // MIB

    def draw(self) -> str:
        request = Request(prompt="a ball", steps=3, sampler_name="Euler", seed=7, width=self.side, height=self.side)
        picture = self.studio.draw(request).pictures[0].image
        return hashlib.sha256(picture.tobytes()).hexdigest()[:12]

    def submit(self, name: str, steps: int, sharing: str, **more: Any) -> Path:
        values = {
            "method": "lora", "name": name, "base": str(self.base), "data": str(self.folder / "pictures"),
            "trigger": "ball", "resolution": self.side, "steps": steps, "rank": 8, "device": str(self.device.type),
            "gpu_sharing": sharing, "state_every": 5, "override_checks": CHECKS, "verdict": False, **more,
        }  # fmt: skip
        self.jobs.submit(values)
        return self.jobs.runs / name

    def until(self, name: str, done: Callable[[Any], Any], seconds: float = 120) -> Any:
        end, told = time.monotonic() + seconds, time.monotonic()
        while time.monotonic() < end:
            self.jobs.supervisor.look()
            view = self.jobs.one(name)
            if done(view):
                return view
            if time.monotonic() - told > SAID_EVERY:
                told = time.monotonic()
                say(what="waiting", run=name, state=view.state, doing=view.doing, step=view.step)
            if view.state in ENDED:
                raise SystemExit(f"{name}: {view.state} {view.problems} {view.notes}\n" + "\n".join(view.log[-15:]))
            time.sleep(0.05)
        raise SystemExit(f"{name}: not there after {seconds} s")

    def trained(self, name: str) -> Any:
        """Waits until it is done and its process is gone."""
        view = self.until(name, lambda view: view.state == "done")
        self.until_idle()
        return view

    def until_idle(self) -> None:
        while self.jobs.supervisor._started:
            self.jobs.supervisor.look()
            time.sleep(0.05)


def apart(first: Path, second: Path) -> float:
    """The largest difference between two results, as a share of the largest value."""
    from safetensors.torch import load_file

    one, other = (load_file(next(run.glob("*.safetensors"))) for run in (first, second))
    largest = max(float(tensor.float().abs().max()) for tensor in one.values())
    return max(float((one[key].float() - other[key].float()).abs().max()) for key in one) / largest


def say(**facts: Any) -> None:
    clock = {"clock": round(time.monotonic() - BEGAN, 1)}
    print(json.dumps({**clock, **facts}, ensure_ascii=False, default=str), flush=True)


def measure(bench: Bench, steps: int) -> None:
    drawn = bench.draw()
    host = bench.used()
    say(what="host", model_mib=bench.base.stat().st_size // MIB, before=bench.before, with_model=host)

    attached = bench.submit("attached", steps, "attach")
    bench.until("attached", lambda view: view.step >= 3)
    beside = bench.used()
    say(what="attached", told=bench.jobs.one("attached").sharing, card_grew_mib=beside - host)
    same = bench.draw() == drawn
    view = bench.trained("attached")
    say(what="attached, done", same_picture_meanwhile=same, seconds_per_step=view.seconds_per_step, notes=view.notes,
        memory=events_of(attached, "memory"))  # fmt: skip

    copied = bench.submit("file", steps, "side_by_side")
    bench.until("file", lambda view: view.step >= 3)
    beside = bench.used()
    view = bench.trained("file")
    say(what="from file", mode=view.sharing["mode"], card_grew_mib=beside - host, apart=apart(attached, copied),
        seconds_per_step=view.seconds_per_step, memory=events_of(copied, "memory"))  # fmt: skip


def killed(bench: Bench) -> None:
    """A trainer is killed; then the host frees its model, which it can only where nobody counts as a reader."""
    drawn, host = bench.draw(), bench.used()
    run = bench.submit("killed", 5000, "attach")
    view = bench.until("killed", lambda view: view.step >= 6)
    say(what="attached", told=view.sharing, card_grew_mib=bench.used() - host, same_picture=bench.draw() == drawn,
        notes=view.notes)  # fmt: skip
    process = json.loads((run / "process.json").read_text())["pid"]
    os.kill(process, signal.SIGKILL)
    while bench.jobs.one("killed").state == "training":
        time.sleep(0.02)
    bench.until_idle()
    after, same = bench.used(), bench.draw() == drawn
    bench.studio.model.close()
    return_memory(bench.device)
    empty = bench.used()
    bench.studio.model.reload()
    say(what="trainer killed", mode=view.sharing["mode"], host=host, after=after, same_picture=same,
        host_without_model=empty, before_any_model=bench.before, same_again=bench.draw() == drawn,
        state=bench.jobs.one("killed").state)  # fmt: skip


def handed_over(bench: Bench) -> None:
    drawn, host = bench.draw(), bench.used()
    bench.submit("over", 4, "hand_over")
    view = bench.trained("over")
    say(what="hand over", mode=view.sharing["mode"], freed_mib=(view.sharing["freed_bytes"] or 0) // MIB, host=host,
        back=bench.studio.model.in_memory, same_picture=bench.draw() == drawn, after=bench.used())  # fmt: skip


def host_killed(folder: Path, device: str, side: int) -> None:
    """A host of its own is killed while a trainer is attached to it."""
    host = subprocess.Popen([sys.executable, __file__, "--host", str(folder), "--device", device, "--side", str(side)])
    run = folder / "runs" / "orphan"
    end = time.monotonic() + 120
    while time.monotonic() < end and len(events_of(run, "step")) < 6:
        if host.poll() is not None:
            raise SystemExit("the host ended by itself")
        time.sleep(0.05)
    host.kill()
    host.wait()
    died, steps = time.time(), len(events_of(run, "step"))
    say(what="the host was killed", steps=steps)

    def goes_on() -> bool:  # as it does in the computer's memory, which outlives its owner
        return device == "cpu" and len(events_of(run, "step")) >= steps + 3

    while time.monotonic() < end and not (run / "ended.json").exists() and not goes_on():
        time.sleep(0.05)
    if not (run / "ended.json").exists():
        say(what="host killed", the_training="goes on" if goes_on() else "did not end and took no step")
        return
    ended = json.loads((run / "ended.json").read_text())
    last = events_of(run)[-1]
    state = (run / "state" / "current").read_text().strip()
    steps = events_of(run, "step")[-1]["step"]
    say(what="host killed", seconds=round(ended["time"] - died, 2), exit=ended["code"], last_event=last, state=state,
        last_step=steps)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--widths", type=int, nargs=4, default=[320, 640, 1280, 1280])
    parser.add_argument("--quick", action="store_true", help="a small model, and what only a card can answer")
    parser.add_argument("--parts", nargs="+", choices=["attach", "killed", "over", "host"])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--host", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    say(what="begin", torch=torch.__version__, device=options.device)
    if options.host:
        bench = Bench(options.host, options.device, options.side)
        bench.submit("orphan", 5000, "attach", state_every=1000)
        bench.until("orphan", lambda view: False, 300)
    parts = options.parts or (["killed", "host"] if options.quick else ["attach", "killed", "over", "host"])
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        model = QUICK if options.quick else {"widths": options.widths}
        make_base(folder / "base.safetensors", device=options.device, **model)
        make_pictures(folder / "pictures", 6, side=options.side)
        say(what="the model is made", mib=(folder / "base.safetensors").stat().st_size // MIB)
        bench = Bench(folder, options.device, options.side)
        say(what="the host has loaded it")
        known = {"attach": lambda: measure(bench, options.steps), "killed": lambda: killed(bench),
                 "over": lambda: handed_over(bench)}  # fmt: skip
        try:
            for part in [part for part in parts if part in known]:
                known[part]()
            if "host" in parts:
                bench.studio.model.close()
                return_memory(bench.device)
                host_killed(folder, options.device, options.side)
        finally:
            for run in (folder / "runs").glob("[!.]*"):
                bench.jobs.supervisor.kill(run)
        say(what="done")


if __name__ == "__main__":
    main()
