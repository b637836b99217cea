"""Routes for pictures and captions; `extension.api` adds them."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Body, HTTPException, Query, Request
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool

from extension import datafolder
from extension.api_support import is_local, text_of
from extension.jobs.store import run_id_for
from extension.workshop import Workshop
from trainers.errors import InputError

_BODY = Body(default={})


def add_data_routes(router: APIRouter, workshop: Workshop) -> None:
    """Adds the routes."""

    def inside(folder: str, file: str) -> Path:
        place = workshop.confined(folder, "folder")
        with contextlib.suppress(OSError):  # a name that no file can have
            found = workshop.confined(str(place / file), "file")
            if found.is_file() and found.suffix.lower() in datafolder.ENDINGS:
                return found
        raise InputError(f"{file[:200]!r}: there is no such picture.")

    @router.get("/data")
    def look(folder: str, smallest: int = Query(256, ge=1, le=4096)) -> dict[str, Any]:
        """The pictures of a folder with their captions, and what may be wrong with them."""
        return datafolder.look(workshop.confined(folder, "folder"), smallest).as_dict()

    @router.get("/data/thumbnail")
    def thumbnail(folder: str, file: str) -> Response:
        """A small picture."""
        headers = {"Cache-Control": "private, max-age=60", "X-Content-Type-Options": "nosniff"}
        return Response(datafolder.thumbnail(inside(folder, file)), media_type="image/jpeg", headers=headers)

    @router.post("/data/caption")
    def caption(body: dict[str, Any] = _BODY) -> dict[str, Any]:
        """Replaces a caption; gives the former one."""
        picture = inside(text_of(body, "folder"), text_of(body, "file"))
        return {"former": datafolder.write_caption(picture, text_of(body, "text"))}

    @router.post("/data/folders")
    def add_folder(request: Request, body: dict[str, Any] = _BODY) -> dict[str, Any]:
        """Lets the page use a further folder; only for a person at this machine."""
        if not is_local(request):
            raise HTTPException(403, "Only a person at the machine itself may add a folder.")
        return {"folder": str(workshop.add_folder(text_of(body, "path")))}

    @router.post("/data/upload")
    async def upload(request: Request, folder: str, name: str) -> dict[str, Any]:
        """Copies one picture (the body of the request) into a folder of the pictures' place."""
        data = bytearray()
        async for part in request.stream():
            data += part
            if len(data) > datafolder.LARGEST_UPLOAD:
                raise InputError(f"{name[:100]}: is larger than {datafolder.LARGEST_UPLOAD // 2**20} MiB.")
        place = workshop.pictures / run_id_for(folder)
        kept = await run_in_threadpool(datafolder.keep_upload, place, name, bytes(data))
        return {"folder": str(place.resolve()), "file": kept.name}
