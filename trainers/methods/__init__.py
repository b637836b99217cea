"""What can be trained. A method is one file and one line in `METHODS`; the loop, data, losses, resume, previews,
validation and events serve all of them unchanged."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import torch

from trainers.bases.detect import BaseInfo
from trainers.spec import Job

METHODS = {
    name: f"trainers.methods.{name}"
    for name in ("lora", "textual_inversion", "dreambooth", "hypernetwork", "aesthetic_gradient", "pivotal")
}


class Trainable(Protocol):
    """What a method has made ready for the loop: parameters beside the frozen base, and how they become a file."""

    trains_unet: bool
    trains_text: bool

    def param_groups(self) -> list[dict[str, Any]]:
        """Groups for the optimizer: `params`, `lr`, and `name` for the log. The order never changes."""

    def tensors(self) -> dict[str, torch.Tensor]:
        """The trained tensors by name, live (not copies)."""

    def without(self) -> AbstractContextManager[None]:
        """The model as it was before training, for as long as the context lasts."""

    def at_rest(self) -> AbstractContextManager[None]:
        """Without dropout, for as long as the context lasts: how the result is measured and drawn with."""

    def constrain(self) -> None:
        """Called after every step, to keep what is trained within bounds."""

    def save(self, path: Path, metadata: dict[str, str]) -> None:
        """Write the result, whole or not at all."""


def trains_text(job: Job) -> bool:
    """Whether prompts are encoded anew at every step, because something in the text encoders is trained."""
    return importlib.import_module(METHODS[job.method]).trains_text(job)


def count_parameters(info: BaseInfo, job: Job) -> int:
    """Number of values that the job will train, from the base's header."""
    return importlib.import_module(METHODS[job.method]).count_parameters(info, job)


def setup_for(method: str) -> Callable[[Any, Job], Trainable]:
    """The function that puts the method's parameters into a loaded base."""
    return importlib.import_module(METHODS[method]).setup


def one_pass(method: str) -> Any:
    """The module of a method of `trainers.options.ONE_PASS`: `facts(job)` and `run(job, result, report, say)`."""
    return importlib.import_module(METHODS[method])
