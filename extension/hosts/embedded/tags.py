"""What the prompts of one batch mean on the loaded model: rows, adapters, embeddings, regions, and what is wrong."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from extension.hosts.embedded import editing
from extension.hosts.embedded.chunks import MARK_CLOSE, MARK_OPEN
from extension.hosts.embedded.model import Model
from extension.hosts.embedded.sampling import Prompt, Strength, needs_negative
from extension.injection import Row, Use
from extension.injection.calls import MaskOf
from extension.injection.embeddings import Embedding, bundled_embeddings, shadowed_word
from extension.masks import mask_of
from extension.prompt import ParsedPrompt, Tag, effective
from extension.prompt.parts import split_parts
from extension.wanted import Library, Wanted, read_wanted
from trainers.errors import InputError


@dataclass
class Meaning:
    """A batch, ready to be drawn.

    Attributes:
        prompts: the rows of each picture.
        uses: adapters for `Injection.begin`.
        embeddings: what names in the prompts may mean.
        regions: mask of each region that a tag names.
        reports: sentences for the person.
    """

    wanted: Wanted
    prompts: list[list[Prompt]]
    uses: list[Use]
    embeddings: list[Embedding]
    regions: dict[str, MaskOf] = field(default_factory=dict)
    reports: list[str] = field(default_factory=list)


def _without_marks(text: str) -> str:
    return text.replace(MARK_OPEN, " ").replace(MARK_CLOSE, " ")


def _strength(tag: Tag) -> Strength:
    return lambda step, total, hires: effective(tag, step, total, hires).te


def _marked(parsed: ParsedPrompt, known: dict[str, Embedding]) -> tuple[str, dict[int, tuple[Embedding, Strength]]]:
    """The clean text with a mark in place of each `<ti:…>` tag whose embedding is there, and what the marks mean."""
    text, marks = parsed.clean_text, {}
    tags = [tag for tag in parsed.tags if tag.kind == "ti" and tag.name.strip().lower() in known]
    for number, tag in reversed(list(enumerate(tags))):
        start, end = tag.clean_span
        text = f"{text[:start]}{MARK_OPEN}{number}{MARK_CLOSE}{text[end:]}"
        marks[number] = (known[tag.name.strip().lower()], _strength(tag))
    return text, marks


def _rows(
    picture: int, positive: ParsedPrompt, negative: ParsedPrompt, known: dict[str, Embedding], cfg: float
) -> list[Prompt]:
    """The rows of one picture: its AND parts, then its negative prompt where guidance looks at it."""
    text, marks = _marked(positive, known)
    parts = split_parts(text)
    rows = [
        Prompt(editing.parse(part.text), Row(picture, number), part.weight, marks) for number, part in enumerate(parts)
    ]
    if needs_negative([part.weight for part in parts], cfg):
        text, marks = _marked(negative, known)
        rows.append(Prompt(editing.parse(text), Row(picture, 0, True), 0.0, marks))
    return rows


def _embeddings(model: Model, library: Library, wanted: Wanted, texts: Sequence[str]) -> tuple[list, list[str]]:
    """(embeddings that fit the model, sentences about those that the prompts name and that do not)."""
    found, reports = [], []
    offered = list(wanted.embeddings(library.embeddings).all())
    for one in {found_tag.adapter.stamp: found_tag.adapter for found_tag in wanted.found}.values():
        try:
            offered += bundled_embeddings(one)
        except InputError as problem:
            reports.append(str(problem))
    joined = "\n".join(texts)
    for embedding in offered:
        named = re.search(rf"(?<!\w){re.escape(embedding.name)}(?!\w)", joined, re.IGNORECASE)
        problem = embedding.problem(model.widths)
        if problem is None:
            found.append(embedding)
            if named and shadowed_word(embedding.name, model.vocabulary):
                reports.append(f'The embedding "{embedding.name}" takes the place of the word; rename its file.')
        elif named:
            reports.append(problem)
    return found, reports


def _regions(wanted: Wanted, library: Library) -> tuple[dict[str, MaskOf], list[str]]:
    regions, reports = {}, []
    for region in wanted.regions:
        try:
            regions[region.name] = mask_of(region, library.masks.find)
        except ValueError as problem:
            reports.append(str(problem))
    return regions, reports


def read_batch(
    prompts: Sequence[str], negatives: Sequence[str], library: Library, model: Model, cfg: float, default_scope: str
) -> Meaning:
    """Reads the prompts of a batch, one per picture; nothing in a prompt raises."""
    prompts, negatives = list(map(_without_marks, prompts)), list(map(_without_marks, negatives))
    wanted = read_wanted(prompts, negatives, library, default_scope=default_scope)
    reports = list(wanted.reports)
    embeddings, problems = _embeddings(model, library, wanted, [*wanted.prompts, *wanted.negatives])
    known = {one.name.lower(): one for one in embeddings}
    regions, mask_problems = _regions(wanted, library)
    batch = wanted.batch
    rows = [
        _rows(picture, batch.prompts[picture], batch.negatives[picture], known, cfg)
        for picture in range(len(batch.prompts))
    ]
    reports = [*reports, *problems, *mask_problems]
    return Meaning(wanted, rows, wanted.uses(model.family), embeddings, regions, reports)
