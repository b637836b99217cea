"""JSON of A1111's API to requests and back."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import fields
from io import BytesIO
from typing import Any

from PIL import Image, UnidentifiedImageError

from extension.hosts.embedded.engine import Drawn, Studio
from extension.hosts.embedded.infotext import read_infotext, to_png
from extension.hosts.embedded.pasted import fields_of
from extension.hosts.embedded.pictures import LATENT_MODES, PIXEL_MODES
from extension.hosts.embedded.request import MOST_PIXELS, NAMES, Request
from trainers import __version__
from trainers.errors import InputError

LONGEST_PICTURE = 200_000_000
_OURS = {"init_images", "mask"}
# What other hosts do and this one does not: field, the value that asks for nothing, what it is called.
_NOT_DONE = (
    ("subseed_strength", 0, "a variation seed"),
    ("restore_faces", False, "face restoration"),
    ("tiling", False, "tiling"),
    ("styles", [], "styles"),
    ("refiner_checkpoint", None, "a refiner"),
    ("hr_checkpoint_name", None, "another checkpoint for the hires pass"),
)


def read_picture(text: Any, name: str) -> Image.Image:
    """A picture from base64, with or without a data URL's head.

    Raises InputError; addresses are never fetched.
    """
    if not isinstance(text, str):
        raise InputError(f"{name}: a picture in base64 is expected.")
    if text[:8].lower().startswith(("http://", "https://")):
        raise InputError(f"{name}: pictures are not fetched from addresses; send the picture itself in base64.")
    if len(text) > LONGEST_PICTURE:
        raise InputError(f"{name}: the picture is too large.")
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        picture = Image.open(BytesIO(base64.b64decode(text)))
        if picture.width * picture.height > MOST_PIXELS:
            raise InputError(f"{name}: the picture has more than {MOST_PIXELS // 1_000_000} megapixels.")
        picture.load()
    except (binascii.Error, UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        raise InputError(f"{name}: this is not a picture in base64.") from None
    return picture


def write_picture(picture: Image.Image, infotext: str = "") -> str:
    """A picture as base64 of a PNG file."""
    return base64.b64encode(to_png(picture, infotext)).decode("ascii")


def _known_upscaler(name: object) -> str:
    known = [*LATENT_MODES, *PIXEL_MODES]
    if name in (None, ""):
        return "Latent"
    if name not in known:
        raise InputError(f"hr_upscaler: {str(name)[:80]!r} is not one of {', '.join(known)}.")
    return str(name)


def _scripts(payload: Mapping[str, Any]) -> None:
    script = payload.get("script_name")
    if script:
        raise InputError(f"script_name: Script {str(script)[:80]!r} not found.")
    always = payload.get("alwayson_scripts") or {}
    if not isinstance(always, dict):
        raise InputError("alwayson_scripts: an object is expected.")
    for name in always:
        raise InputError(f"always on script {str(name)[:80]} not found")


def read_request(payload: Mapping[str, Any], studio: Studio, from_picture: bool) -> tuple[Request, list[str]]:
    """(the request, sentences about what it asks for and this host does not do); unknown fields are ignored.

    Raises InputError.
    """
    _scripts(payload)
    given = {name: value for name, value in payload.items() if name in NAMES - _OURS and value is not None}
    text = payload.get("infotext")
    if isinstance(text, str) and text:
        given = {**fields_of(read_infotext(text))[0], **given}
    given.setdefault("sampler_name", payload.get("sampler_index") or "Euler a")
    for name in ("sampler_name", "scheduler", "hr_sampler_name", "hr_scheduler", "default_scope"):
        if not isinstance(given.get(name, ""), str):
            raise InputError(f"{name}: a name is expected.")
    for name in ("hr_sampler_name", "hr_scheduler"):
        if str(given.get(name, "")).startswith("Use same"):
            del given[name]
    given["hr_upscaler"] = _known_upscaler(given.get("hr_upscaler"))
    given.setdefault("clip_skip", _override(payload, studio, "CLIP_stop_at_last_layers", 1))
    given.setdefault("default_scope", studio.option("athanor_default_scope", "all"))
    request = Request(**given)
    if from_picture:
        pictures = payload.get("init_images")
        if not isinstance(pictures, list) or not pictures:
            raise InputError("init_images: Init image not found")
        request.init_images = [read_picture(one, f"init_images[{number}]") for number, one in enumerate(pictures)]
        request.mask = read_picture(payload["mask"], "mask") if payload.get("mask") else None
        request.enable_hr = False
    notes = [
        f"{what} is not done by this host." for name, idle, what in _NOT_DONE if payload.get(name) not in _idle(idle)
    ]
    return request, [note[0].upper() + note[1:] for note in notes]


def _idle(value: object) -> tuple:
    return (value, None, "", 0, False, [])


def _override(payload: Mapping[str, Any], studio: Studio, key: str, default: object) -> Any:
    overrides = payload.get("override_settings") or {}
    if not isinstance(overrides, dict):
        raise InputError("override_settings: an object is expected.")
    return overrides.get(key, studio.option(key, default))


def echo(payload: Mapping[str, Any], request: Request, from_picture: bool) -> dict[str, Any]:
    """The request as it is given back: what was sent, and the defaults of what was not."""
    defaults = {one.name: getattr(request, one.name) for one in fields(Request) if one.name not in _OURS}
    sent = dict(payload)
    if from_picture and not payload.get("include_init_images"):
        sent["init_images"] = sent["mask"] = None
    return {**defaults, **sent}


def info_of(drawn: Drawn, studio: Studio, notes: list[str]) -> str:
    """What A1111 says about a finished job, as JSON in a string."""
    request, pictures, model = drawn.request, drawn.pictures, studio.model
    return json.dumps(
        {
            "prompt": pictures[0].prompt if pictures else "",
            "all_prompts": [one.prompt for one in pictures],
            "negative_prompt": pictures[0].negative if pictures else "",
            "all_negative_prompts": [one.negative for one in pictures],
            "seed": request.seed,
            "all_seeds": [one.seed for one in pictures],
            "subseed": request.seed,
            "all_subseeds": [one.seed for one in pictures],
            "subseed_strength": 0,
            "width": request.width,
            "height": request.height,
            "sampler_name": request.sampler_name,
            "cfg_scale": request.cfg_scale,
            "steps": request.steps,
            "batch_size": request.batch_size,
            "restore_faces": False,
            "face_restoration_model": None,
            "sd_model_name": model.name,
            "sd_model_hash": model.short_hash,
            "sd_vae_name": None,
            "sd_vae_hash": None,
            "seed_resize_from_w": -1,
            "seed_resize_from_h": -1,
            "denoising_strength": request.denoising_strength,
            "extra_generation_params": {},
            "index_of_first_image": 0,
            "infotexts": [one.infotext for one in pictures],
            "styles": [],
            "job_timestamp": studio.progress.stamp,
            "clip_skip": request.clip_skip,
            "is_using_inpainting_conditioning": False,
            "version": f"athanor {__version__}",
            "comments": [*drawn.reports, *notes],
        }
    )
