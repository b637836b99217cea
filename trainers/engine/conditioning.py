"""From captions to what the UNet is conditioned on: computed at each step where the text encoder is trained, else
once for every caption and kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch

from trainers.bases.text import TextCond, encode_prompts, stack
from trainers.data.cache import TextCache
from trainers.engine.models import Models

ENCODE_AT_ONCE = 16


class Conditioner:
    """Gives (hidden [B, 77 n, C], pooled [B, D] or None) for a list of captions.

    A caption that a frozen encoder sees for the first time is encoded and kept.
    """

    def __init__(self, models: Models, *, clip_skip: int, max_chunks: int, trained: bool, dtype: torch.dtype) -> None:
        self.models, self.clip_skip, self.max_chunks = models, clip_skip, max_chunks
        self.trained, self.dtype = trained, dtype
        self._kept: dict[str, Mapping[str, torch.Tensor]] = {}
        self._stored: Mapping[str, Mapping[str, torch.Tensor]] = {}

    def prepare(
        self,
        texts: Iterable[str],
        store: TextCache | None = None,
        report: Callable[[int, int, str], None] | None = None,
    ) -> None:
        """Encode `texts`; kept in memory, or in `store` on disk (which holds the most of them in memory too)."""
        missing = sorted(set(texts) - set(self._kept) - set(self._stored))
        if store is not None:
            self._stored = store.get(missing, self._encode_frozen, report=report)
        elif missing:
            self._kept.update(zip(missing, self._encode_frozen(missing), strict=True))

    def _cond(self, text: str) -> TextCond:
        tensors = self._stored[text] if text in self._stored else self._kept[text]
        return TextCond(tensors["hidden"], tensors.get("pooled"))

    def _encode(self, texts: list[str]) -> list[TextCond]:
        return encode_prompts(self.models.need_text(), texts, clip_skip=self.clip_skip, max_chunks=self.max_chunks)

    def _encode_frozen(self, texts: list[str]) -> list[dict[str, torch.Tensor]]:
        conds: list[TextCond] = []
        with torch.no_grad():
            # On the CPU one by one: the bits of a result may depend on what is computed beside it, and a run that is
            # resumed after half of its captions were cached must end with the same bytes.
            at_once = 1 if self.models.device.type == "cpu" else ENCODE_AT_ONCE
            for start in range(0, len(texts), at_once):
                conds += self._encode(texts[start : start + at_once])
        return [
            {
                name: value.float().cpu()
                for name, value in (("hidden", c.hidden), ("pooled", c.pooled))
                if value is not None
            }
            for c in conds
        ]

    def _filling(self, conds: list[TextCond]) -> TextCond | None:
        """The empty prompt, with which shorter prompts of a batch are filled up."""
        if len({len(cond.hidden) for cond in conds}) == 1:
            return None
        if self.trained:
            return self._encode([""])[0]
        self.prepare([""])
        return self._cond("")

    def __call__(self, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor | None]:
        if self.trained:
            conds = self._encode(texts)
        else:
            self.prepare(texts)
            conds = [self._cond(text) for text in texts]
        hidden, pooled = stack(conds, self._filling(conds))
        device = self.models.device
        return hidden.to(device, self.dtype), None if pooled is None else pooled.to(device, self.dtype)
