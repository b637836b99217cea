"""Routes for pictures and captions; `extension.api` adds them."""

from __future__ import annotations

import contextlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Body, HTTPException, Query, Request
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool

from extension.api_support import is_local, list_of, text_of
from extension.jobs.store import run_id_for
from extension.pictures import uploads
from extension.pictures.captions import Edit, Editor
from extension.pictures.closer import CloserLook
from extension.pictures.files import is_picture
from extension.pictures.folder import MOST, folders_below, look
from extension.pictures.thumbnails import thumbnail
from extension.workshop import Workshop
from trainers.errors import InputError

_BODY = Body(default={})
_ONE_DAY = "private, max-age=86400"


def add_data_routes(router: APIRouter, workshop: Workshop) -> None:
    """Adds the routes."""
    editor, closer = Editor(workshop.jobs.runs / ".captions"), CloserLook()
    _add_looking(router, workshop, editor, closer)
    _add_changing(router, workshop, editor)


def _inside(workshop: Workshop, folder: str, file: str) -> tuple[Path, Path]:
    """(folder, picture), both where a client may reach."""
    place = workshop.confined(folder, "folder")
    with contextlib.suppress(OSError):  # a name that no file can have
        found = workshop.confined(str(place / file), "file")
        # What is shown is the name in the folder, which may be a link to another allowed one.
        named = place / file
        if found.is_file() and is_picture(named.name) and ".." not in Path(file).parts:
            return place, named
    raise InputError(f"{file[:200]!r}: there is no such picture.")


def _add_looking(router: APIRouter, workshop: Workshop, editor: Editor, closer: CloserLook) -> None:
    @router.get("/data")
    def show(request: Request, folder: str, resolution: int | None = Query(None, ge=64, le=4096)) -> dict[str, Any]:
        """The pictures of a folder with captions and buckets, at `resolution` (by default the loaded base's). A job's
        `buckets`, `bucket_step`, `bucket_min`, `bucket_max` and `upscale` may be given too."""
        place = workshop.confined(folder, "folder")
        found = look(place, resolution or workshop.usual_resolution(), workshop.allows, request.query_params)
        dropped = place == workshop.pictures.resolve() or workshop.pictures.resolve() in place.parents
        return {**found.as_dict(), "undo": editor.last(place), "ours": dropped}

    @router.get("/data/closer")
    def look_closer(folder: str, start: int = Query(0, ge=0, le=MOST)) -> dict[str, Any]:
        """Looks at every pixel for about a second: `next` is from where to go on; at the end `problems` by file."""
        return closer.look(workshop.confined(folder, "folder"), start, workshop.allows)

    @router.get("/data/folders")
    def folders() -> dict[str, Any]:
        """Folders that hold pictures, for choosing one."""
        return {"folders": [asdict(entry) for entry in folders_below(workshop.picture_roots())]}

    @router.get("/data/thumbnail")
    def small(folder: str, file: str) -> Response:
        """A small picture, drawn anew."""
        _, picture = _inside(workshop, folder, file)
        data = thumbnail(picture, workshop.jobs.runs / ".thumbnails")
        headers = {"Cache-Control": _ONE_DAY, "X-Content-Type-Options": "nosniff"}
        return Response(data, media_type="image/jpeg", headers=headers)


def _add_changing(router: APIRouter, workshop: Workshop, editor: Editor) -> None:
    @router.post("/data/captions")
    def write(body: dict[str, Any] = _BODY) -> dict[str, Any]:
        """Writes captions: `folder`, `label` (what is done, for undoing) and `edits`: {file, text, was}, where `was` is
        the text that is replaced. All are written, or none."""
        folder = workshop.confined(text_of(body, "folder"), "folder")
        edits = []
        for each in list_of(body, "edits", MOST):
            was = each.get("was")
            _, picture = _inside(workshop, str(folder), text_of(each, "file"))
            edits.append(Edit(picture, text_of(each, "text"), was if isinstance(was, str) else None))
        saved = editor.write(folder, text_of(body, "label", "captions"), edits)
        return {"saved": saved, "undo": editor.last(folder)}

    @router.post("/data/aside")
    def set_aside(body: dict[str, Any] = _BODY) -> dict[str, Any]:
        """Moves `files` of a folder, with their captions, where training does not look; nothing is deleted."""
        folder = workshop.confined(text_of(body, "folder"), "folder")
        files = [text_of(each, "file") for each in list_of(body, "files", MOST)]
        pictures = [_inside(workshop, str(folder), file)[1] for file in files]
        moved = editor.set_aside(folder, text_of(body, "label", "pictures set aside"), pictures)
        return {"moved": moved, "undo": editor.last(folder)}

    @router.post("/data/undo")
    def undo(body: dict[str, Any] = _BODY) -> dict[str, Any]:
        """Takes the last change of captions or files in a folder back, also after the page was closed."""
        folder = workshop.confined(text_of(body, "folder"), "folder")
        return {**editor.undo(folder), "undo": editor.last(folder)}

    @router.post("/data/folders")
    def add_folder(request: Request, body: dict[str, Any] = _BODY) -> dict[str, Any]:
        """Lets the page use a further folder; only for a person at this machine."""
        if not is_local(request):
            raise HTTPException(403, "Only a person at the machine itself may add a folder.")
        return {"folder": str(workshop.add_folder(text_of(body, "path")))}

    @router.get("/data/free-folder")
    def free_folder(name: str) -> dict[str, Any]:
        """`name` as a folder of the pictures' place that holds nothing yet, with a number where it has to have one."""
        return {"name": uploads.free_folder(workshop.pictures, run_id_for(name))}

    @router.post("/data/upload")
    async def upload(request: Request, folder: str, name: str) -> dict[str, Any]:
        """Copies one picture or caption file (the body of the request) into a folder of the pictures' place."""
        data = bytearray()
        async for part in request.stream():
            data += part
            if len(data) > uploads.LARGEST:
                raise InputError(f"{name[:100]}: is larger than {uploads.LARGEST // 2**20} MiB.")
        place = workshop.pictures / run_id_for(folder)
        kept = await run_in_threadpool(uploads.keep, place, name, bytes(data))
        return {"folder": str(place.resolve()), "file": kept.name}
