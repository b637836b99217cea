"""What the UNet is told at each step: prompts to vectors, with weights, embeddings and the adapters of the moment."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from extension.hosts.embedded.chunks import Chunk, Words, cut_prompt
from extension.injection.embeddings import Embedding
from extension.injection.scales import Row
from extension.injection.state import Generation
from trainers.bases.loader import Base
from trainers.bases.text import run_encoder

KEPT = 64


@dataclass(frozen=True)
class Cond:
    """One row's conditioning.

    Attributes:
        hidden: [77 n, width].
        pooled: [width] for SDXL, else None.
        embeddings: those that stood in the prompt.
    """

    hidden: Tensor
    pooled: Tensor | None = None
    embeddings: tuple[Embedding, ...] = ()


def emphasise(hidden: Tensor, multipliers: Tensor) -> Tensor:
    """Each token's vector times its weight, brought back to the mean it had ("Original" emphasis of A1111).

    Args:
        hidden: [77, width]; multipliers: [77].
    """
    if bool((multipliers == 1).all()):
        return hidden
    before = hidden.float().mean()
    weighed = hidden * multipliers.to(hidden)[:, None]
    after = weighed.float().mean()
    ratio = before / after
    # A text encoder whose last norm has no bias gives a mean of nearly 0, of which no ratio can be formed.
    usable = after.abs() > 1e-6 * hidden.float().abs().mean() and bool(torch.isfinite(ratio))
    return weighed * ratio.to(weighed) if usable else weighed


class _Replaced:
    """While it is entered, the token embedding of a text model gives the embeddings' vectors where they stand."""

    def __init__(self, module: nn.Module, encoder: str, chunks: Sequence[Chunk]) -> None:
        self._layer = module.get_input_embeddings()
        self._encoder = encoder
        self._chunks = chunks

    def _hook(self, _module: nn.Module, _args: tuple, output: Tensor) -> Tensor:
        output = output.clone()
        for number, chunk in enumerate(self._chunks):
            for placed in chunk.placed:
                vectors = placed.vectors(self._encoder).to(output)
                output[number, placed.position : placed.position + len(vectors)] = vectors
        return output

    def __enter__(self) -> None:
        self._handle = self._layer.register_forward_hook(self._hook)

    def __exit__(self, *_: object) -> None:
        self._handle.remove()


@dataclass
class Text:
    """One prompt of one row, tags taken out.

    Attributes:
        text: with marks where `<ti:…>` tags stood.
        row: whom it is for; adapters for this row act on its encoding.
        marked: embedding and strength behind each mark.
    """

    text: str
    row: Row
    marked: Mapping[int, tuple[Embedding, float]] = field(default_factory=dict)


class Conditioner:
    """Encodes prompts, and keeps what it encoded for as long as nothing that it depends on is different.

    Attributes:
        used: embeddings that stood in the prompts since `prepare`, by name.
    """

    def __init__(self, base: Base) -> None:
        self.base = base
        self.used: dict[str, Embedding] = {}
        self._kept: OrderedDict[tuple, Cond] = OrderedDict()
        self.prepare((), 1)

    def prepare(self, embeddings: Sequence[Embedding], clip_skip: int) -> None:
        """What the next generation's prompts may name, and which layer of the text encoders is read."""
        self.clip_skip = self._skip(clip_skip)
        self.words = Words(self._ids, embeddings)
        self._made_for = (self.clip_skip, tuple(sorted((one.name, one.stamp or ()) for one in embeddings)))
        self.used = {}

    def _skip(self, wanted: int) -> int:
        family = self.base.family
        default = family.default_clip_skip
        if wanted <= 1 or not family.text_encoders[0].final_norm:
            return default  # SDXL always reads the layer before the last
        return min(max(wanted, default), family.text_encoders[0].layers)

    def _ids(self, text: str) -> list[int]:
        return self.base.tokenizers[0](text, add_special_tokens=False, truncation=False, verbose=False).input_ids

    def encode(self, wanted: Text, generation: Generation | None = None) -> Cond:
        """The conditioning of one row with the text-encoder weights that `generation` has at its step."""
        marked = tuple((number, item.stamp, strength) for number, (item, strength) in sorted(wanted.marked.items()))
        key = (wanted.text, marked, wanted.row.negative, self._made_for, self._weights(wanted.row, generation))
        if key not in self._kept:
            self._kept[key] = self._encode(wanted, generation)
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        self.used.update({one.name: one for one in self._kept[key].embeddings})
        return self._kept[key]

    def _weights(self, row: Row, generation: Generation | None) -> tuple:
        if generation is None:
            return ()
        names = [spec.component for spec in self.base.family.text_encoders]
        moment = (generation.step, generation.total, generation.hires)
        # The same adapters at the same strengths give the same encoding; which picture it is for does not matter then.
        return tuple(
            (use.adapter.stamp, name, float(use.weight(name, *moment)), use.label)
            for use in generation.uses
            if use.whom.includes(row)
            for name in names
        ) + tuple(use.key(*moment) for use in generation.text_uses if use.whom.includes(row))

    @torch.no_grad()
    def _encode(self, wanted: Text, generation: Generation | None) -> Cond:
        chunks = cut_prompt(wanted.text, self._ids, self.words, wanted.marked)
        if self._zeros(wanted, chunks):
            return self._nothing()
        hidden_parts, pooled = [], None
        for encoder, module in zip(self.base.family.text_encoders, self.base.text_encoders, strict=True):
            if generation is not None:
                generation.set_rows([wanted.row] * len(chunks), encoder.component)
            hidden, projected = self._run(module, encoder, chunks)
            hidden_parts.append(hidden)
            pooled = projected if projected is not None else pooled
        hidden = torch.cat(hidden_parts, dim=-1).flatten(0, 1)
        used = {placed.embedding.name: placed.embedding for chunk in chunks for placed in chunk.placed}
        return Cond(hidden, None if pooled is None else pooled[0], tuple(used.values()))

    def _run(self, module: nn.Module, encoder: object, chunks: Sequence[Chunk]) -> tuple[Tensor, Tensor | None]:
        device = next(module.parameters()).device
        ids = torch.tensor([chunk.ids(encoder.pads_with_end) for chunk in chunks], device=device)
        if any(chunk.placed for chunk in chunks):
            with _Replaced(module, encoder.component, chunks):
                hidden, pooled = run_encoder(module, encoder, ids, self.clip_skip)
        else:
            hidden, pooled = run_encoder(module, encoder, ids, self.clip_skip)
        weights = [torch.tensor(chunk.multipliers(), device=device) for chunk in chunks]
        return torch.stack([emphasise(one, weight) for one, weight in zip(hidden, weights, strict=True)]), pooled

    def _zeros(self, wanted: Text, chunks: Sequence[Chunk]) -> bool:
        """SDXL was trained to read zeros for no negative prompt at all."""
        sized = self.base.family.unet.size_conditioning
        return sized and wanted.row.negative and not any(chunk.tokens for chunk in chunks)

    def _nothing(self) -> Cond:
        weight = next(self.base.text_encoders[-1].parameters())
        width = self.base.info.context_width
        projection = self.base.text_encoders[-1].text_projection.weight.shape[0]
        return Cond(weight.new_zeros(77, width), weight.new_zeros(projection))
