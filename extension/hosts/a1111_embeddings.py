"""Our embedding store feeds AUTOMATIC1111's: new and changed files are seen at once, in every form we can read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any

from modules import devices, processing, sd_hijack, shared
from modules.textual_inversion import textual_inversion

from extension.hosts.base import LoadedModel
from extension.injection import Adapter
from extension.injection.embeddings import Embedding, EmbeddingStore, bundled_embeddings, shadowed_word
from extension.wanted import without_folders
from trainers.errors import InputError
from trainers.formats.hashes import file_sha256

_SLOTS = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}


def database() -> Any:
    """The host's own store."""
    return sd_hijack.model_hijack.embedding_db


def forget_encoded_prompts(p: Any = None) -> None:
    """Empties the host's memory of encoded prompts, which knows nothing of files that changed."""
    first, second = processing.StableDiffusionProcessing, processing.StableDiffusionProcessingTxt2Img
    names = ("cached_c", "cached_uc", "cached_hr_c", "cached_hr_uc")
    for holder in (first, second, p):
        for name in names:
            memory = getattr(holder, name, None)
            if isinstance(memory, list):
                memory[:] = [None, None]  # processing objects hold the same lists


def reload_changed(p: Any, changed: bool) -> None:
    """Has the host read its folders again when a file is new or another than before."""
    if changed and not getattr(p, "do_not_reload_embeddings", False) and shared.sd_model is not None:
        database().load_textual_inversion_embeddings(force_reload=True)
        forget_encoded_prompts(p)


def add_missing(store: EmbeddingStore, model: LoadedModel) -> None:
    """Registers the embeddings that the host could not read and we can."""
    known = database().word_embeddings
    for item in store.all():
        if item.name not in known and item.problem(model.widths) is None:
            database().register_embedding(host_embedding(item), shared.sd_model)


def host_embedding(item: Embedding, shorthash: Any = None) -> Any:
    """The host's object for one of ours.

    Args:
        shorthash: what to write to `TI hashes`; by default that of the file.
    """
    vectors = {name: value.to(devices.device) for name, value in item.vectors.items()}
    single = len(vectors) == 1
    content = vectors["text_encoder"] if single else {_SLOTS[name]: value for name, value in vectors.items()}
    made = textual_inversion.Embedding(content, item.name, item.step)
    made.vectors = item.count
    made.shape = sum(value.shape[1] for value in vectors.values())
    made.sd_checkpoint_name = item.checkpoint
    made.filename = str(item.source) if item.source else None
    if shorthash is not None:
        made.shorthash = shorthash
    elif item.source is not None:
        with suppress(OSError):  # a run in progress takes its snapshot away when a newer one is there
            made.set_hash(file_sha256(item.source))
    return made


class Bundled:
    """Embeddings that came inside adapters' files, or that runs in progress have got, known to the host as long as the
    tags act."""

    def __init__(self) -> None:
        self._registered: dict[str, tuple[Any, Any]] = {}  # by name: ours, and what had the name before

    def add(
        self, adapters: Iterable[tuple[str, Adapter]], model: LoadedModel, shown: Iterable[Embedding] = ()
    ) -> list[str]:
        """Registers those of `(name as typed, adapter)`, and `shown` in the place of what has their names; returns
        sentences about those that do not fit."""
        reports = []
        for item in shown:
            problem = item.problem(model.widths)
            if problem is not None:
                reports.append(problem)
            else:
                self._register(item.name, host_embedding(item))
        for name, adapter in adapters:
            try:
                items = bundled_embeddings(adapter)
            except InputError as problem:
                reports.append(without_folders(problem, [adapter.path]))
                continue
            for item in items:
                problem = item.problem(model.widths)
                if problem is not None:
                    reports.append(problem)
                elif item.name not in database().word_embeddings:
                    typed = name if getattr(shared.opts, "lora_bundled_ti_to_infotext", True) else ""
                    self._register(item.name, host_embedding(item, shorthash=typed))
        return reports

    def _register(self, name: str, made: Any) -> None:
        former = self._registered.get(name, (None, database().word_embeddings.get(name)))[1]
        self._registered[name] = database().register_embedding(made, shared.sd_model), former

    def remove(self) -> None:
        """Takes them out again, unless the host has put others in their place."""
        for name, (made, former) in self._registered.items():
            if database().word_embeddings.get(name) is made and shared.sd_model is not None:
                database().register_embedding_by_name(former, shared.sd_model, name)
        self._registered = {}


def problems_of_named(texts: Iterable[str], store: EmbeddingStore, model: LoadedModel) -> list[str]:
    """What is wrong with the embeddings that these prompts seem to name."""
    joined = "\n".join(texts).lower()
    lines = []
    for name, sentence in _problems(store, model.widths, model.vocabulary):
        if re.search(rf"(?<!\w){re.escape(name.lower())}(?!\w)", joined):
            lines.append(sentence)
    return lines


def _problems(store: EmbeddingStore, widths: Mapping[str, int], vocabulary: Any) -> Iterator[tuple[str, str]]:
    for path, sentence in store.problems.items():
        yield path.stem, without_folders(sentence, store.problems)
    for item in store.all():
        problem = item.problem(widths)
        if problem is not None:
            yield item.name, problem
        elif shadowed_word(item.name, vocabulary):
            yield item.name, f'The embedding "{item.name}" takes the place of the word; rename {item.source.name}.'
