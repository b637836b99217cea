"""The recipe of a run inside a PNG: a `tEXt` chunk `athanor` with JSON, for others to train with.

    {"athanor": 1, "method": "lora", "options": {...}, "base": {"name": ..., "sha256": ...}}

No path, no caption, nothing about the person or the machine goes in, and only options of the schema come out.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from typing import Any

from trainers import spec
from trainers.errors import InputError
from trainers.options import METHODS, fields_for, filled
from trainers.spec import Job

KEYWORD = "athanor"
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_LONGEST = 1 << 18
_OF_THE_PERSON = ("author", "comment", "license")
_OF_THE_MACHINE = (
    "device",
    "threads",
    "precision",
    "base_dtype",
    "gradient_checkpointing",
    "vae_batch_size",
    "tensorboard",
)


def _may_travel(option: spec.Field) -> bool:
    return option.kind != "path" and option.name not in (*_OF_THE_PERSON, *_OF_THE_MACHINE)


def shareable(job: Job, base_name: str, base_sha256: str | None) -> str:
    """The text of the chunk: the options that are not at their defaults, and which base it was."""
    options = {
        option.name: job[option.name]
        for option in fields_for(job.method)
        if _may_travel(option) and job[option.name] != option.default
    }
    base = {"name": base_name, "sha256": base_sha256}
    # ASCII, which every reader of PNG files takes as it is.
    return json.dumps({"athanor": 1, "method": job.method, "options": options, "base": base}, ensure_ascii=True)


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(type, content) of each chunk before the picture itself; what is damaged ends it."""
    place = len(_SIGNATURE)
    while place + 8 <= len(data):
        length, kind = int.from_bytes(data[place : place + 4], "big"), data[place + 4 : place + 8]
        content = data[place + 8 : place + 8 + length]
        crc = data[place + 8 + length : place + 12 + length]
        if kind == b"IDAT" or len(content) < length or zlib.crc32(kind + content) != int.from_bytes(crc, "big"):
            return
        yield kind, content
        place += 12 + length


def read_recipe(data: bytes) -> dict[str, Any]:
    """What a sheet says: `{"method", "values" (options as a form takes them), "base", "left_out" (names)}`.

    Options that this version does not know, or whose value it does not take, are left out; those that the sheet does
    not name, because they were at their defaults, have these.

    Raises:
        InputError: it is no PNG, or holds no recipe.
    """
    if not data.startswith(_SIGNATURE):
        raise InputError(
            "This is neither a job file (.yaml) nor a PNG file; drop one of them, a sheet as it was written at the end "
            "of a run."
        )
    sign = KEYWORD.encode() + b"\0"
    found = next((text for kind, text in _chunks(data) if kind == b"tEXt" and text.startswith(sign)), None)
    if found is None or len(found) > _LONGEST:
        raise InputError(
            "This picture holds no recipe; only sheets do, and only as they were written: sites and messengers that "
            "convert pictures take it out."
        )
    try:
        said = json.loads(found[len(sign) :])
        method, options, base = str(said["method"]), dict(said["options"]), dict(said.get("base") or {})
    except (ValueError, TypeError, KeyError, RecursionError):
        raise InputError("The recipe in this picture is damaged; ask for the sheet as it was written.") from None
    if method not in METHODS:
        raise InputError(f"The recipe in this picture is for {method[:40]!r}, which this version does not have.")
    taken, left_out = _taken(method, options)
    apart = [option.name for option in fields_for(method) if not _may_travel(option)]
    values = filled({"method": method, **taken}, [*apart, *left_out, "publish"])
    named = {key: str(base.get(key) or "")[:200] for key in ("name", "sha256")}
    return {"method": method, "values": values, "base": named, "left_out": left_out}


def _taken(method: str, options: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    known = {option.name: option for option in fields_for(method) if _may_travel(option)}
    values, left_out = {}, []
    for name, raw in options.items():
        try:
            values[str(name)] = spec.convert(known[name], raw)
        except (KeyError, InputError):
            left_out.append(str(name)[:60])
    return values, left_out[:40]
