"""The tags of a batch of pictures: which of them act, and on which rows.

As in A1111, what stands in the first picture's prompt acts on all pictures; tags of later pictures act only when they
say `for=picture` or `for=part` (or that is the default), since a batch usually repeats one prompt.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .errors import TagError, printable
from .parser import ParsedPrompt, parse_prompt
from .tags import ALL, KINDS, PART, Tag


@dataclass(frozen=True)
class Active:
    """A tag that acts, and the picture of the batch in whose prompt it stood."""

    tag: Tag
    picture: int

    def acts_on(self, picture: int, part: int | None) -> bool:
        """Whether it acts on the row of this picture and AND part; `part` None is the picture's negative row.

        Where in the picture (`tag.region`) is not asked here.
        """
        if self.tag.negative and part is not None:
            return False
        if self.tag.scope == ALL:
            return True
        if picture != self.picture:
            return False
        return self.tag.scope != PART or part == self.tag.part


@dataclass(frozen=True)
class BatchError:
    """An error and the prompt it is about; of equal prompts only the first is named."""

    picture: int
    negative: bool
    error: TagError


@dataclass(frozen=True)
class BatchTags:
    """A batch without its tags.

    Attributes:
        prompts, negatives: one per picture.
        active: the tags that act, positive before negative, pictures in order.
        errors: everything to report, including tags of later pictures that do not act.
    """

    prompts: tuple[ParsedPrompt, ...]
    negatives: tuple[ParsedPrompt, ...]
    active: tuple[Active, ...]
    errors: tuple[BatchError, ...]

    def for_row(self, picture: int, part: int | None) -> list[Tag]:
        """The tags that act on one row; `part` None is the negative row."""
        return [active.tag for active in self.active if active.acts_on(picture, part)]

    @property
    def uniform(self) -> bool:
        """True when every tag acts on every row, so that no row needs to be told from another."""
        return all(active.tag.scope == ALL and not active.tag.negative for active in self.active)


def parse_batch(
    prompts: Sequence[str],
    negatives: Sequence[str] = (),
    *,
    default_scope: str = ALL,
    kinds: Iterable[str] = KINDS,
    protect_escapes: bool = False,
) -> BatchTags:
    """Read the prompts of a batch, one per picture; options as in `parse_prompt`.

    `negatives` has one per picture, or a single one for all, or none. ValueError for other numbers.
    """
    if len(negatives) not in (0, 1, len(prompts)):
        raise ValueError(f"{len(negatives)} negative prompts for {len(prompts)} pictures")
    if len(negatives) < len(prompts):
        negatives = [negatives[0] if negatives else ""] * len(prompts)
    options = {"default_scope": default_scope, "kinds": frozenset(kinds), "protect_escapes": protect_escapes}
    parsed, parsed_negatives = _parse_each(prompts, False, options), _parse_each(negatives, True, options)
    active: list[Active] = []
    errors: list[BatchError] = []
    for side in (parsed, parsed_negatives):
        active += _active(side)
        errors += _errors(side, negative=side is parsed_negatives)
    return BatchTags(parsed, parsed_negatives, tuple(active), tuple(errors))


def _parse_each(texts: Sequence[str], negative: bool, options: dict) -> tuple[ParsedPrompt, ...]:
    """Equal texts give the same object, so a large batch of one prompt is read once."""
    parsed = {text: parse_prompt(text, negative, **options) for text in dict.fromkeys(texts)}
    return tuple(parsed[text] for text in texts)


def _active(side: tuple[ParsedPrompt, ...]) -> list[Active]:
    return [
        Active(tag, picture)
        for picture, parsed in enumerate(side)
        for tag in parsed.tags
        if picture == 0 or tag.scope != ALL
    ]


def _errors(side: tuple[ParsedPrompt, ...], negative: bool) -> list[BatchError]:
    errors = []
    reported: set[int] = set()
    for picture, parsed in enumerate(side):
        if id(parsed) in reported:
            continue
        reported.add(id(parsed))
        problems = list(parsed.errors)
        if picture > 0:
            problems += _unused(parsed, side[0])
        errors += [BatchError(picture, negative, error) for error in problems]
    return errors


def _unused(parsed: ParsedPrompt, first: ParsedPrompt) -> list[TagError]:
    """Tags of a later picture that the first picture does not have either."""
    return [
        TagError(
            f"The tag {printable(tag.source_text)} is not used: without for=picture only the tags of the first picture "
            "of a batch act.",
            *tag.span,
            tag.source_text,
        )
        for tag in parsed.tags
        if tag.scope == ALL and tag not in first.tags
    ]
