"""HTTP routes in the shapes of A1111's API, so that programs written for it work here unchanged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi import Request as HttpRequest
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from extension.hosts.embedded.api_fields import echo, info_of, read_picture, read_request, write_picture
from extension.hosts.embedded.engine import Studio
from extension.hosts.embedded.infotext import from_picture, read_infotext
from extension.hosts.embedded.pictures import LATENT_MODES, PIXEL_MODES
from extension.hosts.embedded.samplers import SAMPLERS, SCHEDULES
from extension.injection.embeddings import Embedding
from trainers.errors import InputError
from trainers.formats.safetensors_io import read_header

PREFIX = "/sdapi/v1"
CHECKPOINT, HASH = "sd_model_checkpoint", "sd_checkpoint_hash"
OPTIONS: dict[str, Any] = {
    "CLIP_stop_at_last_layers": 1,
    "athanor_default_scope": "all",
    "emphasis": "Original",
    "samples_format": "png",
    "sd_lora": "None",
    "sd_vae": "Automatic",
}
"""Options that are given out; those that can be changed are in `_CHECKS`."""

_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "CLIP_stop_at_last_layers": (
        lambda value: isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 12,
        "a whole number from 1 to 12",
    ),
    "athanor_default_scope": (lambda value: value in ("all", "picture", "part"), "one of all, picture, part"),
}
_EMPTY_LISTS = ("hypernetworks", "face-restorers", "realesrgan-models", "prompt-styles", "sd-vae", "extensions")


def _failure(status: int, kind: str, sentence: str) -> JSONResponse:
    return JSONResponse({"error": kind, "detail": sentence, "body": "", "errors": sentence}, status_code=status)


def _handle_errors(app: FastAPI) -> None:
    @app.exception_handler(InputError)
    async def input_error(_request: HttpRequest, problem: InputError) -> JSONResponse:
        return _failure(422, "InputError", str(problem))

    @app.exception_handler(RequestValidationError)
    async def invalid(_request: HttpRequest, problem: RequestValidationError) -> JSONResponse:
        first = problem.errors()[0] if problem.errors() else {}
        where = ".".join(str(part) for part in first.get("loc", ()))
        return _failure(422, "HTTPException", f"{where}: {first.get('msg', 'this request cannot be read')}.")


def add_api(app: FastAPI, studio: Studio, flags: dict[str, Any] | None = None) -> None:
    """Adds all routes.

    Args:
        flags: what the program was started with, for `/cmd-flags`.
    """
    router = APIRouter(prefix=PREFIX)
    _handle_errors(app)
    _add_drawing(router, studio)
    _add_options(router, studio, flags or {})
    _add_lists(router, studio)
    _add_files(router, studio)
    app.include_router(router)


def _draw(studio: Studio, payload: dict[str, Any], img2img: bool) -> dict[str, Any]:
    overrides = payload.get("override_settings")
    wanted = overrides.get(CHECKPOINT) if isinstance(overrides, dict) else None
    before = studio.model.path
    if wanted:
        studio.load(studio.find_base(str(wanted)))
    try:
        request, notes = read_request(payload, studio, img2img)
        kind = ("img2img" if img2img else "txt2img") if payload.get("save_images") else None
        drawn = studio.draw(request, kind)
    finally:
        if wanted and payload.get("override_settings_restore_afterwards", True):
            studio.load(before)
    send = payload.get("send_images", True)
    images = [write_picture(one.image, one.infotext) for one in drawn.pictures] if send else []
    return {
        "images": images,
        "parameters": echo(payload, request, img2img),
        "info": info_of(drawn, studio, notes),
    }


def _add_drawing(router: APIRouter, studio: Studio) -> None:
    @router.post("/txt2img")
    def txt2img(payload: dict[str, Any]) -> Any:
        return JSONResponse(_draw(studio, payload, img2img=False))

    @router.post("/img2img")
    def img2img(payload: dict[str, Any]) -> Any:
        return JSONResponse(_draw(studio, payload, img2img=True))

    @router.get("/progress")
    def progress(skip_current_image: bool = False) -> Any:
        now = studio.progress
        picture = None if skip_current_image else now.picture
        return {
            "progress": now.fraction,
            "eta_relative": now.seconds_left,
            "state": now.state(),
            "current_image": None if picture is None else write_picture(picture),
            "textinfo": now.text or None,
        }

    @router.post("/interrupt")
    def interrupt() -> Any:
        studio.progress.stop()
        return {}

    @router.post("/skip")
    def skip() -> None:
        studio.progress.skip()

    @router.post("/png-info")
    def png_info(payload: dict[str, Any]) -> Any:
        text, items = from_picture(read_picture(payload.get("image"), "image"))
        items = {"parameters": text, **items} if text else items
        return {"info": text, "items": items, "parameters": read_infotext(text) if text else {}}


def _add_options(router: APIRouter, studio: Studio, flags: dict[str, Any]) -> None:
    @router.get("/options")
    def get_options() -> Any:
        model = studio.model
        values = {name: studio.option(name, default) for name, default in OPTIONS.items()}
        return {CHECKPOINT: model.title, HASH: model.sha256, **values}

    @router.post("/options")
    def set_options(values: dict[str, Any]) -> None:
        changed = {name: value for name, value in values.items() if name in _CHECKS}
        for name, value in changed.items():
            fits, expected = _CHECKS[name]
            if not fits(value):
                raise InputError(f"{name}: {str(value)[:80]!r} will not do; it takes {expected}.")
        if values.get(CHECKPOINT):
            studio.load(studio.find_base(str(values[CHECKPOINT])))
        if changed:
            studio.settings.set(changed)

    @router.get("/cmd-flags")
    def cmd_flags() -> Any:
        places = studio.places
        folders = {"data_dir": places.data, "lora_dir": places.adapters, "embeddings_dir": places.embeddings}
        return {"api": True, "ckpt": str(studio.started_with), **{n: str(p) for n, p in folders.items()}, **flags}

    @router.get("/memory")
    def memory() -> Any:
        return {"ram": {"error": "not measured"}, "cuda": {"error": "not measured"}}


def _add_lists(router: APIRouter, studio: Studio) -> None:
    @router.get("/samplers")
    def samplers() -> Any:
        return [{"name": one.name, "aliases": list(one.aliases), "options": {}} for one in SAMPLERS]

    @router.get("/schedulers")
    def schedulers() -> Any:
        return [
            {
                "name": one.name,
                "label": one.label,
                "aliases": list(one.aliases) or None,
                "default_rho": one.rho,
                "need_inner_model": False,
            }
            for one in SCHEDULES
        ]

    @router.get("/upscalers")
    def upscalers() -> Any:
        return [
            {"name": name, "model_name": None, "model_path": None, "model_url": None, "scale": 4.0}
            for name in PIXEL_MODES
        ]

    @router.get("/latent-upscale-modes")
    def latent_upscale_modes() -> Any:
        return [{"name": name} for name in LATENT_MODES]

    @router.get("/scripts")
    def scripts() -> Any:
        return {"txt2img": [], "img2img": []}

    @router.get("/script-info")
    def script_info() -> Any:
        return []

    for path in _EMPTY_LISTS:
        router.get(f"/{path}", name=path)(lambda: [])


def _embedding(one: Embedding) -> dict[str, Any]:
    return {
        "step": one.step,
        "sd_checkpoint": None,
        "sd_checkpoint_name": one.checkpoint,
        "shape": next(iter(one.vectors.values())).shape[1],
        "vectors": one.count,
    }


def _add_files(router: APIRouter, studio: Studio) -> None:
    @router.get("/sd-models")
    def sd_models() -> Any:
        now = studio.model
        return [
            {
                "title": now.title if path == now.path else path.name,
                "model_name": path.stem,
                "hash": now.short_hash or None if path == now.path else None,
                "sha256": now.sha256 or None if path == now.path else None,
                "filename": str(path),
                "config": None,
            }
            for path in studio.bases()
        ]

    @router.get("/loras")
    def loras() -> Any:
        found = []
        for name, path in studio.library.adapters.items():
            metadata: dict[str, str] = {}
            if path.suffix.lower() == ".safetensors":
                try:
                    metadata = dict(read_header(path).metadata)
                except (InputError, OSError):
                    metadata = {}  # a damaged file is listed; using it says what is wrong
            alias = metadata.get("ss_output_name") or name
            found.append({"name": name, "alias": alias, "path": str(path), "metadata": metadata})
        return found

    @router.get("/embeddings")
    def embeddings() -> Any:
        studio.library.embeddings.rescan()
        lists: dict[str, dict[str, Any]] = {"loaded": {}, "skipped": {}}
        for one in studio.library.embeddings.all():
            fits = one.problem(studio.model.widths) is None
            lists["loaded" if fits else "skipped"][one.name] = _embedding(one)
        return lists

    def refresh() -> None:
        studio.rescan()

    for path in ("refresh-loras", "refresh-embeddings", "refresh-checkpoints", "refresh-vae"):
        router.post(f"/{path}", name=path)(refresh)
