"""How fast each way of teaching learns the bundled football, and what that costs on pictures of other things.

    python benchmarks/learning.py [--json] [--out FILE] [--methods NAME ...] [--seeds 3] [--at-once 1] [--seconds N]

Every run is the real trainer as a process of its own on the embedded base, 4 pictures a step, measured on held-out and
on unrelated pictures every few steps (fixed noise, unweighted error, relative to the base's own). Printed are medians
over the seeds: steps, and seconds of training, until the held-out error has fallen to a fixed share of the base's;
what the error on unrelated pictures had become by then; and both at the end of the run.

Two questions are asked apart. *Recipes*: the learning options of a preset for real models as they are, beside the
field's usual defaults as they are (AdamW 1e-4, rank 16, alpha 1 or 16, constant, no weighting). *Methods*: all of them
with rates that suit this tiny base, so only their order says something. `--add "name: option=value ..."` tries others:
`--add "plus: like=lora lora_plus=8"`. With `--at-once` several run side by side and their seconds count that. With
`--work FOLDER` what was ended there before is not run again, so that a benchmark that was stopped goes on; with
`--until-reached` runs end where the error is reached, and the last columns say how it was then.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from runs import ROOT, Run, device_name, markdown, run_all, trainer_run, write_json

from assets.recipe.known import write_known
from trainers.presets import load_preset

TARGET = 0.6
KNOWN = "(known)"  # stands for a folder of drawings that the base knows
PICTURES = ROOT / "assets" / "pictures"
COMMON = {
    "name": "football",
    "base": ROOT / "assets" / "base" / "athanor-base.safetensors",
    "data": PICTURES / "football" / "train",
    "validation_data": PICTURES / "football" / "held-out",
    "prior_data": PICTURES / "unrelated",
    "resolution": 64, "bucket_step": 64, "bucket_min": 64, "bucket_max": 64, "clip_skip": 1, "flip": False,
    "batch_size": 4, "gradient_accumulation": 1, "threads": 1, "precision": "fp32", "state_every": 1000000,
    "steps": 150, "validate_every": 10, "validation_draws": 2,
}  # fmt: skip

# Drawings of what the base knows in half of each batch, held to what it predicts for them itself.
HELD = {"regularisation_data": KNOWN, "prior_target": "base", "prior_weight": 6, "batch_size": 8}

# What sd-scripts and diffusers' example do when nothing is said.
FIELD = {
    "method": "lora", "rank": 16, "learning_rate": 1e-4, "text_encoder_lr": 1e-4, "optimizer": "adamw",
    "schedule": "constant", "warmup": 0, "min_snr_gamma": 0, "steps": 240, "validate_every": 20,
}  # fmt: skip

# Options of a preset that say how it learns; the others say what for (size of pictures, tags, dose).
_LEARNING = (
    "method", "rank", "alpha", "conv_rank", "conv_alpha", "lora_plus", "rslora", "learning_rate", "text_encoder_lr",
    "optimizer", "weight_decay", "schedule", "warmup", "cycles", "min_snr_gamma", "debiased", "loss", "ema",
    "caption_drop", "timestep_sampling", "prior_target", "prior_weight",
)  # fmt: skip


def _of_preset(name: str, **changes: Any) -> dict[str, Any]:
    preset = load_preset(name)
    return {**{key: preset[key] for key in _LEARNING if key in preset}, **changes}


def _toy(**options: Any) -> dict[str, Any]:
    """A method on the embedded base, with what is the same for all."""
    return {"schedule": "cosine", "warmup": 10, "min_snr_gamma": 0, "debiased": True, **options}


def cases() -> dict[str, dict[str, Any]]:
    """Name -> options beside `COMMON`. "field…", "demo" and "recipe…" answer the first question."""
    lora = _toy(method="lora", rank=16, alpha=16, learning_rate=1e-3, text_encoder_lr=1e-3)
    # Four pictures of it in each step, as everywhere here, and each once more under a word that this base knows.
    recipe = _of_preset("sd1-object", warmup=8, batch_size=8, trigger="football", kept_word="circle")
    return {
        "field-alpha-1": {**FIELD, "alpha": 1},
        "field-alpha-16": {**FIELD, "alpha": 16},
        "demo": {**_of_preset("demo"), **HELD},  # what is taken for the embedded base
        "recipe": recipe,
        "lora": lora,
        "lora-held": {**lora, **HELD},
        "loha": {**lora, "kind": "loha"},
        "lokr": {**lora, "kind": "lokr"},
        "dora": {**lora, "kind": "dora"},
        "oft": {**lora, "kind": "oft"},
        "ia3": {**lora, "kind": "ia3", "learning_rate": 1e-2, "text_encoder_lr": 1e-2},
        "full": {**lora, "kind": "full", "learning_rate": 1e-4, "text_encoder_lr": 1e-4},
        "textual_inversion": _toy(method="textual_inversion", vectors=4, initial_text="circle", learning_rate=2e-2),
        "pivotal": _toy(
            method="pivotal",
            rank=16,
            alpha=16,
            learning_rate=1e-3,
            embedding_lr=2e-2,
            vectors=4,
            trigger="football",
            name="football-pivotal",
            initial_text="circle",
            train_text_encoder=False,
        ),
        "dreambooth": _toy(method="dreambooth", learning_rate=1e-4, text_encoder_lr=1e-4, save_dtype="fp16"),
        "hypernetwork": _toy(method="hypernetwork", learning_rate=1e-3),
    }


def parse_case(text: str, known: dict[str, dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    """`name: like=lora option=value ...` as (name, options); values as in YAML."""
    import yaml

    name, separator, rest = text.partition(":")
    options: dict[str, Any] = {}
    for word in rest.split():
        key, equals, value = word.partition("=")
        if not equals:
            sys.exit(f"--add {text!r}: {word!r} is not of the form option=value.")
        options[key] = yaml.safe_load(value) if key not in ("learning_rate", "text_encoder_lr") else float(value)
    like = options.pop("like", "lora")
    if not separator or like not in known:
        sys.exit(f"--add {text!r}: write name: option=value ..., with like= one of {', '.join(known)}.")
    return name.strip(), {**known[like], **options}


# --- what a run says


def crossing(points: list[tuple[float, float]], level: float) -> float | None:
    """Where the curve through `points` (x, y), x rising, first falls to `level`; linear between them, or None."""
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if y0 > level >= y1:
            return x0 + (x1 - x0) * (y0 - level) / (y0 - y1)
    return None


def at(points: list[tuple[float, float]], x: float) -> float:
    """The curve's value at x, linear between its points."""
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if x0 <= x <= x1:
            return y0 + (y1 - y0) * (x - x0) / max(x1 - x0, 1e-9)
    return points[-1][1]


def read_run(run: Run, target: float) -> dict[str, Any]:
    """The figures of one run; `problem` where it has none."""
    measured = run.kinds("validation")
    steps = run.kinds("step")
    if run.status not in (0, None) or len(measured) < 2:  # one that ran out of time tells how far it came
        return {"case": run.name, **run.facts, "problem": run.problem or "measured nothing"}
    held_out = [(each["step"], each["loss"] / each["base_loss"]) for each in measured]
    prior = [(each["step"], each["prior_loss"] / each["prior_base_loss"]) for each in measured]
    ends, total = [(0, 0.0)], 0.0
    for each in steps:
        total += each["seconds"]
        ends.append((each["step"], total))
    reached = crossing(held_out, target)
    return {
        "case": run.name, **run.facts, "problem": "",
        "steps": reached, "seconds": None if reached is None else at(ends, reached),
        "prior": None if reached is None else at(prior, reached),
        "end": held_out[-1][1], "prior_end": prior[-1][1], "best": min(y for _, y in held_out),
        "steps_run": steps[-1]["step"], "seconds_per_step": statistics.median(each["seconds"] for each in steps),
        "held_out_curve": held_out, "prior_curve": prior,
    }  # fmt: skip


def _median(values: Iterable[float | None], over: float) -> float | None:
    """The median, where None counts as more than `over`; None when the median itself is such a one."""
    numbers = sorted(over * 2 if value is None else value for value in values)
    middle = statistics.median(numbers)
    return None if not numbers or middle > over else middle


def summary(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per case: medians over its seeds."""
    rows = []
    for name in dict.fromkeys(each["case"] for each in found):
        runs = [each for each in found if each["case"] == name and not each["problem"]]
        if not runs:
            continue
        longest = max(each["steps_run"] for each in runs)
        steps = _median((each["steps"] for each in runs), longest)
        rows.append(
            {
                "case": name,
                "seeds": len(runs),
                "steps": f"> {longest}" if steps is None else round(steps),
                "seconds": None if steps is None else _median((each["seconds"] for each in runs), 1e9),
                "prior then": None if steps is None else _median((each["prior"] for each in runs), 1e9),
                "held-out at the end": statistics.median(each["end"] for each in runs),
                "prior at the end": statistics.median(each["prior_end"] for each in runs),
                "of steps": longest,
                "s per step": statistics.median(each["seconds_per_step"] for each in runs),
            }
        )
    return rows


def measure(args: argparse.Namespace, chosen: dict[str, dict[str, Any]], work: Path) -> list[dict[str, Any]]:
    """Every chosen case with every seed; the results so far are written after each run."""
    shared = {**COMMON, "device": args.device, "cache_dir": work / "cache"}
    if args.tiny:
        shared.update(steps=4, validate_every=2, validation_draws=1)
    if not (work / "known").exists():
        write_known(work / "known", 48)
    began, found = time.time(), []
    first = {**shared, **FIELD, "steps": 1, "validate_every": 0, "validation_draws": 1}
    cache = trainer_run("cache", first.pop("method"), first, work / "cache-run")
    for run in [] if cache.recall() else run_all([cache]):  # the pictures' latents
        if run.problem:
            print(f"the first run failed: {run.problem}", file=sys.stderr)
    runs, known = [], cases()
    for seed in range(1, args.seeds + 1):
        for name, options in chosen.items():
            values = {**shared, **options, "seed": seed}
            values = {key: work / "known" if value == KNOWN else value for key, value in values.items()}
            if args.tiny:
                values.update(steps=shared["steps"], validate_every=shared["validate_every"], warmup=0)
            elif args.steps:
                values.update(steps=args.steps)
            runs.append(trainer_run(name, values.pop("method"), values, work / f"{name}-{seed}", seed=seed))
    for run in runs:
        if args.until_reached:
            run.enough = lambda run: any(m["loss"] <= args.target * m["base_loss"] for m in run.kinds("validation"))
        if run.recall():
            found.append(read_run(run, args.target))
    runs = [run for run in runs if run.status is None]
    runs.sort(
        key=lambda run: (run.facts["seed"], not run.name.startswith("field"), run.name in known)
    )  # the longest first
    for run in run_all(runs, args.at_once, seconds=args.seconds and max(1.0, args.seconds - (time.time() - began))):
        found.append(read_run(run, args.target))
        last = found[-1]
        told = last["problem"] or f"end {last['end']:.3f}, unrelated {last['prior_end']:.3f}, at {last['steps']}"
        print(f"{time.time() - began:5.0f} s  {run.name} seed {run.facts['seed']}: {told}", file=sys.stderr, flush=True)
        write_json(args.out, {"facts": args.facts, "summary": summary(found), "runs": found})
    return found


def main() -> None:
    known = cases()
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n\n")[0], epilog=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the results as JSON after every run")
    parser.add_argument("--methods", nargs="+", metavar="NAME", choices=list(known), help=f"some of {', '.join(known)}")
    parser.add_argument("--add", action="append", default=[], metavar="CASE", help="a further case, see above")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--target", type=float, default=TARGET, help="share of the base's held-out error to reach")
    parser.add_argument("--steps", type=int, help="steps of every run, instead of each case's own")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--at-once", type=int, default=1, help="runs side by side")
    parser.add_argument("--seconds", type=float, help="end after this time with what there is")
    parser.add_argument("--until-reached", action="store_true", help="end each run as soon as the error is reached")
    parser.add_argument("--work", type=Path, metavar="FOLDER", help="keep the runs there, and go on from those")
    parser.add_argument("--tiny", action="store_true", help="four steps each, to try this script out")
    args = parser.parse_args()
    chosen = {name: known[name] for name in args.methods or ([] if args.add else known)}
    for text in args.add:
        name, options = parse_case(text, known)
        chosen[name] = options
    args.facts = {"command": " ".join(["python", *sys.argv]), "device": device_name(args.device), "target": args.target}
    with tempfile.TemporaryDirectory() as temporary:
        work = (args.work or Path(temporary)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        found = measure(args, chosen, work)
    rows = summary(found)
    if args.json:
        print(json.dumps({"facts": args.facts, "summary": rows, "runs": found}, indent=1))
    else:
        print(f"{args.facts['device']}; until the held-out error is {args.target} of the base's\n\n{markdown(rows)}")


if __name__ == "__main__":
    main()
