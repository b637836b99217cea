"""What each method takes and gives on models of the published sizes: memory, time for a step, size of the file.

    python benchmarks/methods.py [--json] [--out FILE] [--cases NAME ...] [--at-once 1] [--work DIR] [--seconds N]

Models of SD1.5's and SDXL's size are made with random weights. Each case is a real run of the trainer, told to keep to
the memory that is aimed at (`memory_limit`: torch refuses more), at 512 px (SD1.5) or 1024 px (SDXL) with batch 1.
Peak memory is what torch gave out on the GPU at most; `whole` adds what torch kept in reserve and what the driver
takes. Steps are timed while no other run takes any; the training time is that of the recipe's steps. Some minutes on
a GPU. On a processor the whole process's peak is held against the plan, at a smaller size:

    python benchmarks/methods.py --device cpu --narrow 2 --side 256 --precision bf16 --steps 2 --cases NAME ...
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from random_models import SIDES
from runs import ROOT, Run, device_name, environment, markdown, run_all, trainer_run, write_json

from extension.composing import Wish, compose
from extension.recipes import Base

GIB = 2**30
_FULL = {
    "method": "dreambooth", "optimizer": "adafactor", "fused_backward": True, "max_grad_norm": 0,
    "weights_dtype": "bf16",
}  # fmt: skip
_SDXL_LORA = {"family": "sdxl", "method": "lora", "train_text_encoder": False}

# Name -> family, GiB that are aimed at, options. "free" cases have all the memory there is and nothing to save.
CASES: dict[str, dict[str, Any]] = {
    "sd1-lora": {"family": "sd1", "limit": 4, "method": "lora"},
    "sd1-lora-free": {"family": "sd1", "limit": 0, "method": "lora"},
    "sd1-textual_inversion": {"family": "sd1", "limit": 4, "method": "textual_inversion"},
    "sd1-hypernetwork": {"family": "sd1", "limit": 4, "method": "hypernetwork"},
    "sd1-dreambooth": {"family": "sd1", "limit": 8, **_FULL},
    "sd1-dreambooth-fp32": {"family": "sd1", "limit": 12, **_FULL, "weights_dtype": "fp32"},
    "sdxl-lora": {**_SDXL_LORA, "limit": 7},
    "sdxl-lora-bf16": {**_SDXL_LORA, "limit": 8, "base_dtype": "bf16"},
    "sdxl-lora-free": {**_SDXL_LORA, "limit": 0},
    "sdxl-textual_inversion": {"family": "sdxl", "limit": 8, "method": "textual_inversion"},
    "sdxl-dreambooth": {"family": "sdxl", "limit": 12, **_FULL, "train_text_encoder": False},
}  # fmt: skip


def driver_gib(device: str) -> float:
    """What a process takes of the GPU beside torch's memory, after a product and a convolution; 0 elsewhere."""
    code = (
        "import torch\n"
        "if torch.cuda.is_available():\n"
        "    x = torch.randn(1, 64, 64, 64, device='cuda', dtype=torch.float16)\n"
        "    torch.nn.functional.conv2d(x, torch.randn(64, 64, 3, 3, device='cuda', dtype=x.dtype))\n"
        "    (x @ x).sum().item(); free, total = torch.cuda.mem_get_info()\n"
        "    print(total - free - torch.cuda.memory_reserved())\n"
    )
    if device == "cpu":
        return 0.0
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment(), capture_output=True, text=True)
    return float(done.stdout or 0) / GIB


def small(args: argparse.Namespace) -> bool:
    """Whether the models are not those of the published sizes, or on a processor: no aim holds there."""
    return args.narrow > 1 or args.device == "cpu"


def recipe_steps(family: str, method: str) -> int:
    """The steps of the recipe for a thing, for pictures of one at a time (`batch_size` 1)."""
    made = compose(Wish(Base(Path("m"), "m", family), "object", method=method)).values
    return made["steps"] * made.get("batch_size", 1) * made.get("gradient_accumulation", 1)


def make_run(name: str, args: argparse.Namespace, work: Path) -> Run:
    case = dict(CASES[name])
    family, limit, method = case.pop("family"), case.pop("limit"), case.pop("method")
    side = args.side or SIDES[family]
    options = {
        "name": "bench", "base": work / family, "data": work / f"pictures-{side}", "resolution": side,
        "bucket_step": 8, "bucket_min": 8, "steps": args.steps, "batch_size": 1, "state_every": 1000000,
        "cache_dir": work / f"cache-{family}", "device": args.device,
        "memory_limit": 0 if small(args) else limit, "precision": args.precision, **case,
    }  # fmt: skip
    return trainer_run(name, method, options, work / "runs" / name, family=family, method=method, aim=limit)


def read_run(run: Run, driver: float) -> dict[str, Any]:
    """The figures of one run."""
    row: dict[str, Any] = {"case": run.name, **run.facts, "problem": run.problem}
    plan, memory, steps = run.last("plan"), run.last("memory"), run.kinds("step")
    if plan:
        row |= {name: plan[name] for name in ("precision", "base_dtype", "checkpointing", "peak_bytes", "items")}
    if memory:
        row |= {"memory": memory, "reserved": memory["reserved_bytes"] / GIB + driver}
    if steps:
        seconds = [each["seconds"] for each in steps]
        row["seconds_per_step"] = statistics.median(seconds[len(seconds) // 2 :])
        row["minutes"] = row["seconds_per_step"] * recipe_steps(run.facts["family"], run.facts["method"]) / 60
    result = next((each["path"] for each in run.kinds("saved") if each["kind"] == "result"), None)
    if result and (run.folder / result).is_file():
        row["size"] = (run.folder / result).stat().st_size
    start = run.last("start")
    row["seconds_before"] = start["time"] - run.started if start else None
    return row


def table(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows as people read them."""
    shown = []
    for row in rows:
        memory = row.get("memory", {})
        stages = memory.get("stages", {})
        planned = memory.get("planned_stages", {})
        training = f"{stages['training'] / GIB:.2f} / {planned['training'] / GIB:.2f}" if stages else ""
        stage = max(stages, key=stages.get) if stages else ""
        shown.append(
            {
                "case": row["case"],
                "aim GiB": row["aim"] or None,
                "peak GiB": memory["peak_bytes"] / GIB if memory else None,
                "planned": memory["planned_bytes"] / GIB if memory else None,
                "peak / planned": memory["peak_bytes"] / memory["planned_bytes"] if memory else None,
                "whole": row.get("reserved"),
                "most in": stage,
                "training / planned": training,
                "base": row.get("base_dtype"),
                "twice": {True: "on", False: "off"}.get(row.get("checkpointing")),
                "s per step": row.get("seconds_per_step"),
                "minutes for the recipe": row.get("minutes"),
                "file MiB": row["size"] / 2**20 if "size" in row else None,
                "problem": row["problem"][:120],
            }
        )  # fmt: skip
    return shown


def measure(args: argparse.Namespace, work: Path) -> list[dict[str, Any]]:
    """Every chosen case; the results so far are written after each."""
    began = time.time()

    def left() -> float | None:
        return args.seconds and max(1.0, args.seconds - (time.time() - began))

    families = sorted({CASES[name]["family"] for name in args.cases})
    made = [family for family in families if (work / f"{family}.made-{args.narrow}").exists()]
    words = [sys.executable, str(ROOT / "benchmarks" / "random_models.py"), str(work)]
    narrow = ["--narrow", str(args.narrow), *(["--side", str(args.side)] if args.side else [])]
    makers = [
        Run(f"make {family}", [*words, family, *narrow], work / f"make-{family}")
        for family in families
        if family not in made
    ]
    for maker in makers:
        maker.begin()
    if args.make_only:
        sys.exit(max((maker.wait() or 0 for maker in makers), default=0))
    args.facts["device"] = device_name(args.device)
    driver, rows = driver_gib(args.device), []
    for maker in [None, *makers]:  # what is made is trained while the next is still being made
        ready = made
        if maker is not None:
            status, ready = maker.wait(left()), [maker.name.removeprefix("make ")]
            print(f"{time.time() - began:5.0f} s  {maker.name}: exit status {status}", file=sys.stderr, flush=True)
        runs = [make_run(name, args, work) for name in args.cases if CASES[name]["family"] in ready]
        for run in run_all(runs, args.at_once, take_turns=True, seconds=left()):
            rows.append(read_run(run, driver))
            print(f"{time.time() - began:5.0f} s  {run.name}: {run.problem or 'done'}", file=sys.stderr, flush=True)
            write_json(args.out, {"facts": args.facts, "driver_gib": driver, "table": table(rows), "runs": rows})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n\n")[0], epilog=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the results as JSON after every run")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES), metavar="NAME")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--at-once", type=int, default=1, help="runs made ready side by side")
    parser.add_argument("--seconds", type=float, help="end after this time with what there is")
    parser.add_argument("--work", type=Path, help="folder for models and caches, kept (default: a temporary one)")
    parser.add_argument("--make-only", action="store_true", help="only make the models, in --work")
    parser.add_argument("--narrow", type=int, default=1, choices=(1, 2, 5, 10), help="divides all widths by this")
    parser.add_argument("--side", type=int, help="side of the pictures, instead of 512 and 1024")
    parser.add_argument("--precision", default="auto", help="what to compute in")
    parser.add_argument("--tiny", action="store_true", help="narrow models at 64 px, to try this script out")
    args = parser.parse_args()
    if args.tiny:
        args.narrow, args.side = 10, 64
    args.facts = {"command": " ".join(["python", *sys.argv]), "device": ""}
    with tempfile.TemporaryDirectory() as temporary:
        work = (args.work or Path(temporary)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        rows = measure(args, work)
    if args.json:
        print(json.dumps({"facts": args.facts, "runs": rows}, indent=1))
    else:
        print(f"{args.facts['device']}\n\n{markdown(table(rows))}")


if __name__ == "__main__":
    main()
