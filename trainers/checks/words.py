"""Captions and the trigger word."""

from __future__ import annotations

from collections.abc import Iterator

from trainers.checks.facts import JobFacts
from trainers.checks.finding import OK, STOP, WARN, Finding
from trainers.data.captions import has_trigger
from trainers.data.picture import counted, first_few

EVERYDAY_TOKEN = 30_000
"""Tokens of CLIP below this are words that many pictures were captioned with; `sks` is 48136, `hedgehog` 21940."""

MOST_TRIGGER_TOKENS = 4


def captions(facts: JobFacts) -> Iterator[Finding]:
    """Every caption file is read, and every picture has a caption or none has."""
    if facts.unused_captions:
        few = first_few(facts.unused_captions)
        yield Finding(
            "captions", STOP, f"{counted(len(facts.unused_captions), 'caption file')} would not be used: {few}.",
            tuple(facts.unused_captions),
            "Give each the name of its picture, save it as UTF-8 text, or take it out of the folder.",
        )  # fmt: skip
    if facts.unread_captions:
        few = first_few(facts.unread_captions)
        yield Finding(
            "captions", WARN, f"{counted(len(facts.unread_captions), 'caption file')} not read because captions is "
            f"{facts.options.get('captions')}: {few}.", tuple(facts.unread_captions),
            "Set captions: auto to read them.",
        )  # fmt: skip
    missing = [picture.key for picture in facts.pictures if picture.caption is None]
    with_captions = len(facts.pictures) - len(missing)
    if missing and with_captions:
        wanted = facts.options.get("allow_missing_captions")
        yield Finding(
            "captions", WARN if wanted else STOP,
            f"{len(missing)} of {counted(len(facts.pictures), 'picture')} have no caption: {first_few(missing)}.",
            tuple(missing), "Write the missing captions, or set allow_missing_captions: true.",
        )  # fmt: skip
    elif missing and facts.options.get("captions") != "none":
        yield Finding(
            "captions", WARN, "No picture has a caption: everything in them is learned as one thing.", tuple(missing),
            "Write at least “photo of TRIGGER CLASS”, and what else can be seen.",
        )  # fmt: skip
    yield from _trigger_in_captions(facts)


def _trigger_in_captions(facts: JobFacts) -> Iterator[Finding]:
    trigger = str(facts.options.get("trigger", "")).strip()
    lacking = [
        p.key for p in facts.pictures if p.caption is not None and trigger and not has_trigger(p.caption, trigger)
    ]
    if lacking:
        yield Finding(
            "captions", OK,
            f"{counted(len(lacking), 'caption')} without the trigger word; it is put in front while training.",
            tuple(lacking), f"Put “{trigger}” where it belongs in the sentence, if the front is the wrong place.",
        )  # fmt: skip
    elif facts.pictures and all(picture.caption is not None for picture in facts.pictures):
        yield Finding("captions", OK, "Every picture has a caption.")


def trigger(facts: JobFacts) -> Iterator[Finding]:
    """The trigger word is short, and no word that the base knows well already."""
    word, tokens = str(facts.options.get("trigger", "")).strip(), facts.trigger_tokens
    if not word or not tokens:
        what = "The word has vectors of its own." if "vectors" in facts.options else ""
        yield Finding("trigger", OK, what or "No trigger word: what is learned comes with the captions' own words.")
    elif len(tokens) > MOST_TRIGGER_TOKENS:
        yield Finding(
            "trigger", WARN, f"The trigger word “{word}” takes {len(tokens)} tokens.", (),
            f"A word of at most {MOST_TRIGGER_TOKENS} is learned faster and leaves room in the prompt.",
        )  # fmt: skip
    elif len(tokens) == 1 and tokens[0] < EVERYDAY_TOKEN:
        yield Finding(
            "trigger", WARN, f"“{word}” is a word that the model knows: what it draws for it is mixed in.", (),
            f"Draw “{word}” with the base once to see it; better is a word of your own, such as “sks {word}”.",
        )  # fmt: skip
    else:
        yield Finding("trigger", OK, f"The word “{word}” takes {counted(len(tokens), 'token')}.")
