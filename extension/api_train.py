"""Routes of the Train screen: recipes, base models, methods, tokens, job files; `extension.api` adds them."""

from __future__ import annotations

import base64
from dataclasses import asdict
from io import BytesIO
from typing import Any

from fastapi import APIRouter, Body, Query

from extension import composing, job_files
from extension.api_support import map_of, text_of
from extension.choosing import Question, answer, time_of
from extension.composing import Wish
from extension.grids import SEED, Drawing
from extension.recipes import Base, describe_base
from extension.starting import starting_points
from extension.tokens import ribbon
from extension.workshop import Workshop
from trainers.errors import InputError
from trainers.presets import preset_names

_BODY = Body(default={})
_LONGEST_TEXT = 4000
_MOST_TEXTS = 200


def add_train_routes(router: APIRouter, workshop: Workshop) -> None:
    """Adds the routes."""
    _add_recipes(router, workshop)
    _add_own_presets(router, workshop)
    _add_bases(router, workshop)
    _add_job_files(router, workshop)

    @router.post("/tokens")
    def tokens(body: dict[str, Any] = _BODY) -> dict[str, Any]:
        """How the tokenizer splits each of `texts`, and how many of the 75 places they take; empty without one."""
        texts = body.get("texts")
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise InputError("texts: must be a list of texts.")
        tokenize = workshop.tokenizer()
        short = [text[:_LONGEST_TEXT] for text in texts[:_MOST_TEXTS]]
        return {"texts": [ribbon(text, tokenize) for text in short] if tokenize else []}


def _base_of(workshop: Workshop, body: dict[str, Any]) -> Base:
    chosen = next((each for each in workshop.bases() if str(each.path) == body.get("base")), None)
    return chosen or describe_base(workshop.confined(text_of(body, "base"), "base"))


def _number(body: dict[str, Any], name: str) -> int | None:
    value = body.get(name)
    if value in (None, "", 0):
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0:
        raise InputError(f"{name}: must be a number.")
    return int(value)


def _add_recipes(router: APIRouter, workshop: Workshop) -> None:
    @router.get("/recipes")
    def all_recipes() -> dict[str, Any]:
        """Purposes, paces, methods with what each asks, sizes of memory, shipped recipes, and one's own."""
        device, size = workshop.device()
        return {
            "purposes": composing.table("purposes"),
            "paces": composing.table("paces"),
            "methods": {name: {"title": each["title"], "older": bool(each.get("older")), "asks": composing.asked(name)}
                        for name, each in composing.methods().items()},
            "memory": {"classes": composing.memory_classes(), "own": composing.memory_class(size), "bytes": size},
            "device": device.partition(":")[0],
            "presets": [{"name": name, "about": composing.about_preset(name),
                         "method": composing.method_of_preset(name)} for name in preset_names()],
            "own": workshop.presets.names(),
        }  # fmt: skip

    @router.post("/recipes/compose")
    def compose(body: dict[str, Any] = _BODY) -> dict[str, Any]:
        """The options for a purpose (or preset), pace, base, method and memory, and how long each pace takes here."""
        base = _base_of(workshop, body)
        device, _ = workshop.device()

        def at(pace: str) -> composing.Recipe:
            return composing.compose(
                Wish(base, text_of(body, "purpose", "object"), pace, text_of(body, "method", "lora"),
                     _number(body, "memory"), text_of(body, "preset"), _number(body, "pictures"))
            )  # fmt: skip

        made, paces = at(text_of(body, "pace", "balanced")), {}
        for pace in composing.table("paces"):
            one = at(pace)
            seconds, run = time_of(one, base, device, workshop.jobs.runs)
            paces[pace] = {"exposures": one.exposures, "steps": one.values.get("steps"), "seconds": seconds,
                           "measured": run, "capped": one.capped}  # fmt: skip
        about = (
            composing.about_preset(made.preset) if made.preset else composing.methods()[made.values["method"]]["about"]
        )
        return {"preset": made.preset, "values": made.values, "about": about, "changes": made.changes, "paces": paces}

    @router.get("/methods")
    def methods(
        base: str, purpose: str = "object", pictures: int = Query(0, ge=0), memory: int = Query(0, ge=0)
    ) -> dict[str, Any]:
        """Which method should I use: a row for each, the advised one first."""
        device, _ = workshop.device()
        question = Question(_base_of(workshop, {"base": base}), purpose, pictures or None, memory or None, device)
        return {"methods": answer(question, workshop.jobs.runs), "device": device.partition(":")[0]}


def _add_own_presets(router: APIRouter, workshop: Workshop) -> None:
    @router.get("/presets/own")
    def own(name: str) -> dict[str, Any]:
        """One of the person's own presets: `values` and what was answered."""
        return workshop.presets.load(name)

    @router.post("/presets/own")
    def save(body: dict[str, Any] = _BODY) -> dict[str, Any]:
        """Keeps `job` under `name`, with `answers` (purpose, pace, memory)."""
        workshop.presets.save(text_of(body, "name"), map_of(body, "job"), map_of(body, "answers"))
        return {"own": workshop.presets.names()}

    @router.post("/presets/own/delete")
    def delete(body: dict[str, Any] = _BODY) -> dict[str, Any]:
        """Moves one into their folder's trash."""
        workshop.presets.delete(text_of(body, "name"))
        return {"own": workshop.presets.names()}


def _add_bases(router: APIRouter, workshop: Workshop) -> None:
    @router.get("/bases")
    def bases() -> dict[str, Any]:
        """The base models that can be trained on; the one that is loaded is marked."""
        found = [{**asdict(base), "path": str(base.path)} for base in workshop.bases()]
        return {"bases": found, "clip_skip": workshop.clip_skip(), "can_draw": workshop.draw is not None}

    @router.post("/bases/draw")
    def drawn(body: dict[str, Any] = _BODY) -> dict[str, Any]:
        """A picture of `prompt` with a fixed `seed`, by the loaded model; to see what a word means to it already."""
        if workshop.draw is None:
            raise InputError("No picture can be drawn here: this page has no model to draw with.")
        prompt, out = text_of(body, "prompt")[:_LONGEST_TEXT], BytesIO()
        workshop.draw(Drawing(prompt, seed=_number(body, "seed") or SEED)).image.save(out, "PNG")
        return {"picture": "data:image/png;base64," + base64.b64encode(out.getvalue()).decode("ascii")}

    @router.get("/starting-points")
    def files(method: str = "lora") -> dict[str, Any]:
        """Existing files that a run of a method may start from."""
        found = starting_points(workshop, method)
        return {"files": [{"path": str(one.path), "title": one.title, "run": one.run} for one in found]}


def _add_job_files(router: APIRouter, workshop: Workshop) -> None:
    @router.post("/job/write")
    def write(body: dict[str, Any] = _BODY) -> dict[str, Any]:
        """A job as the text of a job file, and as a command line."""
        job = workshop.completed(map_of(body, "job"))
        return {"yaml": job_files.as_yaml(job), "command": job_files.as_command(job, workshop.jobs.environment)}

    @router.post("/job/read")
    def read(body: dict[str, Any] = _BODY) -> dict[str, Any]:
        """The options in a job file's text."""
        return {"job": job_files.read(text_of(body, "text"))}
