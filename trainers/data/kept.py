"""The taught pictures a second time, under an ordinary word, to hold the model to what it makes of that itself.

Without it everything drifts towards what is taught before the trigger word has come to mean it. Here the same noisy
picture is learned under the trigger and must stay as it was under the word beside it, so what is new can only go to the
trigger. No other pictures are needed. (ai-toolkit calls it differential output preservation.)
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from trainers.data.captions import word_pattern, written
from trainers.data.picture import Picture
from trainers.spec import Job

PREFIX = "kept:"


def under_word(caption: str, trigger: str, word: str) -> str:
    """The caption with `word` for the trigger, once where both stood side by side; in front where there was neither."""
    changed = re.sub(word_pattern(trigger), lambda _: word, caption, flags=re.IGNORECASE)
    twice = rf"({word_pattern(word)})(?:\s+{word_pattern(word)})+"
    changed = re.sub(twice, lambda found: found.group(1), changed, flags=re.IGNORECASE)
    if re.search(word_pattern(word), changed, re.IGNORECASE):
        return changed
    return f"{word}, {changed}" if changed else word


def kept_pictures(pictures: Sequence[Picture], job: Job) -> list[Picture]:
    """One regularisation picture for each that is taught, under `kept_word`; none without it or without a trigger."""
    word, trigger = job.get("kept_word", "").strip(), job.trigger.strip()
    if not word or not trigger:
        return []
    return [
        replace(
            picture,
            key=PREFIX + picture.key,
            caption=under_word(written(picture), trigger, word),
            options=replace(picture.options, prefix="", suffix=""),
            is_regularisation=True,
        )
        for picture in pictures
        if not picture.is_regularisation
    ]
