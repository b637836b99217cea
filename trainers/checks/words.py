"""Captions and the trigger word."""

from __future__ import annotations

import re
from collections.abc import Iterator

from trainers.checks.facts import JobFacts
from trainers.checks.finding import OK, STOP, WARN, Finding
from trainers.data.captions import has_trigger
from trainers.data.picture import counted, first_few
from trainers.options import NAMED_BY_ITSELF

EVERYDAY_TOKEN = 30_000
"""Tokens of CLIP below this are words that many pictures were captioned with; `sks` is 48136, `hedgehog` 21940."""

MOST_TRIGGER_TOKENS = 4

_INSTRUCTIONS = re.compile(r"[()\[\]{}<>:|\\]|\b(?:AND|BREAK)\b")
"""What weighs, schedules or parts a prompt, in one WebUI or another."""


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
        if not _called(facts) and not facts.unused_captions:
            yield Finding(
                "trigger", WARN, "There is neither a caption nor a trigger word: what is learned goes into every "
                "picture that is drawn with it.", (), "Give a trigger word, unless that is what you want.",
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


def _called(facts: JobFacts) -> str:
    """The word that calls up what is taught: the trigger, else the name where a method's result goes by that."""
    options = facts.options
    by_name = options.get("method") in (*NAMED_BY_ITSELF, "pivotal")
    return str(options.get("trigger", "")).strip() or (str(options.get("name", "")).strip() if by_name else "")


def _as_instruction(word: str) -> str:
    """What a WebUI's prompt reads as an instruction in a word; empty where there is nothing of that."""
    return " ".join(dict.fromkeys(_INSTRUCTIONS.findall(word)))


def trigger(facts: JobFacts) -> Iterator[Finding]:
    """The trigger word is short, no word that the base knows well already, and can be written in a prompt."""
    word, tokens = str(facts.options.get("trigger", "")).strip(), facts.trigger_tokens
    called = _called(facts)
    if found := _as_instruction(called):
        yield Finding(
            "trigger", WARN, f"A prompt reads {found} in “{called}” as an instruction, so it cannot be written there.",
            (),
            "Use letters and digits only.",
        )  # fmt: skip
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
