"""The settings of a picture as text, in the form that A1111 writes under a picture and into its PNG file."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from io import BytesIO
from typing import Any

from PIL import Image, PngImagePlugin

KEY = "parameters"
_PARAM = re.compile(r'\s*(\w[\w \-/]{0,80}):\s*("(?:\\.|[^\\"])*"|[^,]*)(?:,|$)')
_SIZE = re.compile(r"(\d{1,6})x(\d{1,6})")
_NEGATIVE = "Negative prompt:"
LONGEST = 200_000
"""What is longer is no infotext of ours; reading it takes time with its length."""


def quote(value: object) -> str:
    """A value as it stands in the last line: in quotation marks where it would be misread without."""
    text = str(value)
    if any(mark in text for mark in ',\n:"') or text != text.strip():
        return json.dumps(text, ensure_ascii=False)
    return text


def unquote(text: str) -> str:
    """The inverse of `quote`."""
    if len(text) < 2 or text[0] != '"' or text[-1] != '"':
        return text
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, str) else text


def write_infotext(prompt: str, negative: str, settings: Mapping[str, object]) -> str:
    """Prompt, negative prompt, and one line of settings; those that are None are left out."""
    line = ", ".join(f"{name}: {quote(value)}" for name, value in settings.items() if value is not None)
    lines = [prompt, *([f"{_NEGATIVE} {negative}"] if negative else []), line]
    return "\n".join(lines).strip()


def read_infotext(text: str) -> dict[str, str]:
    """Settings by their names; "Prompt" and "Negative prompt" always there, sizes also as "Size-1" and "Size-2".

    Reads what A1111, Forge and this host write; text without settings is a prompt.
    """
    lines = text[:LONGEST].strip().split("\n")
    last = _PARAM.findall(lines[-1])
    settings = {}
    if len(last) >= 3:
        lines.pop()
        for name, value in last:
            value = unquote(value)
            size = _SIZE.fullmatch(value)
            if size:
                settings[f"{name}-1"], settings[f"{name}-2"] = size.groups()
            else:
                settings[name] = value
    prompt: list[str] = []
    negative: list[str] = []
    into = prompt
    for line in map(str.strip, lines):
        if line.startswith(_NEGATIVE):
            into, line = negative, line[len(_NEGATIVE) :].strip()
        into.append(line)
    return {"Prompt": "\n".join(prompt), "Negative prompt": "\n".join(negative), **settings}


def to_png(picture: Image.Image, infotext: str = "") -> bytes:
    """A PNG file with the settings inside."""
    info = PngImagePlugin.PngInfo()
    if infotext:
        info.add_text(KEY, infotext)
    out = BytesIO()
    picture.save(out, format="PNG", pnginfo=info)
    return out.getvalue()


def from_picture(picture: Image.Image) -> tuple[str, dict[str, Any]]:
    """(infotext, everything else that is written) of an opened picture: PNG text, or a JPEG's or WebP's comment."""
    items = {name: value for name, value in picture.info.items() if isinstance(name, str)}
    text = items.pop(KEY, "")
    if not isinstance(text, str) or not text:
        text = _comment(picture)
    kept = {name: value for name, value in items.items() if isinstance(value, (str, int, float))}
    return text, kept


def _comment(picture: Image.Image) -> str:
    """The EXIF user comment, in which A1111 keeps the settings of JPEG and WebP files."""
    try:
        raw = picture.getexif().get_ifd(0x8769).get(0x9286, b"")
    except (OSError, SyntaxError, ValueError, KeyError):
        return ""
    if isinstance(raw, str):
        return raw
    for mark, coding in ((b"UNICODE\0", "utf-16-be"), (b"ASCII\0\0\0", "ascii")):
        if raw.startswith(mark):
            return raw[8:].decode(coding, "replace")
    return ""
