"""Routes of the library: cards, renaming, the trash, grids drawn in the host; `extension.api` adds them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import APIRouter, Body
from fastapi.responses import FileResponse, Response

from extension.api_support import text_of
from extension.grids import STEPS, Grids, checked
from extension.library import find, library
from extension.shelving import rename, throw_away
from extension.workshop import Workshop
from trainers.errors import InputError
from trainers.options import default_samples

_BODY = Body(default={})
_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp"}
_HEADERS = {"Cache-Control": "private, max-age=86400", "X-Content-Type-Options": "nosniff"}


def add_library_routes(router: APIRouter, workshop: Workshop) -> None:
    """Adds the routes."""

    @router.get("/library")
    def trained() -> dict[str, Any]:
        """What was trained here, and the other files that the host finds."""
        return {"entries": library(workshop), "can_draw": workshop.draw is not None}

    @router.get("/library/picture")
    def picture(id: str) -> Response:
        """The preview picture of a file."""
        preview = find(workshop, id).preview
        if preview is None:
            raise InputError("This file has no preview picture.")
        return FileResponse(preview, media_type=_TYPES[preview.suffix.lower()], headers=_HEADERS)

    @router.post("/library/rename")
    def renamed(body: dict[str, Any] = _BODY) -> dict[str, Any]:
        """Gives the file `id`, its card and its preview another `name`."""
        return {"id": rename(workshop, text_of(body, "id"), text_of(body, "name"))}

    @router.post("/library/delete")
    def deleted(body: dict[str, Any] = _BODY) -> dict[str, Any]:
        """Moves the file `id`, its card and its preview to the trash folder of the runs."""
        throw_away(workshop, text_of(body, "id"))
        return {"done": "delete"}

    _add_grids(router, workshop)


def _files(workshop: Workshop, run: str, wanted: str) -> tuple[str, str, list[tuple[str, Path]]]:
    """(title, trigger word, headings and paths) of a run's files, or of one file of the host."""
    if not run:
        shelved = find(workshop, wanted)
        entry = next(each for each in library(workshop) if each["id"] == wanted)
        return shelved.path.stem, entry["trigger"], [(shelved.path.stem, shelved.path)]
    made = workshop.jobs.one(run)
    files = [(str(output["step"]), workshop.jobs.runs / made.id / output["file"]) for output in made.outputs]
    return made.name, made.trigger, [(heading, path) for heading, path in files if path.is_file()]


def _add_grids(router: APIRouter, workshop: Workshop) -> None:
    grids = Grids(workshop.jobs.runs.parent / "grids", workshop.draw)

    @router.get("/library/grid/about")
    def about(run: str = "", id: str = "") -> dict[str, Any]:
        """What a grid of a run, or of one file, would show: its files, and prompts to begin with."""
        title, trigger, files = _files(workshop, run, id)
        prompts = list((workshop.jobs.raw_job(run).get("sample_prompts") if run else None) or default_samples(trigger))
        return {"title": title, "files": [heading for heading, _ in files], "prompts": prompts[:4], "steps": STEPS}

    @router.post("/library/grid")
    def begin(body: dict[str, Any] = _BODY) -> dict[str, Any]:
        """Draws a grid of `run` (or of the file `id`): `files` (headings), `prompts`, `weights`, sampling `steps`."""
        title, _, files = _files(workshop, text_of(body, "run"), text_of(body, "id"))
        wanted = body.get("files")
        chosen = [one for one in files if not isinstance(wanted, list) or one[0] in wanted]
        return grids.begin(checked(title, chosen, body.get("prompts"), body.get("weights"), body.get("steps")))

    @router.get("/library/grid")
    def one(name: str) -> dict[str, Any]:
        """What a grid shows, and which of its cells are drawn."""
        return grids.one(name)

    @router.get("/library/grid/picture")
    def cell(name: str, cell: int) -> Response:
        """One picture of a grid."""
        return FileResponse(grids.picture(name, cell), media_type="image/png", headers=_HEADERS)

    @router.post("/library/grid/cancel")
    def cancel(body: dict[str, Any] = _BODY) -> dict[str, Any]:
        """Ends a grid after its present picture."""
        return grids.cancel(text_of(body, "name"))
