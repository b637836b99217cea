"""Encoding prompts in AUTOMATIC1111 with text-encoder weights that differ between prompts and between steps.

The host encodes equal texts once and knows nothing of weights. So its own function is called once for each set of
weights that occurs, and what it gives is put together row by row and step by step: the host keeps, for every prompt, a
list of encodings with the last step of each.

Rows of regions, which are no rows of the host's, are encoded beside them; their encodings travel with what the host
keeps, so that they are found again where it finds its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from modules import prompt_parser

from extension.hosts.embedding_weights import weighted_text
from extension.injection import Generation, Row, Use
from extension.injection.contexts import Context, context_of
from extension.injection.embeddings import EmbeddingStore
from extension.prompt import ParsedPrompt

Encode = Callable[..., Any]
TEXT_COMPONENTS = ("text_encoder", "text_encoder_2")


@dataclass(frozen=True)
class Pass:
    """Which sampling pass the encodings are for.

    Attributes:
        steps: steps the sampler takes.
        calls: how often it asks the model for that: the host counts the ends of encodings in calls.
    """

    steps: int
    calls: int
    hires: bool = False


@dataclass(frozen=True)
class Segment:
    """Calls `first` to `last` have the same weights and texts as the moment `step`."""

    first: int
    last: int
    step: float


def _merge(schedules: Sequence[tuple[Segment, list[Any]]]) -> list[Any]:
    """One prompt's encodings by segment -> one schedule; `end_at_step` is the last call an encoding is for."""
    merged = []
    for segment, schedule in schedules:
        start = 0
        for entry in schedule:
            last_one = entry is schedule[-1]
            end = segment.last if last_one else min(entry.end_at_step, segment.last)
            if end >= max(start, segment.first):
                merged.append(prompt_parser.ScheduledPromptConditioning(end, entry.cond))
            start = entry.end_at_step + 1
            if start > segment.last:
                break
    return merged


class Schedules(list):
    """The host's list of negative prompts' schedules, with an attribute for those of regions."""


_REGIONS = "athanor_regions"


def contexts_at(encoded: Any, call: int) -> dict[Row, Context]:
    """The conditionings of regions' rows at one call of the sampler, from what `Encoder.encode` returned.

    The moment is chosen as the host chooses its own; see its `reconstruct_cond_batch`.
    """
    found = {}
    for row, schedule in getattr(encoded, _REGIONS, {}).items():
        entry = next((one for one in schedule if call <= one.end_at_step), schedule[0])
        found[row] = context_of(entry.cond)
    return found


class Encoder:
    """Encodes the prompts of one pass of one batch.

    Args:
        generation: whose text-encoder weights act while the host encodes.
        parsed, negatives: the prompts as read, one per picture.
        store: the embeddings that `<ti:…>` may name.
        given: the host's texts as they were left when the tags were read, (prompts, negatives).
    """

    def __init__(
        self,
        generation: Generation | None,
        parsed: Sequence[ParsedPrompt],
        negatives: Sequence[ParsedPrompt],
        store: EmbeddingStore,
        sampling: Pass,
        given: tuple[Sequence[str], Sequence[str]] | None = None,
    ) -> None:
        self._generation = generation
        self._parsed = {False: list(parsed), True: list(negatives)}
        self._store = store
        self._pass = sampling
        self._given = {False: given[0], True: given[1]} if given else self._texts_at_start()
        self._components = [] if generation is None else [name for name in TEXT_COMPONENTS if name in generation.rows]

    def _texts_at_start(self) -> dict[bool, list[str]]:
        return {side: [self._text(i, side, 0) for i in range(len(parsed))] for side, parsed in self._parsed.items()}

    # --- what differs

    def _weights(self, row: Row, step: float) -> tuple[float, ...]:
        """Every use's text-encoder weight for one row."""
        if self._generation is None:
            return ()
        sampling = self._pass
        uses = (*filter(_reads_texts, self._generation.uses), *self._generation.text_uses)
        return tuple(
            use.weight("text_encoder", step, sampling.steps, sampling.hires) if use.whom.includes(row) else 0.0
            for use in uses
        )

    def _text(self, picture: int, negative: bool, step: float) -> str:
        return weighted_text(self._parsed[negative][picture], self._store, step, self._pass.steps, self._pass.hires)

    def _moment(self, rows: Sequence[Row], step: float) -> tuple:
        texts = tuple(self._text(row.picture, row.negative, step) for row in rows)
        return tuple(self._weights(row, step) for row in rows), texts

    def _steps(self) -> list[float]:
        """Steps that are done at each call of the sampler."""
        calls = max(self._pass.calls, 1)
        return [call * self._pass.steps / calls for call in range(calls)]

    def _segments(self, rows: Sequence[Row]) -> list[Segment]:
        """The pass cut where some row's weights or text change."""
        segments: list[Segment] = []
        before = None
        for call, step in enumerate(self._steps()):
            moment = self._moment(rows, step)
            if segments and moment == before:
                segments[-1] = Segment(segments[-1].first, call, segments[-1].step)
            else:
                segments.append(Segment(call, call, step))
            before = moment
        return segments

    # --- encoding

    def _run(self, encode: Encode, model: Any, prompts: Any, rest: tuple, row: Row | None, segment: Segment) -> Any:
        """The host's encodings of all prompts, with the weights that one row has in one segment."""
        texts = prompt_parser.SdConditioning(prompts)
        negative = bool(getattr(prompts, "is_negative_prompt", False))
        for picture, given in enumerate(prompts):
            # A text that another extension changed since it was read stays as that one wants it.
            if given == self._given[negative][picture]:
                texts[picture] = self._text(picture, negative, segment.step)
        self._set(row, segment.step)
        try:
            return encode(model, texts, *rest)
        finally:
            self._set(None, 0)

    def _set(self, row: Row | None, step: float) -> None:
        if self._generation is None:
            return
        self._generation.set_step(step, self._pass.steps, self._pass.hires)
        rows = None if row is None or everyone(self._generation) else [row]
        for component in self._components:
            self._generation.set_rows(rows, component)

    def _grouped(self, rows: Sequence[Row], segment: Segment) -> dict[tuple, list[Row]]:
        """Rows by their text-encoder weights."""
        groups: dict[tuple, list[Row]] = {}
        for row in rows:
            groups.setdefault(self._weights(row, segment.step), []).append(row)
        return groups

    def _by_row(self, encode: Encode, model: Any, prompts: Any, rest: tuple, rows: Sequence[Row]) -> dict[Row, Any]:
        """`{row: [(segment, schedule)]}`; `_pick` finds a row's schedule in what the host returns."""
        found: dict[Row, list[tuple[Segment, Any]]] = {row: [] for row in rows}
        for segment in self._segments(rows):
            for group in self._grouped(rows, segment).values():
                result = self._run(encode, model, prompts, rest, group[0], segment)
                for row in group:
                    found[row].append((segment, _pick(result, row)))
        return found

    def encode(self, function: Encode, model: Any, prompts: Any, *rest: Any) -> Any:
        """In place of `function(model, prompts, *rest)`, which is one of the host's two for encoding prompts."""
        negative = bool(getattr(prompts, "is_negative_prompt", False))
        if len(prompts) != len(self._parsed[negative]):
            return function(model, prompts, *rest)  # not the prompts that were read
        rows = _rows_of(prompts, negative)
        inside = self._inside(rows)
        if not self._varied([*rows, *inside]):
            return self._run(function, model, prompts, rest, rows[0] if rows else None, Segment(0, 0, 0))
        by_row = self._by_row(function, model, prompts, rest, [*rows, *inside])
        if negative:
            made = Schedules(_merge(by_row[row]) for row in rows)
        else:
            made = _multicond(by_row, rows, self._run(function, model, prompts, rest, rows[0], Segment(0, 0, 0)))
        setattr(made, _REGIONS, {row: _merge(by_row[row]) for row in inside})
        return made

    def _inside(self, rows: Sequence[Row]) -> list[Row]:
        """Rows of regions whose text-encoder weights are at some step other than those of the row they lie in."""
        if self._generation is None:
            return []
        names = dict.fromkeys(whom.region for whom in self._generation.whoms if whom.region is not None)
        pairs = [(replace(row, region=name), row) for name in names for row in rows]
        steps = self._steps()
        return [one for one, row in pairs if any(self._weights(one, s) != self._weights(row, s) for s in steps)]

    def _varied(self, rows: Sequence[Row]) -> bool:
        if not rows:
            return False
        segments = self._segments(rows)
        return len(segments) > 1 or len(self._grouped(rows, segments[0])) > 1


def _rows_of(prompts: Any, negative: bool) -> list[Row]:
    """Every row that these prompts give."""
    if negative:
        return [Row(picture, negative=True) for picture in range(len(prompts))]
    parts = prompt_parser.get_multicond_prompt_list(prompts)[0]
    return [Row(picture, part) for picture, found in enumerate(parts) for part in range(len(found))]


def _pick(result: Any, row: Row) -> Any:
    """One row's schedule in what the host's function returned."""
    if row.negative:
        return result[row.picture]
    return result.batch[row.picture][row.part].schedules


def _multicond(by_row: dict[Row, Any], rows: Sequence[Row], like: Any) -> Any:
    """The host's object for positive prompts, with the schedules that were put together."""
    batch: list[list[Any]] = [[] for _ in like.batch]
    for row in rows:
        weight = like.batch[row.picture][row.part].weight
        schedules = _merge(by_row[row])
        batch[row.picture].append(prompt_parser.ComposableScheduledPromptConditioning(schedules, weight))
    return prompt_parser.MulticondLearnedConditioning(shape=like.shape, batch=batch)


def everyone(generation: Generation) -> bool:
    """Whether every use acts on every row."""
    return all(use.whom.everyone for use in (*generation.uses, *generation.text_uses))


def _reads_texts(use: Use) -> bool:
    """Whether a use's file has something for text encoders at all."""
    return any(component != "unet" for component, _ in use.adapter.groups)
