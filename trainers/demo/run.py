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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from trainers.errors import InputError, did_you_mean
from trainers.events import read_events
from trainers.options import fields_for
from trainers.presets import load_preset

ROOT = Path(__file__).resolve().parent.parent.parent
NAME = "football"
START = "white circle"  # what a word for it starts from, of all that the base can draw
SEEDS = (3, 11)
DRAWING = {"steps": 25, "cfg": 3.0}
TAUGHT = (
    "a large football on a green background",
    "a football on a blue background",
    "a football on a pink background",
)
KEPT = (
    "a red star on a green background",
    "a large yellow circle on a blue background",
)


@dataclass(frozen=True)
class Task:
    """What the demonstration works on; tests put smaller things in."""

    base: Path = ROOT / "assets" / "base" / "athanor-base.safetensors"
    pictures: Path = ROOT / "assets" / "pictures" / NAME
    unrelated: Path = ROOT / "assets" / "pictures" / "unrelated"
    known: int = 160
    preset: str = "demo"
    method: str = "lora"

    @property
    def result(self) -> str:
        """What comes out, in the middle of a sentence."""
        return RESULTS[self.method]

    @property
    def keeps(self) -> bool:
        """Whether known drawings are shown in turn with the new thing: a word of its own changes nothing else."""
        return self.method != "textual_inversion"

    def job(self, out: Path) -> dict[str, Any]:
        """The raw options of the training job."""
        return {
            **load_preset(self.preset),
            **({"regularisation_data": str(out / "known")} if self.keeps else {}),
            **({"initial_text": START} if has_option(self.method, "initial_text") else {}),
            **({"verdict": False} if has_option(self.method, "verdict") else {}),  # before and after is its picture
            "name": NAME,
            "comment": "made by `python install.py demo`",
            "base": str(self.base),
            "data": str(self.pictures / "train"),
            "validation_data": str(self.pictures / "held-out"),
            "prior_data": str(self.unrelated),
            "cache_dir": str(out / "cache"),
        }


def has_option(method: str, name: str) -> bool:
    """Whether a method has an option."""
    return name in (option.name for option in fields_for(method))


RESULTS = {
    "lora": "LoRA",
    "textual_inversion": "embedding",
    "pivotal": "LoRA and its word",
    "dreambooth": "taught model",
    "hypernetwork": "hypernetwork",
}
"""The methods that have a demonstration, and what each makes."""


def task_for(method: str) -> Task:
    """The demonstration of a method.

    Raises:
        InputError: it has none.
    """
    if method == "aesthetic_gradient":
        raise InputError(
            "--method aesthetic_gradient: it takes a CLIP model that has seen many pictures, and none comes with the "
            "project, so there is nothing to demonstrate it with; take your own "
            "with `python -m trainers aesthetic_gradient --clip-model FOLDER --data FOLDER --name NAME`."
        )
    if method not in RESULTS:
        raise InputError(f"--method: {method!r} is not one of {', '.join(RESULTS)}." + did_you_mean(method, RESULTS))
    if method == "lora":
        return Task()
    return Task(preset=f"demo/{method}", method=method)


def _run_folder(out: Path) -> Path:
    """A run folder of its own for every demonstration: nothing of an earlier one is overwritten."""
    from trainers.engine.runfolder import unused_folder

    return unused_folder(out / "runs", NAME)


def train(task: Task, out: Path) -> Path:
    """Trains with `python -m trainers run`, its progress shown as it comes; returns the run folder.

    Raises:
        RuntimeError: the trainer ended with another exit status than 0 (it has said why).
    """
    from assets.recipe.known import write_known

    # Drawings of what the base knows, shown in turn with the new thing: without them a small model forgets at once.
    if task.keeps:
        write_known(out / "known", task.known)
    job = out / "job.yaml"
    job.write_text(yaml.safe_dump(task.job(out), allow_unicode=True, sort_keys=False), encoding="utf-8")
    run = _run_folder(out)
    status = subprocess.call([sys.executable, "-m", "trainers", "run", str(job), "--run", str(run)], cwd=ROOT)
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


def draw_all(base, prompts: Sequence[str], size: int) -> list[list[Any]]:
    """A list of pictures per prompt, one for each of `SEEDS`."""
    from trainers.bases.text import encode_prompts, stack
    from trainers.engine.sampling import draw

    def encode(texts: list[str]):
        return stack(encode_prompts(base, texts, clip_skip=base.family.default_clip_skip, max_chunks=1), None)

    return [draw(base, encode, [prompt] * len(SEEDS), SEEDS, size=(size, size), **DRAWING) for prompt in prompts]


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
    prompts = (*TAUGHT, *KEPT)
    before = draw_all(base, prompts, size)
    with taught(task, base, result) as changed:
        after = draw_all(changed, prompts, size)
    return {prompt: (b, a) for prompt, b, a in zip(prompts, before, after, strict=True)}


def _change(report: dict[str, Any], which: str) -> float:
    """How much the loss changed, in percent."""
    return 100 * (report[f"{which}_loss_trained"] / report[f"{which}_loss_base"] - 1)


def verdict(report: dict[str, Any]) -> str:
    """One sentence that says what the two losses mean, also when they are not what one would wish."""
    held_out, prior = _change(report, "validation"), _change(report, "prior")
    learned = "it learned the football" if held_out <= -30 else "it learned less of the football than it should"
    kept = "and forgot little of the rest" if prior <= 5 else "but also forgot some of the rest"
    return (
        f"On football pictures it never saw the error went {held_out:+.0f} %, on pictures of other things "
        f"{prior:+.0f} %: {learned}, {kept}. These are figures of a toy model; look at the picture too."
    )


def make_picture(task: Task, report: dict[str, Any], drawn: dict[str, tuple[list[Any], list[Any]]]):
    """The labelled page."""
    from trainers.demo.picture import Group, Row, compose

    def group(heading: str, prompts: Sequence[str]) -> Group:
        return Group(heading, [Row(prompt, SEEDS, *drawn[prompt]) for prompt in prompts])

    count = len(list((task.pictures / "train").glob("*.png")))
    return compose(
        f"Before and after: {task.result}",
        f"The embedded base had never seen a football; the {task.result} was taught one from {count} pictures, in "
        f"{report['steps']} steps and {report['seconds']:.0f} seconds. Left and right: the same prompt and seed.",
        [group("what was taught", TAUGHT), group("what was known before", KEPT)],
        verdict(report),
        result=task.result,
    )


def demonstrate(out: Path, task: Task | None = None) -> dict[str, Any]:
    """Trains, draws and reports into `out`; returns the report."""
    task = task or Task()
    began = time.monotonic()
    if not task.base.is_file():
        raise InputError(f"{task.base} is missing; get the whole repository (a clone or the full archive).")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {out}: this folder cannot be made ({error.strerror}).") from None
    print(f"Teaching the embedded base a football from {task.pictures / 'train'}", flush=True)
    run = train(task, out)
    report = measured(run)
    print(f"Drawing the same prompts and seeds without and with the {task.result} ...", flush=True)
    drawn = before_and_after(task, Path(report["result"]), size=load_preset(task.preset)["resolution"])
    picture = out / "before-after.png"
    make_picture(task, report, drawn).save(picture)
    report["picture"] = str(picture)
    report["seconds_total"] = round(time.monotonic() - began, 1)
    (out / "report.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return report


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 1 the training or drawing failed, 2 something is missing."""
    parser = argparse.ArgumentParser(prog="python -m trainers.demo", description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "demo", metavar="DIR")
    parser.add_argument(
        "--method",
        default="lora",
        metavar="NAME",
        help=f"one of {', '.join(RESULTS)}; aesthetic_gradient has none, because it takes a CLIP model that has seen "
        "many pictures, and none comes with the project",
    )
    options = parser.parse_args(arguments)
    try:
        task = task_for(options.method)
        report = demonstrate(options.out, task)
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
    print(verdict(report))
    print(f"Before and after: {report['picture']}")
    print(f"The {task.result}: {report['result']}")
    return 0
