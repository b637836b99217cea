"""Our embeddings in the stores of Forge's text engines, which read their folder only when a model is loaded."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterable
from typing import Any

from extension.hosts.base import LoadedModel
from extension.hosts.forge import text_engines
from extension.injection.embeddings import Embedding

_SLOTS = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}


def forget_encoded_prompts(p: Any = None) -> None:
    """Empties Forge's memory of encoded prompts, which knows nothing of files that changed."""
    from modules import processing

    first, second = processing.StableDiffusionProcessing, processing.StableDiffusionProcessingTxt2Img
    for holder in (first, second, p):
        for name in ("cached_c", "cached_uc", "cached_hr_c", "cached_hr_uc"):
            memory = getattr(holder, name, None)
            if isinstance(memory, list):
                memory[:] = [None] * max(len(memory), 3)  # processing objects hold the same lists


def host_embedding(item: Embedding, store: Any) -> Any:
    """Forge's object for one of ours."""
    made = sys.modules[type(store).__module__].Embedding(_content(item), item.name, item.step)
    made.vectors = item.count
    made.shape = sum(value.shape[1] for value in item.vectors.values())
    made.sd_checkpoint_name = item.checkpoint
    made.filename = str(item.source) if item.source else None
    return made


def _content(item: Embedding) -> Any:
    if len(item.vectors) == 1:
        return item.vectors["text_encoder"]
    return {_SLOTS[name]: value for name, value in item.vectors.items()}


Registered = tuple[Any, str, Any, Any]
"""A store, a name, what was registered under it, and what had the name before."""


def add_to_stores(
    engine: Any, family: str, items: Iterable[Embedding], shown: Iterable[Embedding] = ()
) -> list[Registered]:
    """Registers embeddings with a model's text engines, unless the name is taken, and `shown` in the place of what has
    their names; returns what was registered where."""
    made: list[Registered] = []
    for text in text_engines(engine, family).values():
        store = text.embeddings
        for item in [*shown, *(item for item in items if item.name not in store.word_embeddings)]:
            former = store.word_embeddings.get(item.name)
            made.append((store, item.name, store.register_embedding(host_embedding(item, store)), former))
    return made


def remove_from_stores(registered: Iterable[Registered]) -> None:
    """Takes out what `add_to_stores` put in, unless something else has its name by now."""
    for store, name, made, former in reversed(list(registered)):
        if store.word_embeddings.get(name) is made:
            store.register_embedding_by_name(former, name)


class FedStores:
    """Which embeddings of ours the stores of one loaded model hold."""

    def __init__(self) -> None:
        self._engine: Any = lambda: None
        self._held: list[tuple[str, Any]] = []

    def feed(self, engine: Any, model: LoadedModel, items: Iterable[Embedding]) -> bool:
        """Makes these the embeddings of ours in the model's stores; True when something changed.

        They replace what Forge read from the same files when it loaded the model; files that are gone leave.
        """
        fitting = [item for item in items if item.problem(model.widths) is None]
        wanted = [(item.name, item.stamp) for item in fitting]
        if self._engine() is engine and wanted == self._held:
            return False
        gone = {name for name, _ in self._held} - {name for name, _ in wanted}
        for text in text_engines(engine, model.family).values():
            for name in gone & text.embeddings.word_embeddings.keys():
                text.embeddings.register_embedding_by_name(None, name)
            for item in fitting:
                text.embeddings.register_embedding(host_embedding(item, text.embeddings))
        self._engine, self._held = weakref.ref(engine), wanted
        return True
