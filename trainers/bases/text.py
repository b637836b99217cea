"""Prompts to conditioning, as A1111 does it: chunks of 75 tokens, each with its own begin and end.

A long prompt is cut into chunks; where a chunk is full and one of its last 20 tokens is a comma, the words after the
comma move to the next chunk, so that no tag is cut in two. Every chunk is encoded by itself and the results are put
one after the other: [77 * chunks, width].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from trainers.bases.concepts import groups, replace_words
from trainers.bases.loader import Base
from trainers.errors import InputError
from trainers.formats.families import TextEncoderSpec

BEGIN_ID, END_ID, COMMA_ID = 49406, 49407, 267
CHUNK = 75
BACKTRACK = 20


@dataclass
class TextCond:
    """What the UNet is told.

    Attributes:
        hidden: [77 * chunks, width]; SDXL joins both encoders' widths.
        pooled: [width of the projection], or None for families without.
    """

    hidden: torch.Tensor
    pooled: torch.Tensor | None = None


def chunk_tokens(
    tokens: Sequence[int], max_chunks: int = 1_000_000, together: Mapping[int, int] | None = None
) -> list[list[int]]:
    """Cuts tokens (without begin and end) into chunks of at most 75, breaking after a comma where one is near.

    An empty prompt is one empty chunk. Chunks past `max_chunks` are dropped. `together` says of a token how many from
    it on must stay in one chunk.
    """
    together = together or {}
    chunks: list[list[int]] = []
    current: list[int] = []
    comma = -1
    for token in tokens:
        if token == COMMA_ID:
            comma = len(current)
        elif len(current) == CHUNK and comma != -1 and CHUNK - comma <= BACKTRACK:
            moved = current[comma + 1 :]
            chunks.append(current[: comma + 1])
            current, comma = moved, -1
        if len(current) + together.get(token, 1) > CHUNK:
            chunks.append(current)
            current, comma = [], -1
        current.append(token)
    if current or not chunks:
        chunks.append(current)
    return chunks[:max_chunks]


def pad_chunk(tokens: Sequence[int], pads_with_end: bool) -> list[int]:
    """77 ids: begin, the tokens, end, and the padding (the end token again, or 0)."""
    padding = END_ID if pads_with_end else 0
    return [BEGIN_ID, *tokens, END_ID, *[padding] * (CHUNK - len(tokens))]


def tokenize(base: Base, prompt: str, max_chunks: int = 1_000_000) -> list[list[int]]:
    """A prompt's chunks of token ids, without begin and end."""
    ids = base.tokenizers[0](prompt, add_special_tokens=False, truncation=False, verbose=False).input_ids
    return chunk_tokens(replace_words(ids, base.concepts), max_chunks, groups(base.concepts))


def count_chunks(base: Base, prompt: str) -> int:
    """How many chunks of 75 tokens a prompt takes."""
    return len(tokenize(base, prompt))


def check_clip_skip(encoder: TextEncoderSpec, clip_skip: int) -> None:
    """Raises InputError where this encoder has no such layer."""
    nearest = encoder.full_layers - encoder.layers + 1
    if not nearest <= clip_skip <= encoder.full_layers:
        raise InputError(f"clip_skip: {clip_skip} will not do for this model; it takes {nearest} to 12.")


def run_encoder(module, encoder: TextEncoderSpec, ids: torch.Tensor, clip_skip: int):
    """`(hidden [N, 77, C], pooled [N, D] or None)` of N chunks."""
    output = module(input_ids=ids, output_hidden_states=True)
    index = encoder.full_layers - clip_skip + 1
    if encoder.final_norm and index == encoder.layers:
        hidden = output.last_hidden_state
    else:
        hidden = output.hidden_states[index]
        if encoder.final_norm:
            hidden = getattr(module, "text_model", module).final_layer_norm(hidden)
    return hidden, output.text_embeds if encoder.pooled else None


def encode_prompts(base: Base, prompts: Sequence[str], clip_skip: int, max_chunks: int = 3) -> list[TextCond]:
    """Encodes prompts with all text encoders of the family.

    Gradients flow into text encoders whose parameters (or adapters) want them; call it under `torch.no_grad()`
    otherwise.

    Args:
        clip_skip: layer that is read, counted from the original network's end; 1 is the last.
        max_chunks: what is longer is cut off.

    Raises:
        InputError: `clip_skip` is out of this family's range.
    """
    chunked = [tokenize(base, prompt, max_chunks) for prompt in prompts]
    flat = [chunk for chunks in chunked for chunk in chunks]
    hidden_parts, pooled = [], None
    for encoder, module in zip(base.family.text_encoders, base.text_encoders, strict=True):
        check_clip_skip(encoder, clip_skip)
        device = next(module.parameters()).device
        ids = torch.tensor([pad_chunk(chunk, encoder.pads_with_end) for chunk in flat], device=device)
        hidden, projected = run_encoder(module, encoder, ids, clip_skip)
        hidden_parts.append(hidden)
        pooled = projected if projected is not None else pooled
    hidden = torch.cat(hidden_parts, dim=-1)
    conds, position = [], 0
    for chunks in chunked:
        rows = hidden[position : position + len(chunks)]
        conds.append(TextCond(rows.flatten(0, 1), None if pooled is None else pooled[position]))
        position += len(chunks)
    return conds


def stack(conds: Sequence[TextCond], empty: TextCond | None = None) -> tuple[torch.Tensor, torch.Tensor | None]:
    """One batch of conditionings: `(hidden [B, 77n, C], pooled [B, D] or None)`.

    Args:
        empty: the empty prompt's conditioning, with which shorter prompts are filled up as A1111 does; needed only
            where lengths differ.
    """
    longest = max(cond.hidden.shape[0] for cond in conds)
    rows = []
    for cond in conds:
        missing = (longest - cond.hidden.shape[0]) // (CHUNK + 2)
        if missing and empty is None:
            raise ValueError("prompts of different lengths need the empty prompt's conditioning")
        filling = [empty.hidden[: CHUNK + 2].to(cond.hidden)] * missing if missing else []
        rows.append(torch.cat([cond.hidden, *filling]))
    pooled = None if conds[0].pooled is None else torch.stack([cond.pooled for cond in conds])
    return torch.stack(rows), pooled
