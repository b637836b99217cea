"""Prompt text -> clean text, tags and errors.

What is taken out and what stays:

- A tag of a known kind, `<kind:…>` up to the next `>`, is taken out and nothing is put in its place, exactly as the
  host's own removal does. One that cannot be read is taken out as well, does not act, and is reported.
- `<ti:name>` is replaced by the embedding's name, because where an embedding stands matters; the name is escaped for
  the host's attention syntax, and spaces keep it apart from letters beside it.
- A backslash before a tag makes it text: `\\<lora:x>` becomes `<lora:x>` (`protect_escapes=True`: `< lora:x>`, which
  CLIP reads as the same tokens but the host's own removal leaves alone). Two backslashes are a backslash, and the tag
  after them is a tag.
- Everything else stays bit for bit: `a<b`, `<3`, `<other:x>`, `<lora:>`, `<lora:x` without a `>`, `<LoRA:x>`. The last
  three are reported, since they were probably meant.

Differences from A1111 where it accepts an input: spaces around an option's name and capitals in it do not matter
(`: TE=0.5`; A1111 ignores such an option); a first item that contains `=` is the file's name unless it is a known
option; a negative `dyn`, weights beyond 10000, infinity and NaN are refused; and a tag inside another kind's brackets
(`<other: <lora:x>`) acts. Options that are not known are ignored as in A1111, but reported.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from .errors import TagError, printable
from .parts import Part, part_index, split_parts
from .reading import read_tag
from .scanner import EMPTY, ESCAPED, MISSPELT, TAG, UNCLOSED, Mark, scan
from .tags import ALL, KINDS, SCOPES, Tag

MAX_TAGS = 1000
"""In one prompt; those after are taken out unread, with one sentence about it."""

_SAFE_NEIGHBOURS = frozenset(",()[]|:")


@dataclass(frozen=True)
class ParsedPrompt:
    """A prompt without its tags.

    Attributes:
        clean_text: what the text encoders read.
        tags: in the order of the text.
        errors: in the order of the text, also about tags that act although an option was ignored (`tag_used`).
        parts: the AND parts of the clean text, at least one; `tag.part` is an index into them.
    """

    clean_text: str
    tags: tuple[Tag, ...]
    errors: tuple[TagError, ...]
    parts: tuple[Part, ...]


def parse_prompt(
    text: str,
    negative: bool = False,
    *,
    default_scope: str = ALL,
    kinds: Iterable[str] = KINDS,
    protect_escapes: bool = False,
) -> ParsedPrompt:
    """Read the tags of one prompt; never raises for any text.

    Args:
        text: the prompt as typed (or the host's text for one picture).
        negative: it is a negative prompt: its tags act on negative rows only, and AND does not split it.
        default_scope: whom a tag without `for=` acts on: "all", "picture" or "part".
        kinds: kinds to read; tags of other kinds stay text for the host.
        protect_escapes: see the module's description.
    """
    if default_scope not in SCOPES:
        raise ValueError(f"default_scope is one of {', '.join(SCOPES)}, not {default_scope!r}")
    build = _Builder(text, negative, default_scope, protect_escapes)
    for mark in scan(text, frozenset(kinds)):
        build.add(mark)
    return build.finish()


class _Builder:
    """Collects the clean text and the tags while the marks of a text come in."""

    def __init__(self, text: str, negative: bool, default_scope: str, protect_escapes: bool) -> None:
        self.text, self.negative, self.default_scope = text, negative, default_scope
        self.protect_escapes = protect_escapes
        self.pieces: list[str] = []
        self.clean_length = 0
        self.copied = 0
        self.seen = 0
        self.tags: list[Tag] = []
        self.errors: list[TagError] = []

    def add(self, mark: Mark) -> None:
        """Take in the next mark."""
        self.seen += 1
        if mark.what == ESCAPED:
            self._copy_to(mark.start)
            self._put("< " if self.protect_escapes else "<")
            self.copied = mark.start + 2
        elif mark.what == TAG:
            self._copy_to(mark.start)
            self.copied = mark.end
            self._add_tag(mark)
        elif self.seen <= MAX_TAGS:
            self._report(mark, _about_text(mark.what, mark.kind))
        if self.seen == MAX_TAGS + 1:
            self._report(mark, f"this prompt has more than {MAX_TAGS} tags, and those from here on do nothing")

    def finish(self) -> ParsedPrompt:
        """The rest of the text, and for each tag the AND part it stood in."""
        self._copy_to(len(self.text))
        clean = "".join(self.pieces)
        parts = (Part(clean, 1.0, 0, len(clean)),) if self.negative else split_parts(clean)
        tags = self.tags
        if len(parts) > 1:
            tags = [replace(tag, part=part_index(parts, tag.clean_span[0])) for tag in tags]
        return ParsedPrompt(clean, tuple(tags), tuple(self.errors), parts)

    def _add_tag(self, mark: Mark) -> None:
        if self.seen > MAX_TAGS:
            return
        tag, errors = read_tag(self.text, mark, self.negative, self.default_scope)
        self.errors += errors
        if tag is None:
            return
        start = self.clean_length
        if tag.kind == "ti":
            name = embedding_text(tag.name)
            before = " " if self._touches(mark.start - 1) else ""
            self._put(before + name + (" " if self._touches(mark.end) else ""))
            start += len(before)
            self.tags.append(replace(tag, clean_span=(start, start + len(name))))
        else:
            self.tags.append(replace(tag, clean_span=(start, start)))

    def _touches(self, neighbour: int) -> bool:
        """Whether the character at this place would run into an embedding's name."""
        if not 0 <= neighbour < len(self.text):
            return False
        character = self.text[neighbour]
        return not character.isspace() and character not in _SAFE_NEIGHBOURS

    def _copy_to(self, end: int) -> None:
        if end > self.copied:
            self._put(self.text[self.copied : end])
            self.copied = end

    def _put(self, piece: str) -> None:
        self.pieces.append(piece)
        self.clean_length += len(piece)

    def _report(self, mark: Mark, what: str) -> None:
        shown = self.text[mark.start : mark.end]
        self.errors.append(TagError(f"{printable(shown, 40)}: {what}.", mark.start, mark.end, shown[:200]))


def embedding_text(name: str) -> str:
    """An embedding's name as it must stand in a prompt: brackets and backslashes escaped."""
    return "".join(f"\\{character}" if character in "\\()[]" else character for character in name.strip())


def _about_text(what: str, kind: str) -> str:
    return {
        EMPTY: "this tag names no file, so it stays text",
        UNCLOSED: "this tag has no > at its end, so it stays text",
        MISSPELT: f"tags are written in small letters, <{kind.lower()}:…>; this one stays text",
    }[what]
