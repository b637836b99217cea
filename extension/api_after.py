"""Routes about what comes of a run: drawing with it, its sheet, its file in the host; `extension.api` adds them."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Body, Request
from fastapi.responses import FileResponse, Response
from starlette.concurrency import run_in_threadpool

from extension.api_support import text_of
from extension.live import live_tag
from extension.publishing import publish
from extension.workshop import Workshop
from trainers.errors import InputError
from trainers.formats.recipe_png import read_recipe

_BODY = Body(default={})
LARGEST_SHEET = 64 * 2**20


def add_after_routes(router: APIRouter, workshop: Workshop) -> None:
    """Adds the routes."""
    jobs = workshop.jobs

    @router.post("/jobs/{run_id}/publish")
    def publish_one(run_id: str, body: dict[str, Any] = _BODY) -> dict[str, Any]:
        """Puts `file` (the best one where that is empty) where the host finds it; gives its name and its tag.

        A name that another file has gives `taken` and `free`: ask again with another `name`, or with `replace`.
        """
        return publish(workshop, run_id, text_of(body, "file"), text_of(body, "name"), body.get("replace") is True)

    @router.post("/jobs/{run_id}/live")
    def live(run_id: str) -> dict[str, Any]:
        """Has a run that trains write a snapshot; gives the tag that draws with it and its trigger word."""
        jobs.command(run_id, "snapshot")
        made = jobs.one(run_id)
        is_word = made.method == "textual_inversion"  # the tag stands for the word itself
        return {"tag": live_tag(made.name, made.method), "trigger": "" if is_word else made.trigger}

    @router.get("/jobs/{run_id}/sheet")
    def sheet(run_id: str) -> Response:
        """The verdict sheet as it was written, with the recipe in it."""
        made = jobs.one(run_id)
        if made.verdict is None:
            raise InputError(f"{run_id}: this run has no verdict sheet.")
        headers = {"Cache-Control": "private, no-cache", "X-Content-Type-Options": "nosniff"}
        path = jobs.file(run_id, str(made.verdict["path"]))
        return FileResponse(path, media_type="image/png", headers=headers)

    @router.post("/recipe/read")
    async def recipe(request: Request) -> dict[str, Any]:
        """The options in a verdict sheet (the body of the request): `job`, its `base`, and what was `left_out`."""
        data = bytearray()
        async for part in request.stream():
            data += part
            if len(data) > LARGEST_SHEET:
                raise InputError(f"This picture is larger than {LARGEST_SHEET // 2**20} MiB; a sheet is not.")
        return await run_in_threadpool(_recipe, workshop, bytes(data))


def _recipe(workshop: Workshop, data: bytes) -> dict[str, Any]:
    said = read_recipe(data)
    values, name = said["values"], said["base"]["name"]
    here = next((base.path for base in workshop.bases() if base.path.name == name), None)
    if here is not None:
        values = {**values, "base": str(here)}
    return {"job": values, "base": said["base"], "has_base": here is not None, "left_out": said["left_out"]}
