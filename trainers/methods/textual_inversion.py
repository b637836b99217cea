"""Textual Inversion (Gal et al. 2022, arXiv:2208.01618): some vectors that stand for a word, and nothing else.

The word is the name of the result, as in A1111; `concepts` are further words that learn beside it. The encoders' own
token embedding stays as it is: its rows are never part of what the optimizer sees.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trainers.bases.concepts import Concept, ConceptEmbedding, embeddings_of
from trainers.bases.detect import BaseInfo
from trainers.bases.loader import Base
from trainers.errors import InputError
from trainers.formats import pt_files, safetensors_io
from trainers.formats.families import FAMILIES
from trainers.formats.metadata import finish
from trainers.methods.words import nearest_words, sentence, vocabulary_of
from trainers.options import concepts_of
from trainers.rng import generator
from trainers.spec import Job

TENSOR_NAMES = {1: ("emb_params",), 2: ("clip_l", "clip_g")}
"""Names in the file by number of text encoders."""
NEAREST = "athanor.nearest_words"
"""In the file's metadata: the vocabulary's words that each vector is nearest to, as JSON."""
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


def trains_text(job: Job) -> bool:
    """The prompts' encodings change at every step."""
    return True


def count_parameters(info: BaseInfo, job: Job) -> int:
    """Number of values that the job will train."""
    names = [encoder.component for encoder in FAMILIES[info.family].text_encoders]
    key = "text_model.embeddings.token_embedding.weight"
    return len(words_to_teach(job)) * sum(job.vectors * info.components[name].shapes[key][1] for name in names)


def words_to_teach(job: Job) -> dict[str, str]:
    """Each word and what it starts from; the first one is the file's own."""
    own = job.name if job.method == "textual_inversion" else job.trigger or job.name
    return {own: job.initial_text, **concepts_of(job)}


def words_of(base: Base, text: str) -> list[int]:
    """The token numbers of a text, without begin and end."""
    return base.tokenizers[0](text, add_special_tokens=False, truncation=False, verbose=False).input_ids


def initial_vectors(rows: torch.Tensor, tokens: list[int], count: int, draw: torch.Generator) -> torch.Tensor:
    """What training starts from: [count, width] float32.

    With tokens their rows, spread evenly over the vectors as A1111 does; without, a draw with the mean and spread of
    the vocabulary's rows [vocabulary, width].
    """
    rows = rows.detach().float().cpu()
    if tokens:
        return torch.stack([rows[tokens[i * len(tokens) // count]] for i in range(count)])
    noise = torch.randn(count, rows.shape[1], generator=draw)
    return rows.mean(0) + noise * rows.std(0)


@dataclass
class Taught:
    """One word: its place in the prompts, and which rows of the trained matrices are its own."""

    concept: Concept
    rows: slice


class Embeddings:
    """The trained vectors of one run: one matrix per text encoder, in which every word has its rows."""

    trains_unet = False
    trains_text = True

    def __init__(self, base: Base, job: Job) -> None:
        self.base, self.job = base, job
        self.names = TENSOR_NAMES[len(base.text_encoders)]
        first = base.text_encoders[0].get_input_embeddings().num_embeddings
        self.words: dict[str, Taught] = {}
        for number, word in enumerate(words_to_teach(job)):
            rows = slice(number * job.vectors, (number + 1) * job.vectors)
            ids = tuple(range(first + rows.start, first + rows.stop))
            self.words[word] = Taught(Concept(word, tuple(words_of(base, word)), ids), rows)
        self.modules: list[ConceptEmbedding] = []
        self.limits: list[float] = []
        for name, encoder in zip(self.names, base.text_encoders, strict=True):
            place = embeddings_of(encoder)
            rows = place.token_embedding.weight
            module = ConceptEmbedding(place.token_embedding, self._start(name, rows).to(rows.device))
            place.token_embedding = module
            self.modules.append(module)
            self.limits.append(job.norm_limit * float(rows.detach().float().norm(dim=1).mean()))
        self.base.concepts.extend(taught.concept for taught in self.words.values())
        self.constrain()

    def _start(self, name: str, rows: torch.Tensor) -> torch.Tensor:
        """[all vectors, width]: what every word starts from in one encoder."""
        job, parts = self.job, []
        for number, text in enumerate(words_to_teach(job).values()):
            key = (name,) if number == 0 else (name, number)
            draw = generator(job.seed, "initial vectors", *key)
            parts.append(initial_vectors(rows, words_of(self.base, text), job.vectors, draw))
        return torch.cat(parts)

    def param_groups(self) -> list[dict[str, Any]]:
        # Weight decay would pull the vectors towards zero, which is a place in the vocabulary like any other.
        params = [module.vectors for module in self.modules]
        rate = self.job.get("embedding_lr") or self.job.learning_rate
        return [{"name": "embedding", "params": params, "lr": rate, "weight_decay": 0.0}]

    def tensors(self) -> dict[str, torch.Tensor]:
        return {name: module.vectors for name, module in zip(self.names, self.modules, strict=True)}

    @torch.no_grad()
    def constrain(self) -> None:
        """Shortens vectors that grew beyond `norm_limit` times the mean length of the vocabulary's: longer ones drown
        the other words of a prompt."""
        if self.job.norm_limit:
            for module, limit in zip(self.modules, self.limits, strict=True):
                lengths = module.vectors.norm(dim=1, keepdim=True)
                module.vectors.mul_((limit / lengths.clamp_min(1e-12)).clamp_max(1.0))

    @contextmanager
    def without(self) -> Iterator[None]:
        """The words are read as the plain words they are."""
        kept = list(self.base.concepts)
        for taught in self.words.values():
            self.base.concepts.remove(taught.concept)
        try:
            yield
        finally:
            self.base.concepts[:] = kept

    def at_rest(self) -> nullcontext[None]:
        return nullcontext()

    # --- the result

    def vectors_of(self, word: str) -> dict[str, torch.Tensor]:
        """A word's vectors under the names of the file, in its number format."""
        dtype, rows = DTYPES[self.job.save_dtype], self.words[word].rows
        return {name: vectors[rows].detach().cpu().to(dtype).clone() for name, vectors in self.tensors().items()}

    def nearest(self, word: str) -> list[list[str]]:
        """The vocabulary's words that each of a word's vectors is nearest to, by the first text encoder."""
        module, tokens = self.modules[0], vocabulary_of(self.base.tokenizers[0])
        return nearest_words(module.vectors[self.words[word].rows], module.original.weight, tokens)

    def nearest_text(self, word: str) -> str:
        """The same as it stands in a file's metadata."""
        return json.dumps(self.nearest(word), ensure_ascii=False)

    def in_words(self) -> list[str]:
        """What was learned, a sentence for each word."""
        return [sentence(word, self.nearest(word)) for word in self.words]

    def file_of(self, word: str, result: Path) -> Path:
        """Where a word's own file lies: the first word's is the result, the others' beside it under their own names."""
        if word == next(iter(self.words)):
            return result
        tail = result.name[len(self.job.name) :]  # with the step of an intermediate one
        return result.with_name(word + tail)

    def beside(self, result: Path) -> list[Path]:
        """The other words' files."""
        return [self.file_of(word, result) for word in self.words][1:]

    def save(self, path: Path, metadata: dict[str, str]) -> None:
        for word in reversed(self.words):  # the result itself last: once it is there, everything is
            self.save_word(word, self.file_of(word, path), metadata)

    def save_snapshot(self, path: Path, metadata: dict[str, str]) -> None:
        """Write the first word's vectors, for drawing with them meanwhile."""
        word = next(iter(self.words))
        tensors = self.vectors_of(word)
        safetensors_io.save(path, tensors, finish(tensors, {**metadata, "ss_output_name": word}))

    def save_word(self, word: str, path: Path, metadata: dict[str, str]) -> None:
        """Write one word's file, and its .pt file where that is asked for."""
        tensors = self.vectors_of(word)
        own = {
            "ss_output_name": word,
            "modelspec.title": word,
            "modelspec.trigger_phrase": word,
            "modelspec.usage_hint": f"Write {word} in the prompt.",
            NEAREST: self.nearest_text(word),
        }
        if self.job.get("also_pt"):
            ending = path.suffix if path.suffix == ".safetensors" else ""
            pt_files.write(path.with_name(path.name.removesuffix(ending) + ".pt"), self._pt(word, tensors, metadata))
        safetensors_io.save(path, tensors, finish(tensors, {**metadata, **own}))

    def _pt(self, word: str, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> bytes:
        """A1111's layout; of an SDXL embedding the two tensors by name, which it reads as well."""
        if len(tensors) > 1:
            return pt_files.to_bytes(tensors)
        short = metadata.get("ss_new_sd_model_hash", "")[:10] or None
        return pt_files.to_bytes(
            {
                "string_to_token": {"*": 265},
                "string_to_param": {"*": tensors[self.names[0]]},
                "name": word,
                "step": int(metadata["ss_steps"]),
                "sd_checkpoint": short,
                "sd_checkpoint_name": metadata.get("ss_sd_model_name"),
            }
        )

    def start_from(self, path: Path) -> None:
        """Take the vectors of an existing embedding file, and of the other words' files beside it where they are."""
        for word in self.words:
            file = self.file_of(word, path)
            if file == path or file.exists():
                self.take(word, safetensors_io.load(file)[0], file)

    @torch.no_grad()
    def take(self, word: str, tensors: dict[str, torch.Tensor], path: Path) -> None:
        """Put the vectors of a file in the place of a word's."""
        rows = self.words[word].rows
        if len(self.names) == 1 and len(tensors) == 1:
            tensors = {self.names[0]: next(iter(tensors.values()))}
        for name, module in zip(self.names, self.modules, strict=True):
            found, mine = tensors.get(name), module.vectors[rows]
            if found is None or found.shape != mine.shape:
                shape = "nothing" if found is None else f"{found.shape[0]} vectors {found.shape[-1]} wide"
                wanted = f"{mine.shape[0]} vectors {mine.shape[1]} wide"
                raise InputError(f"init_from: {path} has {shape} where this run has {wanted}; set vectors to match.")
            mine.copy_(found.float())


def make_embeddings(base: Base, job: Job) -> Embeddings:
    """Give the loaded base vectors for the job's words.

    Raises:
        InputError: a word that the text encoder cannot read, or two that it reads alike.
    """
    embeddings = Embeddings(base, job)
    read: dict[tuple[int, ...], str] = {}
    for word, taught in embeddings.words.items():
        if not taught.concept.words:
            raise InputError(f"name: {word!r} is no word that the text encoder can read; choose another name.")
        if taught.concept.words in read:
            raise InputError(f"concepts: {word!r} reads as {read[taught.concept.words]!r} does; choose another word.")
        read[taught.concept.words] = word
    return embeddings


def setup(base: Base, job: Job) -> Embeddings:
    """Give the loaded base vectors for the job's words."""
    embeddings = make_embeddings(base, job)
    if job.init_from:
        embeddings.start_from(Path(job.init_from))
    return embeddings
