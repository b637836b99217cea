"""How long a training step takes and how much memory it needs, beside a plain loop of diffusers and PEFT.

    python benchmarks/train_step.py [--quick] [--json] [--out FILE] [--work DIR]
    python benchmarks/train_step.py --device cuda --at-once 4 --repeats 1

Trains rank 16 on models of the published sizes with random weights. On a processor: SD1.5 at 256 px with batch 1, on
the UNet alone (192 layers) and with the text encoder (264), in fp32 and in bf16. On a GPU: SD1.5 at 512 px with batch 1
(with and without text encoder) and 4, SDXL at 1024 px with batch 1, in bf16, none of them computing anything twice.
Each case runs in a process of its own, ours as `python -m trainers run`, and the cases take turns, so that a busy
machine is busy for both. Printed are medians over the turns: seconds per step, seconds from the start of the process
to the first step with warm caches, and the peak of the memory (of the process; on a GPU what torch gave out).
DIR keeps the models.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plain_loop import RANK
from runs import ROOT, Run, device_name, markdown, run_all, trainer_run, write_json

GIB = 2**30


@dataclass(frozen=True)
class Case:
    """What is trained; the same for both loops."""

    family: str
    side: int
    batch: int
    text: bool
    precision: str

    @property
    def words(self) -> str:
        text = ", text encoder too" if self.text else ""
        return f"{self.family} {self.side} px, batch {self.batch}, {self.precision}{text}"


def cases(device: str, quick: bool) -> list[Case]:
    """What is measured on this kind of device."""
    if device == "cuda":
        every = [
            Case("sd1", 512, 1, False, "bf16"), Case("sdxl", 1024, 1, False, "bf16"),
            Case("sd1", 512, 4, False, "bf16"), Case("sd1", 512, 1, True, "bf16"),
        ]  # fmt: skip
        return every[:1] if quick else every
    precisions = ["fp32"] if quick else ["fp32", "bf16"]
    return [Case("sd1", 256, 1, text, precision) for text in (False, True) for precision in precisions]


def our_run(case: Case, args: argparse.Namespace, work: Path, number: int, steps: int) -> Run:
    options = {
        "name": "bench", "base": work / case.family, "data": work / f"pictures-{case.side}", "steps": steps,
        "rank": RANK, "resolution": case.side, "bucket_min": case.side // 2, "batch_size": case.batch,
        "precision": case.precision, "base_dtype": case.precision, "gradient_checkpointing": "off",
        "train_text_encoder": case.text, "state_every": 1000000, "device": args.device, "threads": args.threads,
        "cache_dir": work / "cache",
    }  # fmt: skip
    return trainer_run("ours", "lora", options, work / "runs" / f"ours-{number}", case=case)


def plain_run(case: Case, args: argparse.Namespace, work: Path, number: int, steps: int) -> Run:
    folder = work / "runs" / f"plain-{number}"
    words = ["--model", work / case.family, "--out", folder, "--family", case.family, "--device", args.device]
    words += ["--precision", case.precision, "--side", case.side, "--batch", case.batch, "--steps", steps]
    words += ["--threads", args.threads, *(["--text"] if case.text else [])]
    script = str(ROOT / "benchmarks" / "plain_loop.py")
    return Run("plain", [sys.executable, script, *map(str, words)], folder, {"case": case})


def figures(run: Run) -> dict[str, Any] | None:
    """Seconds of its steps, the time before them and the peak; None when it failed, which is told."""
    steps = run.kinds("step")
    if run.problem or len(steps) < 2:
        print(f"{run.name}, {run.facts['case'].words}: {run.problem or 'no steps'}", file=sys.stderr, flush=True)
        return None
    return {
        # The first steps also warm up the allocator and the kernels, and may have waited for their turn.
        "steps": [each["seconds"] for each in steps[1 + len(steps) // 4 :]],
        "before": run.last("start")["time"] - run.started,
        "peak": run.last("memory").get("peak_bytes") or run.peak_rss,
    }


def summary(found: dict[tuple[Case, str], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """One row for each case and loop."""
    return [
        {
            "case": case.words,
            "loop": who,
            "seconds per step": round(statistics.median(s for one in runs for s in one["steps"]), 4),
            "seconds before the first step": round(statistics.median(one["before"] for one in runs), 2),
            "peak GiB": round(statistics.median(one["peak"] for one in runs) / GIB, 2),
        }
        for (case, who), runs in found.items()
        if runs
    ]


def measure(args: argparse.Namespace, work: Path) -> list[dict[str, Any]]:
    """Every case `repeats` times in turn."""
    began, chosen = time.time(), cases(args.device, args.quick)
    families = sorted({case.family for case in chosen})
    sides = sorted({str(case.side) for case in chosen})
    words = [sys.executable, str(ROOT / "benchmarks" / "random_models.py"), str(work)]
    more = ["--narrow", str(args.narrow), "--side", *sides]
    there = all((work / f"pictures-{side}").exists() for side in sides)
    missing = [each for each in families if not (there and (work / f"{each}.made-{args.narrow}").exists())]
    makers = [Run(f"make {family}", [*words, family, *more], work / f"make-{family}") for family in missing]
    for run in run_all(makers, len(makers)):
        if run.problem:
            sys.exit(f"{run.name}: {run.problem}")
    firsts = {} if args.cold else {(case.family, case.side): case for case in chosen}  # they fill the caches
    first_runs = [our_run(case, args, work, -1 - number, 1) for number, case in enumerate(firsts.values())]
    for run in run_all(first_runs, args.at_once):
        print(f"caches for {run.facts['case'].words}: {run.problem or 'filled'}", file=sys.stderr, flush=True)
    runs, found = [], {(case, who): [] for case in chosen for who in ("ours", "plain")}
    for turn in range(args.repeats):
        for place, case in enumerate(chosen):
            number = turn * len(chosen) + place
            runs += [make(case, args, work, number, args.steps + 2) for make in (our_run, plain_run)]
    left = args.seconds and max(1.0, args.seconds - (time.time() - began))
    for run in run_all(runs, args.at_once, take_turns=True, seconds=left):
        one = figures(run)
        if one:
            found[run.facts["case"], run.name].append(one)
            told = f"{statistics.median(one['steps']):.3f} s per step"
            print(
                f"{time.time() - began:5.0f} s  {run.facts['case'].words}, {run.name}: {told}",
                file=sys.stderr,
                flush=True,
            )
        write_json(args.out, {"facts": args.facts, "rows": summary(found)})
    return summary(found)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n\n")[0], epilog=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one turn of two steps of the first cases")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the results as JSON after every run")
    parser.add_argument("--work", type=Path, help="folder for models and caches, kept (default: a temporary one)")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--at-once", type=int, default=1, help="runs made ready side by side")
    parser.add_argument("--repeats", type=int, default=3, help="turns of every case")
    parser.add_argument("--steps", type=int, default=3, help="measured steps per turn")
    parser.add_argument("--seconds", type=float, help="end after this time with what there is")
    parser.add_argument("--narrow", type=int, default=1, help="divide all widths by 2, 5 or 10, to try this script out")
    parser.add_argument("--cold", action="store_true", help="do not fill the caches before")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 means all")
    args = parser.parse_args()
    if args.quick:
        args.repeats, args.steps = 1, 2
    args.facts = {"command": " ".join(["python", *sys.argv]), "device": device_name(args.device)}
    with tempfile.TemporaryDirectory() as temporary:
        work = (args.work or Path(temporary)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        rows = measure(args, work)
    print(json.dumps({"facts": args.facts, "rows": rows}, indent=1) if args.json else markdown(rows))


if __name__ == "__main__":
    main()
