"""One tag: its items -> a `Tag`, or sentences about what is wrong with it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .blocks import PRESETS
from .curves import ALWAYS, ONE, Curve, Edge, Window
from .errors import TagError, UnreadableValue, has_control_characters, printable
from .names import nearest
from .options import OPTION_NAMES, OPTIONS, POSITIONAL
from .scanner import Item, Mark, split_items
from .tags import ADAPTER_KINDS, KINDS, PART, PICTURE, Strength, Tag

MAX_TAG_LENGTH = 4000


class _Rejected(Exception):
    """The tag cannot be used: what is wrong, and which piece of the prompt is meant."""

    def __init__(self, what: str, item: Item) -> None:
        super().__init__(what)
        self.what, self.item = what, item


@dataclass
class _Pieces:
    """A tag's items sorted into what they are; values of named options are items of their own."""

    positional: list[Item] = field(default_factory=list)
    named: dict[str, Item] = field(default_factory=dict)


def read_tag(text: str, mark: Mark, negative: bool, default_scope: str) -> tuple[Tag | None, list[TagError]]:
    """The tag at `mark` and what there is to say about it; None for one that cannot be used."""
    whole = Item(text[mark.start : mark.end], mark.start, mark.end)
    reader = _Reader(whole, mark.kind)
    try:
        _check_whole(whole, mark.kind)
        pieces = reader.sort(split_items(text, mark))
        fields = _fields(reader.values(pieces), mark.kind, negative, default_scope, whole)
    except _Rejected as rejected:
        shown = printable(whole.text)
        sentence = f"The tag {shown} is not used: {rejected.what}."
        return None, [TagError(sentence, rejected.item.start, rejected.item.end, whole.text)]
    name = pieces.positional[0].text
    tag = Tag(mark.kind, name, negative=negative, span=(mark.start, mark.end), source_text=whole.text, **fields)
    return tag, reader.notes


def _check_whole(whole: Item, kind: str) -> None:
    if any(f"<{other}:" in whole.text[1:] for other in KINDS):
        raise _Rejected("another tag begins inside it, so a > seems to be missing", whole)
    if len(whole.text) > MAX_TAG_LENGTH:
        raise _Rejected(f"it is longer than {MAX_TAG_LENGTH} characters", whole)


class _Reader:
    """Sorts and reads the items of one tag and collects notes about what is ignored."""

    def __init__(self, whole: Item, kind: str) -> None:
        self.whole = whole
        self.kind = kind
        self.notes: list[TagError] = []

    def sort(self, items: list[Item]) -> _Pieces:
        """Tell positions from options as A1111 does: an item with one `=` is an option."""
        pieces = _Pieces()
        for item in items:
            key, equals, value = item.text.partition("=")
            option = key.strip().lower()
            known = bool(equals) and option in OPTION_NAMES
            if known:
                pieces.named[option] = Item(value, item.start + len(key) + 1, item.end)
            elif item.text.count("=") == 1 and pieces.positional:
                self._note_unknown(key, item)
            else:
                pieces.positional.append(item)
        self._check_name(pieces)
        self._drop_extra_positions(pieces)
        return pieces

    def values(self, pieces: _Pieces) -> dict[str, Any]:
        """Option name -> value; positions are read first, and a named option wins over its position."""
        values: dict[str, Any] = {}
        for name, item in zip(self._positions(), pieces.positional[1:], strict=False):
            values[name] = _read(name, item, named=False)
        for name, item in pieces.named.items():
            kinds = OPTIONS[name].kinds
            if kinds is not None and self.kind not in kinds:
                self._note(f'the option "{name}" does nothing for {self.kind} tags and is ignored', item)
            else:
                values[name] = _read(name, item, named=True)
        return values

    def _positions(self) -> tuple[str, ...]:
        return POSITIONAL if self.kind in ADAPTER_KINDS else ("te",)

    def _check_name(self, pieces: _Pieces) -> None:
        if not pieces.positional or not pieces.positional[0].text.strip():
            raise _Rejected("it names no file", pieces.positional[0] if pieces.positional else self.whole)
        if has_control_characters(pieces.positional[0].text):
            raise _Rejected("its name has line breaks or other control characters in it", pieces.positional[0])

    def _drop_extra_positions(self, pieces: _Pieces) -> None:
        allowed = 1 + len(self._positions())
        for item in pieces.positional[allowed:]:
            self._note(f'"{printable(item.text)}" stands after everything that is expected and is ignored', item)
        del pieces.positional[allowed:]

    def _note_unknown(self, key: str, item: Item) -> None:
        hint = nearest(key, OPTION_NAMES)
        advice = f'; did you mean "{hint}"?' if hint else "."
        self._note(f'there is no option "{printable(key)}", so it is ignored', item, ending=advice)

    def _note(self, what: str, item: Item, ending: str = ".") -> None:
        message = f"In the tag {printable(self.whole.text)} {what}{ending}"
        self.notes.append(TagError(message, item.start, item.end, self.whole.text, tag_used=True))


def _read(name: str, item: Item, named: bool) -> Any:
    try:
        return OPTIONS[name].read(item.text)
    except UnreadableValue as unreadable:
        what = str(unreadable)
        if not named and _looks_like_blocks(item.text):
            what += "; block weights are written lbw=…"
        place = f"in {name}=, " if named else ""
        raise _Rejected(f"{place}{what}", item) from None


def _looks_like_blocks(text: str) -> bool:
    return text.strip().upper() in PRESETS or text.count(",") >= 11


def _fields(values: dict[str, Any], kind: str, negative: bool, default_scope: str, whole: Item) -> dict[str, Any]:
    """The fields of `Tag` from the values that were given, with A1111's rules for those that were not."""
    te: Curve = values.get("te", ONE)
    unet: Curve = values.get("unet", te)
    scope = values.get("for", default_scope)
    return {
        "te": te,
        "unet": unet,
        "dyn": values.get("dyn"),
        "window": _window(values, whole),
        "blocks": values.get("lbw"),
        "hires": _hires(values, te, unet),
        # A negative prompt is one part (no host splits it at AND), so its own part is its own picture.
        "scope": PICTURE if negative and scope == PART else scope,
        "region": values.get("mask"),
        "live": values.get("live", False),
        **{name: values[name] for name in ("steps", "lr", "slerp") if name in values},
    }


def _hires(values: dict[str, Any], te: Curve, unet: Curve) -> Strength | None:
    """Curves of the hires pass as loractl reads them: hrte and hrunet over hr over the first pass's."""
    if not {"hr", "hrte", "hrunet"} & values.keys():
        return None
    both = values.get("hr")
    return Strength(values.get("hrte", both or te), values.get("hrunet", both or unet))


def _window(values: dict[str, Any], whole: Item) -> Window:
    given: Window = values.get("step", ALWAYS)
    start: Edge | None = given.start or values.get("start")
    stop: Edge | None = given.stop or values.get("stop")
    if start is not None and stop is not None and start.in_steps == stop.in_steps and start.value >= stop.value:
        raise _Rejected("its window ends before it begins", whole)
    return Window(start, stop)
