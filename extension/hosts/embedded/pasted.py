"""From the settings under a picture back to the fields of a request."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from extension.hosts.embedded.samplers import AUTOMATIC, find_sampler, find_schedule
from trainers.errors import InputError


def _whole(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:
        return None


def _real(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _sampler(text: str) -> str | None:
    try:
        return find_sampler(text)[0].name
    except InputError:
        return None


def _schedule(text: str) -> str | None:
    try:
        return find_schedule(text).label
    except InputError:
        return None


_FIELDS: tuple[tuple[str, str, Callable[[str], Any]], ...] = (
    ("Prompt", "prompt", str),
    ("Negative prompt", "negative_prompt", str),
    ("Steps", "steps", _whole),
    ("Sampler", "sampler_name", _sampler),
    ("Schedule type", "scheduler", _schedule),
    ("CFG scale", "cfg_scale", _real),
    ("Seed", "seed", _whole),
    ("Size-1", "width", _whole),
    ("Size-2", "height", _whole),
    ("Denoising strength", "denoising_strength", _real),
    ("Clip skip", "clip_skip", _whole),
    ("Mask blur", "mask_blur", _whole),
    ("Hires prompt", "hr_prompt", str),
    ("Hires negative prompt", "hr_negative_prompt", str),
    ("Hires upscale", "hr_scale", _real),
    ("Hires resize-1", "hr_resize_x", _whole),
    ("Hires resize-2", "hr_resize_y", _whole),
    ("Hires steps", "hr_second_pass_steps", _whole),
    ("Hires upscaler", "hr_upscaler", str),
)


def fields_of(settings: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
    """(request fields, names of settings whose value means nothing here), from what `read_infotext` gives."""
    fields: dict[str, Any] = {}
    unread = []
    for label, name, read in _FIELDS:
        if label in settings:
            value = read(settings[label])
            if value is None:
                unread.append(label)
            else:
                fields[name] = value
    if "sampler_name" in fields and "scheduler" not in fields:
        ending = find_sampler(settings["Sampler"])[1]
        fields["scheduler"] = AUTOMATIC if ending is None else ending.label
    fields["enable_hr"] = "hr_scale" in fields or "hr_resize_x" in fields
    return fields, unread
