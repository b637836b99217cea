"""HTTP routes under `/athanor/v1`: options and recipes, jobs, pictures and captions, what was trained,
the trainers' environment.

Bodies are plain JSON objects, so that every pydantic understands them. A refusal is
`{"problems": ["One sentence.", …]}` with a status of 4xx.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Body, Depends, FastAPI, Query, Request
from fastapi.responses import FileResponse, Response

from extension.api_after import add_after_routes
from extension.api_data import add_data_routes
from extension.api_library import add_library_routes
from extension.api_setup import add_setup_routes
from extension.api_support import SentenceRoute, is_local, map_of, same_origin, text_of
from extension.api_train import add_train_routes
from extension.workshop import Workshop
from trainers import options
from trainers.errors import InputError
from trainers.events import read_events

PREFIX = "/athanor/v1"
_ACTIONS = ("stop", "stop_now", "save", "sample", "resume", "again", "move", "delete", "restore")
_PICTURES = {".png": "image/png", ".jpg": "image/jpeg", ".webp": "image/webp"}
_BODY = Body(default={})


def add_routes(app: FastAPI, workshop: Workshop, authorise: Callable[..., Any] | None = None) -> None:
    """Adds the routes to a host's application.

    Args:
        authorise: the host's own check, as a dependency of FastAPI; it raises where somebody may not ask.
    """
    guards: Sequence[Any] = [Depends(same_origin), *([Depends(authorise)] if authorise else [])]
    router = APIRouter(prefix=PREFIX, tags=["Athanor"], dependencies=guards, route_class=SentenceRoute)
    _add_schema_routes(router, workshop)
    add_after_routes(router, workshop)  # before jobs/{id}/{action}, which would take them all
    _add_job_routes(router, workshop)
    _add_run_routes(router, workshop)
    add_data_routes(router, workshop)
    add_library_routes(router, workshop)
    add_setup_routes(router, workshop)
    add_train_routes(router, workshop)
    app.include_router(router)


def _add_schema_routes(router: APIRouter, workshop: Workshop) -> None:
    @router.get("/schema")
    def schema(method: str = "lora") -> dict[str, Any]:
        """Every option of a method, with help, range and default; also the methods, recipes and bases there are."""
        if method not in options.METHODS:
            raise InputError(f"method: {method[:60]!r} is not one of {', '.join(options.METHODS)}.")
        fields = [asdict(option) for option in options.fields_for(method)]
        return {"method": method, "methods": list(options.METHODS), "options": fields}


def _add_job_routes(router: APIRouter, workshop: Workshop) -> None:
    jobs = workshop.jobs

    @router.post("/check")
    def check(body: dict[str, Any] = _BODY) -> dict[str, Any]:
        """What a job would be trained on, for how long and with how much memory. Takes some seconds."""
        return jobs.survey(workshop.completed(map_of(body, "job"))).as_dict()

    @router.get("/jobs")
    def every() -> dict[str, Any]:
        """Every run: what works first, then what waits, then the newest."""
        return {"jobs": [view.as_dict(brief=True) for view in jobs.all()]}

    @router.post("/jobs")
    def submit(body: dict[str, Any] = _BODY) -> dict[str, Any]:
        """Puts `job` into the queue. The same `key` twice is one run."""
        return jobs.submit(workshop.completed(map_of(body, "job")), text_of(body, "key")).as_dict(brief=True)

    @router.post("/jobs/{run_id}/{action}")
    def act(run_id: str, action: str, body: dict[str, Any] = _BODY) -> dict[str, Any]:
        """stop, stop_now, save, sample, resume, again (`changes`), move (`where`), delete, restore."""
        if action not in _ACTIONS:
            raise InputError(f"{action[:60]!r} is not one of {', '.join(_ACTIONS)}.")
        if action == "again":
            changes = workshop.checked(map_of(body, "changes"))
            return jobs.again(run_id, changes, text_of(body, "key")).as_dict(brief=True)
        if action in ("save", "sample"):
            jobs.command(run_id, action)
        elif action == "move":
            jobs.move(run_id, text_of(body, "where"))
        else:
            getattr(jobs, action)(run_id)
        return {"done": action} if action == "delete" else jobs.one(run_id).as_dict(brief=True)


def _add_run_routes(router: APIRouter, workshop: Workshop) -> None:
    jobs = workshop.jobs

    @router.get("/jobs/{run_id}")
    def one(run_id: str, since: int = -1, generation: int = -1) -> dict[str, Any]:
        """One run, with losses later than step `since` where `generation` is still the run's."""
        return jobs.one(run_id).as_dict(since, generation)

    @router.get("/jobs/{run_id}/job")
    def job(run_id: str) -> dict[str, Any]:
        """All its options, as it was asked for."""
        return {"job": options.filled(jobs.raw_job(run_id))}

    @router.get("/jobs/{run_id}/events")
    def events(run_id: str, offset: int = Query(0, ge=0)) -> dict[str, Any]:
        """The trainer's events from a byte on, and the byte to go on from."""
        found, end = read_events(jobs.store.find(run_id) / "events.jsonl", offset)
        return {"events": found, "offset": end}

    @router.get("/jobs/{run_id}/log")
    def log(run_id: str, lines: int = Query(200, ge=1, le=2000)) -> dict[str, Any]:
        """The last lines that it printed."""
        return {"lines": jobs.log(run_id, lines)}

    @router.get("/jobs/{run_id}/samples/{name}")
    def sample(run_id: str, name: str) -> Response:
        """A sample picture."""
        path = jobs.file(run_id, f"samples/{name}")
        if path.suffix.lower() not in _PICTURES:
            raise InputError(f"{run_id}: this run has no such picture.")
        headers = {"Cache-Control": "private, max-age=86400", "X-Content-Type-Options": "nosniff"}
        return FileResponse(path, media_type=_PICTURES[path.suffix.lower()], headers=headers)

    @router.get("/jobs/{run_id}/job.yaml")
    def job_file(run_id: str) -> Response:
        """The job file, for keeping or for the command line."""
        run = jobs.store.find(run_id)
        name = "job.yaml" if (run / "job.yaml").exists() else "request.yaml"
        return FileResponse(jobs.file(run_id, name), media_type="application/yaml", filename=f"{run_id}.yaml")

    @router.get("/me")
    def me(request: Request) -> dict[str, Any]:
        """What this page may do, and where it may take files from."""
        roots = [str(root) for root in workshop.roots()]
        return {"local": is_local(request), "roots": roots, "problem": jobs.environment.problem}
