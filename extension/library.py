"""What was trained here, and what else the host can use: the cards of the library."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from extension.injection.adapter_file import AdapterFiles, Stamp, stamp
from extension.jobs import view
from extension.jobs.files import read_json
from extension.jobs.view import RunView
from extension.listing import walk_files
from extension.workshop import Workshop
from trainers.errors import InputError
from trainers.formats import aesthetic
from trainers.formats.safetensors_io import read_header

MOST = 1000
ENDINGS = {
    "lora": (".safetensors", ".pt", ".ckpt"),
    "textual_inversion": (".safetensors", ".pt", ".bin"),
    "hypernetwork": (".pt",),
    "aesthetic_gradient": (".safetensors", ".pt"),
}
"""Kinds of files that have cards; whole models are chosen elsewhere in every host."""
PREVIEWS = (".png", ".preview.png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class Shelved:
    """One file in a folder of the host.

    Attributes:
        id: names it in requests; it leads to a listed file or to nothing, never to a path.
    """

    id: str
    method: str
    path: Path

    @property
    def preview(self) -> Path | None:
        found = (self.path.with_suffix(ending) for ending in PREVIEWS)
        return next((path for path in found if path.is_file()), None)


def method_of(path: Path, method: str) -> str:
    """How a run's file is used: a word that was trained beside a LoRA has a file of its own, which is an embedding."""
    if method != "pivotal":
        return method
    try:
        said = read_header(path).metadata.get("modelspec.architecture", "")
    except (InputError, OSError):
        said = ""
    return "textual_inversion" if said.endswith("/textual-inversion") else "lora"


def _shelf_of(made: RunView) -> str:
    """Among which files a run's result lies: what pivotal tuning makes is a LoRA."""
    return "lora" if made.method == "pivotal" else made.method


def nearest_words(path: Path) -> str:
    """What an embedding learned, as the words nearest to its first vectors; empty where the file does not say."""
    try:
        found = json.loads(read_header(path).metadata.get("athanor.nearest_words", "[]"))
        return "; ".join(", ".join(map(str, words[:3])) for words in found[:4])
    except (InputError, OSError, ValueError, TypeError):
        return ""


def tag_for(method: str, name: str, path: Path) -> str:
    """What is written in a prompt to use a file under this name."""
    options = aesthetic.tag_options(path) if method == "aesthetic_gradient" else ""
    kinds = {
        "textual_inversion": f"<ti:{name}:1>",
        "hypernetwork": f"<hypernet:{name}:1>",
        "aesthetic_gradient": f"<aesthetic:{name}:1{options}>",
    }
    return kinds.get(method, "" if method == "dreambooth" else f"<lora:{name}:1>")


def shelf(workshop: Workshop) -> Iterator[Shelved]:
    """Every file of the host that has a card."""
    runs = workshop.jobs.runs.resolve()
    in_run: dict[Path, bool] = {}
    for method, endings in ENDINGS.items():
        own = workshop.results(method)
        folders = [*([own] if own else []), *(workshop.adapters() if method == "lora" else [])]
        places = list(dict.fromkeys(folder.resolve() for folder in folders if folder.is_dir()))
        for folder, path in walk_files(places, endings):
            real = path.resolve()
            inner = real.parent
            if inner not in in_run:  # of runs that were made elsewhere, a host may list the folders too
                in_run[inner] = runs in real.parents or any(_is_run(each) for each in real.parents[:3])
            if not in_run[inner]:
                yield Shelved(f"{method}/{path.relative_to(folder).as_posix()}", method, path)


def _is_run(folder: Path) -> bool:
    return (folder / "job.yaml").is_file() and (folder / "events.jsonl").is_file()


def find(workshop: Workshop, wanted: str) -> Shelved:
    """The file that an id means.

    Raises:
        InputError: there is none.
    """
    found = next((one for one in shelf(workshop) if one.id == wanted), None)
    if found is None:
        raise InputError(f"There is no file {wanted[:100]!r} any more; reload the library.")
    return found


def library(workshop: Workshop) -> list[dict[str, Any]]:
    """One entry for each file of the host, newest first, with the run that made it where that is known; before them
    what runs have made and that is in none of the host's folders yet."""
    runs = [made for made in workshop.jobs.all() if made.outputs]
    made_by = {
        (_shelf_of(made), name): made for made in reversed(runs) for name in (made.published or {}).get("names", [])
    }
    entries, shown = [], set()
    for one in list(shelf(workshop))[:MOST]:
        made = made_by.get((one.method, one.path.stem))
        entries.append(_entry(one.path, one.method, made, one))
        shown.add(made.id if made else "")
    others = [made for made in runs if made.id not in shown]
    unpublished = [
        {
            **_entry(workshop.jobs.runs / made.id / made.best_file, _shelf_of(made), made, None),
            "is_there": _is_model_there(workshop, made),
        }
        for made in others
    ]
    return unpublished + sorted(entries, key=lambda entry: -entry["changed"])


def _entry(path: Path, method: str, made: RunView | None, shelved: Shelved | None) -> dict[str, Any]:
    try:
        status = path.stat()
        size, changed = status.st_size, status.st_mtime
    except OSError:
        size, changed = 0, 0.0
    picture = shelved.preview if shelved else None
    card = (read_json(path.with_suffix(".json")) or {}) if shelved else {}
    facts = _facts(path, method)
    name = path.stem if shelved or made is None else made.name
    trigger = str(card.get("activation text") or (made.trigger if made else "") or facts.get("trigger", ""))
    return {
        "id": shelved.id if shelved else "", "name": name, "file": path.name, "bytes": size, "changed": changed,
        "method": method, "run": made.id if made else "", "finished": made is None or made.state == view.DONE,
        "files": len(made.outputs) if made else 1,
        "trigger": trigger if method != "textual_inversion" else path.stem,
        "base": (made.base if made else "") or facts.get("base", ""), "rank": facts.get("rank"),
        "steps": facts.get("steps"), "sites": facts.get("sites", {}), "family": facts.get("family", ""),
        "words": facts.get("words", ""),
        "problem": facts.get("problem", ""), "notes": str(card.get("notes", "")),
        "picture": picture.stat().st_mtime if picture else 0.0,
        "sample": _sample(made),
        "step": next((each["step"] for each in made.outputs if each["file"] == path.name), None) if made else None,
        "tag": tag_for(method, name, path),
    }  # fmt: skip


def sample_near(made: RunView, step: int) -> str:
    """Path in a run of the picture of its first sample prompt, which is the word alone, drawn nearest to a step; empty
    where only the base drew one, before the first step."""
    drawn = [sample for sample in made.samples if sample["step"]]
    nearest = min(drawn, key=lambda sample: abs(sample["step"] - step), default=None)  # the first of several
    return str(nearest["path"]) if nearest else ""


def _is_model_there(workshop: Workshop, made: RunView) -> bool:
    """Whether a whole model is among the host's, where it has no card of its own."""
    folder, name = workshop.results(made.method), (made.published or {}).get("name")
    return bool(folder and name and (folder / f"{name}{Path(made.best_file).suffix}").is_file())


def _sample(made: RunView | None) -> str:
    """Name of the newest such picture."""
    return sample_near(made, made.step).rpartition("/")[2] if made else ""


_FACTS: dict[Stamp, dict[str, Any]] = {}
_FILES = AdapterFiles()


def _facts(path: Path, method: str) -> dict[str, Any]:
    """What a file says of itself; its header is read once for each content."""
    try:
        known = stamp(path)
    except OSError:
        return {}
    if known not in _FACTS:
        try:
            _FACTS[known] = _read_facts(path, method)
        except InputError as error:
            _FACTS[known] = {"problem": error.problems[0].replace(str(path), path.name)}
    return _FACTS[known]


def _read_facts(path: Path, method: str) -> dict[str, Any]:
    if path.is_dir():
        return {}
    said = read_header(path).metadata if path.suffix.lower() == ".safetensors" else {}
    facts: dict[str, Any] = {
        "trigger": said.get("modelspec.trigger_phrase", ""),
        "base": said.get("ss_sd_model_name", "").replace("None", ""),
        "rank": _number(said.get("ss_network_dim")),
        "steps": _number(said.get("ss_steps")),
        "words": nearest_words(path) if "athanor.nearest_words" in said else "",
    }
    if method == "lora":
        adapter = _FILES.get(path)
        counts = Counter("unet" if component == "unet" else "text" for component, _ in adapter.groups)
        facts |= {"family": adapter.family or "", "sites": dict(counts)}
    return facts


def _number(text: str | None) -> int | None:
    try:
        return int(json.loads(text)) if text else None
    except (ValueError, TypeError):
        return None
