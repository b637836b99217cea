"""Pivotal tuning (Roich et al. 2021, arXiv:2106.05744, as trainers of LoRA use it): a word's vectors and a LoRA learn
together, the vectors finding where the model already draws something like it, the LoRA teaching the rest.

In one file the vectors lie beside the LoRA's layers as `bundle_emb.<word>.<tensor>`, which A1111 and our tags read.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from trainers.bases.detect import BaseInfo
from trainers.bases.loader import Base
from trainers.formats import safetensors_io
from trainers.methods import lora, textual_inversion
from trainers.methods.lora import LoraTrainable
from trainers.methods.lycoris_kinds import KindTrainable
from trainers.methods.textual_inversion import NEAREST, Embeddings
from trainers.spec import Job

BUNDLE = "bundle_emb"


def trains_text(job: Job) -> bool:
    """The prompts' encodings change at every step."""
    return True


def count_parameters(info: BaseInfo, job: Job) -> int:
    """Number of values that the job will train, from the base's header."""
    return lora.count_parameters(info, job) + textual_inversion.count_parameters(info, job)


class Pivotal:
    """The adapter and the word of one run."""

    trains_text = True

    def __init__(self, adapter: LoraTrainable | KindTrainable, words: Embeddings, job: Job) -> None:
        self.adapter, self.words, self.job = adapter, words, job
        self.trains_unet = adapter.trains_unet
        self.word = next(iter(words.words))

    def param_groups(self) -> list[dict[str, Any]]:
        return [*self.adapter.param_groups(), *self.words.param_groups()]

    def tensors(self) -> dict[str, torch.Tensor]:
        named = {f"{BUNDLE}.{name}": tensor for name, tensor in self.words.tensors().items()}
        return {**self.adapter.tensors(), **named}

    @contextmanager
    def _both(self, name: str) -> Iterator[None]:
        with ExitStack() as stack:
            for part in (self.adapter, self.words):
                stack.enter_context(getattr(part, name)())
            yield

    def without(self) -> Any:
        return self._both("without")

    def at_rest(self) -> Any:
        return self._both("at_rest")

    def scaled(self, weight: float) -> Any:
        """At another strength than 1, as `<lora:NAME:weight>` draws; the word stays what it is."""
        return self.adapter.scaled(weight)

    def constrain(self) -> None:
        self.adapter.constrain()
        self.words.constrain()

    def in_words(self) -> list[str]:
        """What the word learned, by the vocabulary's nearest words."""
        return self.words.in_words()

    def _word_file(self, path: Path) -> Path:
        """The word's own file beside the LoRA's, with the same step in its name where there is one."""
        tail = path.name.removesuffix(".safetensors")[len(self.job.name) :]
        return path.with_name(f"{self.word}{tail}.safetensors")

    def beside(self, result: Path) -> list[Path]:
        """The word's own file, where there is one."""
        return [] if self.job.bundle else [self._word_file(result)]

    def save(self, path: Path, metadata: dict[str, str]) -> None:
        if self.job.bundle:
            self.save_kohya(path, metadata)
            return
        about = {**metadata, "modelspec.architecture": _as_embedding(metadata["modelspec.architecture"])}
        self.words.save_word(self.word, self._word_file(path), about)
        self.adapter.save(path, metadata)

    def save_kohya(self, path: Path, metadata: dict[str, str]) -> None:
        """Write everything as one file under the names that every WebUI reads."""
        vectors = {f"{BUNDLE}.{self.word}.{name}": v for name, v in self.words.vectors_of(self.word).items()}
        said = self.words.nearest_text(self.word)
        self.adapter.save_kohya(path, {**metadata, NEAREST: said}, vectors)

    save_snapshot = save_kohya

    def start_from(self, path: Path) -> None:
        """Take the weights of an existing LoRA, and the word's vectors from it or from the file beside it."""
        self.adapter.start_from(path)
        if path.is_dir():
            return
        start = f"{BUNDLE}.{self.word}."
        held = safetensors_io.load(path, wanted=lambda name: name.startswith(start))[0]
        beside = self._word_file(path)
        if held:
            self.words.take(self.word, {name.removeprefix(start): v for name, v in held.items()}, path)
        elif path.name.startswith(self.job.name) and beside.exists():
            self.words.take(self.word, safetensors_io.load(beside)[0], beside)


def _as_embedding(architecture: str) -> str:
    return architecture.removesuffix("/lora") + "/textual-inversion"


def setup(base: Base, job: Job) -> Pivotal:
    """Put an adapter and a word into the loaded base."""
    # The adapter first: PEFT freezes everything that is not its own.
    adapter = lora.setup(base, job.replace(init_from=None))
    trainable = Pivotal(adapter, textual_inversion.make_embeddings(base, job), job)
    if job.init_from:
        trainable.start_from(Path(job.init_from))
    return trainable
