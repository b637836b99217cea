"""Textual Inversion (Gal et al. 2022, arXiv:2208.01618): some vectors that stand for a word, and nothing else.

The word is the name of the result, as in A1111. The encoders' own token embedding stays as it is: its rows are never
part of what the optimizer sees.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from trainers.bases.concepts import Concept, ConceptEmbedding, embeddings_of
from trainers.bases.detect import BaseInfo
from trainers.bases.loader import Base
from trainers.errors import InputError
from trainers.formats import safetensors_io
from trainers.formats.families import FAMILIES
from trainers.formats.metadata import finish
from trainers.rng import generator
from trainers.spec import Job

TENSOR_NAMES = {1: ("emb_params",), 2: ("clip_l", "clip_g")}
"""Names in the file by number of text encoders."""
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


def trains_text(job: Job) -> bool:
    """The prompts' encodings change at every step."""
    return True


def count_parameters(info: BaseInfo, job: Job) -> int:
    """Number of values that the job will train."""
    names = [encoder.component for encoder in FAMILIES[info.family].text_encoders]
    key = "text_model.embeddings.token_embedding.weight"
    return sum(job.vectors * info.components[name].shapes[key][1] for name in names)


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


class Embeddings:
    """The trained vectors of one run, one matrix per text encoder."""

    trains_unet = False
    trains_text = True

    def __init__(self, base: Base, job: Job) -> None:
        self.base, self.job = base, job
        first = base.text_encoders[0].get_input_embeddings().num_embeddings
        self.concept = Concept(job.name, tuple(words_of(base, job.name)), tuple(range(first, first + job.vectors)))
        tokens = words_of(base, job.initial_text)
        self.names = TENSOR_NAMES[len(base.text_encoders)]
        self.modules: list[ConceptEmbedding] = []
        self.limits: list[float] = []
        for name, encoder in zip(self.names, base.text_encoders, strict=True):
            place = embeddings_of(encoder)
            rows = place.token_embedding.weight
            start = initial_vectors(rows, tokens, job.vectors, generator(job.seed, "initial vectors", name))
            module = ConceptEmbedding(place.token_embedding, start.to(rows.device))
            place.token_embedding = module
            self.modules.append(module)
            self.limits.append(job.norm_limit * float(rows.detach().float().norm(dim=1).mean()))
        base.concepts.append(self.concept)
        self.constrain()

    def param_groups(self) -> list[dict[str, Any]]:
        # Weight decay would pull the vectors towards zero, which is a place in the vocabulary like any other.
        params = [module.vectors for module in self.modules]
        return [{"name": "embedding", "params": params, "lr": self.job.learning_rate, "weight_decay": 0.0}]

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
        """The word is read as the plain word it is."""
        self.base.concepts.remove(self.concept)
        try:
            yield
        finally:
            self.base.concepts.append(self.concept)

    def at_rest(self) -> nullcontext[None]:
        return nullcontext()

    def save(self, path: Path, metadata: dict[str, str]) -> None:
        dtype = DTYPES[self.job.save_dtype]
        tensors = {name: vectors.detach().cpu().to(dtype) for name, vectors in self.tensors().items()}
        safetensors_io.save(path, tensors, finish(tensors, metadata))

    def start_from(self, path: Path) -> None:
        """Take the vectors of an existing embedding file."""
        tensors, _ = safetensors_io.load(path)
        if len(self.names) == 1 and len(tensors) == 1:
            tensors = {self.names[0]: next(iter(tensors.values()))}
        for name, module in zip(self.names, self.modules, strict=True):
            found = tensors.get(name)
            if found is None or found.shape != module.vectors.shape:
                shape = "nothing" if found is None else f"{found.shape[0]} vectors {found.shape[-1]} wide"
                wanted = f"{module.vectors.shape[0]} vectors {module.vectors.shape[1]} wide"
                raise InputError(f"init_from: {path} has {shape} where this run has {wanted}; set vectors to match.")
            with torch.no_grad():
                module.vectors.copy_(found.float())


def setup(base: Base, job: Job) -> Embeddings:
    """Give the loaded base vectors for the job's word."""
    embeddings = Embeddings(base, job)
    if not embeddings.concept.words:
        raise InputError(f"name: {job.name!r} is no word that the text encoder can read; choose another name.")
    if job.init_from:
        embeddings.start_from(Path(job.init_from))
    return embeddings
