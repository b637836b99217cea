"""Trains through the real command line, draws the same prompts and seeds without and with the written file, and
reports what was measured."""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from trainers.demo import look
from trainers.demo.tasks import RESULTS, ROOT, Subject, Task, task_for
from trainers.errors import InputError
from trainers.events import read_events
from trainers.presets import load_preset

SEEDS = (3, 11, 5, 8)
SHOWN = 2
"""So many of the seeds are in the picture; all of them are judged where what was taught can be told by its drawing."""
DRAWING = {"steps": 25, "cfg": 3.0}
KEPT = (
    "a red star on a green background",
    "a large yellow circle on a blue background",
)


def train(job: dict[str, Any], out: Path) -> Path:
    """Trains with `python -m trainers run`, its progress shown as it comes; returns the run folder.

    Raises:
        RuntimeError: the trainer ended with another exit status than 0 (it has said why).
    """
    from trainers.engine.runfolder import unused_folder

    file = out / "job.yaml"
    file.write_text(yaml.safe_dump(job, allow_unicode=True, sort_keys=False), encoding="utf-8")
    run = unused_folder(out / "runs", job["name"])  # nothing of an earlier demonstration is overwritten
    status = subprocess.call([sys.executable, "-m", "trainers", "run", str(file), "--run", str(run)], cwd=ROOT)
    if status != 0:
        raise RuntimeError(f"The training ended with exit status {status}; its folder is {run}.")
    return run


def measured(run: Path) -> dict[str, Any]:
    """The report's figures, from the run's events: losses before and after, steps, seconds of training alone."""
    events, _ = read_events(run / "events.jsonl")
    last = {event["event"]: event for event in events}
    validation, done = last["validation"], last["done"]
    steps = [event for event in events if event["event"] == "step"]
    return {
        "seconds": round(sum(event["seconds"] for event in steps), 1),
        "steps": done["step"],
        "validation_loss_base": validation["base_loss"],
        "validation_loss_trained": validation["loss"],
        "prior_loss_base": validation["prior_base_loss"],
        "prior_loss_trained": validation["prior_loss"],
        "result": str(run / done["path"]),
    }


def put_in(base, lora: Path) -> int:
    """Adds the LoRA file to the weights of a loaded base: W + alpha / rank * up down. Returns the number of sites."""
    import torch

    from trainers.bases.loader import module_for
    from trainers.formats.adapters import read_adapter
    from trainers.formats.sites import text_sites, unet_sites

    sites = [*unet_sites(base.family, conv3x3=True)]
    for index in range(len(base.family.text_encoders)):
        sites += text_sites(base.family, index)
    by_name = {site.name: site for site in sites}
    entries = read_adapter(lora, base.family.name).entries
    for name, entry in entries.items():
        module = module_for(base, by_name[name])
        down, up = entry["lora_down"].float(), entry["lora_up"].float()
        delta = (up.flatten(1) @ down.flatten(1)).reshape(module.weight.shape)
        # A weight of its own: the loaded one may be the file's memory mapping.
        changed = module.weight.float() + delta * (entry["alpha"] / down.shape[0])
        module.weight = torch.nn.Parameter(changed.to(module.weight.dtype), requires_grad=False)
    return len(entries)


def draw_all(base, prompts: Sequence[str], size: int, seeds: Sequence[int]) -> list[list[Any]]:
    """A list of pictures per prompt, one for each seed."""
    from trainers.bases.text import encode_prompts, stack
    from trainers.engine.sampling import draw

    def encode(texts: list[str]):
        return stack(encode_prompts(base, texts, clip_skip=base.family.default_clip_skip, max_chunks=1), None)

    return [draw(base, encode, [prompt] * len(seeds), seeds, size=(size, size), **DRAWING) for prompt in prompts]


@contextlib.contextmanager
def taught(task: Task, base, result: Path) -> Iterator[Any]:
    """The base with the result in it, or the model that came out. The base may be changed by it."""
    from trainers.bases.loader import load_base
    from trainers.engine.runfolder import RunFolder
    from trainers.engine.session import check_base
    from trainers.methods import setup_for

    if task.method == "lora":
        if put_in(base, result) == 0:
            raise RuntimeError(f"{result} holds no LoRA layers.")
        yield base
    elif task.method == "dreambooth":
        yield load_base(result)
    else:
        job, _ = check_base(RunFolder(result.parent).read_job())
        trainable = setup_for(task.method)(base, job)
        trainable.start_from(result)
        with trainable.at_rest():
            yield base


def before_and_after(task: Task, result: Path, size: int) -> dict[str, tuple[list[Any], list[Any]]]:
    """Prompt -> (pictures without, pictures with the result), drawn with the same seeds."""
    from trainers.bases.loader import load_base

    base = load_base(task.base)
    prompts = (*task.subject.prompts, *KEPT)
    seeds = SEEDS if task.subject.looks_like else SEEDS[:SHOWN]
    before = draw_all(base, prompts, size, seeds)
    with taught(task, base, result) as changed:
        after = draw_all(changed, prompts, size, seeds)
    return {prompt: (b, a) for prompt, b, a in zip(prompts, before, after, strict=True)}


def _change(report: dict[str, Any], which: str) -> float:
    """How much the loss changed, in percent."""
    return 100 * (report[f"{which}_loss_trained"] / report[f"{which}_loss_base"] - 1)


def share_right(subject: Subject, drawn: dict[str, tuple[list[Any], list[Any]]], side: int) -> float:
    """How often what is seen has the subject's shape and colour; `side` 0 is without the result, 1 with it."""
    import numpy as np

    from assets.recipe.checker import judge

    seen = [judge(np.asarray(picture.convert("RGB"))) for p in subject.prompts for picture in drawn[p][side]]
    return round(sum((one.shape, one.colour) == subject.looks_like for one in seen) / len(seen), 4)


def verdict(report: dict[str, Any], subject: Subject) -> str:
    """What the figures mean, also when they are not what one would wish."""
    held_out, prior = _change(report, "validation"), _change(report, "prior")
    right = report.get("right_with")
    well = right >= 0.8 if right is not None else held_out <= -30
    shares = [round(100 * report.get(f"right_{name}", 0)) for name in ("without", "with")]
    counted = "" if right is None else f" and {shares[1]} % of the pictures drawn show one ({shares[0]} % before)"
    learned = f"it learned {subject.said}" if well else f"it learned less of {subject.said} than it should"
    kept = "and forgot little of the rest" if prior <= 5 else "but also forgot some of the rest"
    kept = kept if prior else "and nothing else changed"
    return (
        f"On {subject.word} pictures it never saw the error went {held_out:+.0f} %{counted}; on pictures of other "
        f"things {prior:+.0f} %: {learned}, {kept}. These are figures of a toy model; look at the picture too."
    )


def make_picture(task: Task, report: dict[str, Any], drawn: dict[str, tuple[list[Any], list[Any]]], count: int):
    """The labelled page."""
    from trainers.demo.picture import Group, Row, compose

    def group(heading: str, prompts: Sequence[str]) -> Group:
        return Group(heading, [Row(p, SEEDS[:SHOWN], *(side[:SHOWN] for side in drawn[p])) for p in prompts])

    return compose(
        f"Before and after: {task.result}",
        f"{task.subject.was_new}; the {task.result} was taught {task.subject.said} from {count} pictures, in "
        f"{report['steps']} steps. Left and right: the same prompt and seed.",
        [group("what was taught", task.subject.prompts), group("what was known before", KEPT)],
        verdict(report, task.subject),
        result=task.result,
    )


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {out}: this folder cannot be made ({error.strerror}).") from None


def _needs(path: Path) -> None:
    if not path.exists():
        raise InputError(f"{path} is missing; get the whole repository (a clone or the full archive).")


def _write(out: Path, report: dict[str, Any], page: Any, began: float) -> dict[str, Any]:
    """Writes the picture and the report, which is returned."""
    report["picture"] = str(out / "before-after.png")
    page.save(report["picture"])
    report["seconds_total"] = round(time.monotonic() - began, 1)
    (out / "report.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return report


def demonstrate(out: Path, task: Task | None = None) -> dict[str, Any]:
    """Trains, draws and reports into `out`; returns the report."""
    task = task or Task()
    began = time.monotonic()
    _needs(task.base)
    _make_folder(out)
    task.prepare(out)
    pictures = task.pictures(out) / "train"
    print(f"Teaching the embedded base {task.subject.said} from {pictures}", flush=True)
    report = measured(train(task.job(out), out))
    print(f"Drawing the same prompts and seeds without and with the {task.result} ...", flush=True)
    drawn = before_and_after(task, Path(report["result"]), size=load_preset(task.preset)["resolution"])
    if task.subject.looks_like:
        report |= {f"right_{name}": share_right(task.subject, drawn, i) for i, name in enumerate(("without", "with"))}
    report["verdict"] = verdict(report, task.subject)
    return _write(out, report, make_picture(task, report, drawn, len(list(pictures.glob("*.png")))), began)


def demonstrate_look(out: Path, base: Path = Task.base) -> dict[str, Any]:
    """The same for aesthetic gradients, which train nothing."""
    began = time.monotonic()
    _needs(base)
    _needs(look.CLIP)
    _make_folder(out)
    look.draw_pictures(out)
    print(f"Looking at the pictures in {out / 'pictures'}", flush=True)
    report = look.measured(train(look.job(out), out))
    print("Drawing the same prompts and seeds without and with the tag, in the embedded host ...", flush=True)
    drawn = look.draw(out, base, Path(report["result"]))
    report |= look.effect(drawn, Path(report["result"]))
    report["verdict"] = look.verdict(report)
    return _write(out, report, look.page(report, drawn), began)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 1 the training or drawing failed, 2 something is missing."""
    parser = argparse.ArgumentParser(prog="python -m trainers.demo", description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "demo", metavar="DIR")
    parser.add_argument(
        "--method",
        default="lora",
        metavar="NAME",
        help=f"one of {', '.join(RESULTS)}",
    )
    options = parser.parse_args(arguments)
    try:
        one_pass = options.method == "aesthetic_gradient"
        report = demonstrate_look(options.out) if one_pass else demonstrate(options.out, task_for(options.method))
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        print(f"{error.filename or options.out}: cannot be written ({error.strerror or error}).", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return 130
    print(report["verdict"])
    print(f"Before and after: {report['picture']}")
    print(f"The {RESULTS[options.method]}: {report['result']}")
    return 0
