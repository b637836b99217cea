"""What is said about a picture: trigger word, shuffling, tag drop and caption drop, all from keyed randomness."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from trainers.data.picture import Picture
from trainers.encodings import UnreadableText, read_text
from trainers.errors import InputError
from trainers.options import concepts_of
from trainers.rng import python_random
from trainers.spec import Job

NAME, FILEWORDS = "[name]", "[filewords]"


def tags_of(caption: str) -> list[str]:
    """The comma-separated parts of a caption."""
    return [tag for tag in (part.strip() for part in caption.split(",")) if tag]


def word_pattern(word: str) -> str:
    """A pattern for the word by itself; in scripts without blanks, wherever it stands."""
    return rf"(?<!\w){re.escape(word)}(?!\w)" if word.isascii() else re.escape(word)


def has_trigger(caption: str, trigger: str) -> bool:
    """Whether the word stands in the caption by itself, in any case."""
    return re.search(word_pattern(trigger), caption, re.IGNORECASE) is not None


def written(picture: Picture) -> str:
    """The caption with its prefix and suffix, without trigger word."""
    options = picture.options
    return " ".join(part for part in (options.prefix, picture.caption, options.suffix) if part)


def _trigger_for(picture: Picture, job: Job) -> str:
    """The word that stands for what this picture shows: one of several concepts where its caption names it."""
    if picture.is_regularisation:
        return ""
    said = written(picture)
    named = (word for word in concepts_of(job) if has_trigger(said, word))
    return next(named, job.trigger.strip())


def plain_caption(picture: Picture, job: Job) -> str:
    """The caption with prefix, suffix and trigger word, unshuffled; regularisation pictures get no trigger word."""
    return _with_trigger(written(picture), _trigger_for(picture, job))


def _with_trigger(caption: str, trigger: str) -> str:
    if not trigger or has_trigger(caption, trigger):
        return caption
    return f"{trigger}, {caption}" if caption else trigger


def varies(picture: Picture) -> bool:
    """Whether shuffling or tag drop makes different captions of this one."""
    options = picture.options
    return options.shuffle_captions or options.tag_drop > 0


def caption_for(picture: Picture, variant: int | str, job: Job) -> str:
    """The caption of one variant: a pure function of (job.seed, picture.key, variant).

    The trigger word and the first `keep_tokens` tags stay in place and are never dropped. Caption drop is decided
    apart from this, by `is_dropped`.
    """
    if job.get("template") and not picture.is_regularisation:
        return _from_template(picture, variant, job)
    return _shuffled(picture, variant, job)


def _from_template(picture: Picture, variant: int | str, job: Job) -> str:
    """A line of the template file with the word for [name] and the picture's own caption for [filewords]."""
    lines = template_lines(job.template)
    line = python_random(job.seed, "template", picture.key, variant).choice(lines)
    own = _shuffled(picture, variant, job, trigger="")
    return line.replace(NAME, _trigger_for(picture, job)).replace(FILEWORDS, own).strip(" ,")


@lru_cache(maxsize=8)
def template_lines(path: str) -> tuple[str, ...]:
    """The lines of a template file, as A1111 has them.

    Raises:
        InputError: it cannot be read, or no line has a place for the word.
    """
    try:
        text, _ = read_text(Path(path))
    except UnreadableText as problem:
        raise InputError(f"template: {path} cannot be read ({problem}).") from None
    lines = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not any(NAME in line for line in lines):
        raise InputError(f"template: {path} has no line with {NAME}, which stands for the word that is taught.")
    return lines


def _shuffled(picture: Picture, variant: int | str, job: Job, trigger: str | None = None) -> str:
    trigger = _trigger_for(picture, job) if trigger is None else trigger
    caption = _with_trigger(written(picture), trigger)
    if not varies(picture):
        return caption
    options, tags = picture.options, tags_of(caption)
    fixed = options.keep_tokens
    if trigger and not has_trigger(written(picture), trigger):
        fixed += len(tags_of(trigger))  # put in front by us, so it does not count as one of the person's tags
    elif trigger and tags and has_trigger(tags[0], trigger):
        fixed = max(fixed, 1)
    draw = python_random(job.seed, "caption", picture.key, variant)
    rest = tags[fixed:]
    if options.shuffle_captions:
        draw.shuffle(rest)
    if options.tag_drop > 0:
        rest = [tag for tag in rest if draw.random() >= options.tag_drop or (trigger and has_trigger(tag, trigger))]
    return ", ".join(tags[:fixed] + rest)


def variant_texts(picture: Picture, job: Job) -> list[str]:
    """The texts of all `caption_variants` variants (one where nothing varies)."""
    return [caption_for(picture, variant, job) for variant in range(variant_count(picture, job))]


def variant_count(picture: Picture, job: Job) -> int:
    return job.caption_variants if varies(picture) else 1


def is_dropped(picture: Picture, job: Job, *sample: int | str) -> bool:
    """Whether this sample (epoch, repeat) sees the empty caption."""
    share = picture.options.caption_drop
    return share > 0 and python_random(job.seed, "caption_drop", picture.key, *sample).random() < share


def tag_frequency(pictures: Iterable[Picture], job: Job) -> dict[str, dict[str, int]]:
    """{folder: {tag: number of pictures}} as in kohya's `ss_tag_frequency`: lower case, without repeats."""
    counts: dict[str, Counter[str]] = {}
    for picture in pictures:
        counts.setdefault(picture.folder, Counter()).update(tag.lower() for tag in tags_of(plain_caption(picture, job)))
    return {folder: dict(tags) for folder, tags in counts.items()}
