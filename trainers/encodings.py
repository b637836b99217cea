"""Text files as people have them: UTF-8 with and without BOM, UTF-16, GB18030, and Western code pages."""

from __future__ import annotations

import re
from pathlib import Path

_GB18030_FOUR = re.compile(rb"[\x81-\xfe][0-9][\x81-\xfe][0-9]")
_HIGH_RUN = re.compile(rb"[\x80-\xff]+")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0e-\x1f\x7f\ufffe\uffff]")


class UnreadableText(Exception):
    """The bytes are no text in any of the known encodings."""


def decode_text(data: bytes) -> tuple[str, str]:
    """(text, name of its encoding); raises `UnreadableText`."""
    for encoding in _candidates(data):
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        if not _CONTROL.search(text):
            return text.lstrip("\ufeff"), encoding
    raise UnreadableText("not text in UTF-8, UTF-16 or GB18030")


def _candidates(data: bytes) -> list[str]:
    if data.startswith(b"\xef\xbb\xbf"):
        return ["utf-8-sig"]
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return ["utf-16"]
    if b"\0" in data:  # UTF-16 without BOM: the NULs of plain text are the high halves of its characters
        return ["utf-16-le"] if data[1::2].count(0) > data[0::2].count(0) else ["utf-16-be"]
    # Western letters stand alone between ASCII ones; Chinese text has bytes above 127 in pairs.
    runs = _HIGH_RUN.findall(_GB18030_FOUR.sub(b"", data))
    if runs and all(len(run) == 1 for run in runs):
        return ["utf-8", "cp1252", "gb18030"]
    return ["utf-8", "gb18030", "cp1252"]


def read_text(path: Path, limit: int = 1 << 20) -> tuple[str, str]:
    """`decode_text` of a file; one that cannot be opened or has more than `limit` bytes is an `UnreadableText` too."""
    try:
        if path.stat().st_size > limit:
            raise UnreadableText(f"larger than {limit >> 20} MiB")
        return decode_text(path.read_bytes())
    except OSError as error:
        raise UnreadableText(error.strerror or str(error)) from None
