"""The embedded host as the rest of the extension sees a host."""

from __future__ import annotations

from typing import Any

import torch

from extension.hosts.base import Folders, LoadedModel
from extension.hosts.embedded.engine import Studio


class EmbeddedHost:
    """Our own WebUI; it reads tags itself, so there are no callbacks to put in place."""

    name = "embedded"

    def __init__(self, studio: Studio) -> None:
        self.studio = studio

    def folders(self) -> Folders:
        """Where its files are."""
        return self.studio.places.folders()

    def model(self) -> LoadedModel | None:
        """The model that is loaded."""
        model = self.studio.model
        return LoadedModel(
            family=model.family,
            parts=model.parts,
            checkpoint=model.path,
            widths=model.widths,
            vocabulary=model.vocabulary,
            tokenizer=model.base.tokenizers[0],
            prediction=model.base.prediction,
        )

    def device(self) -> torch.device:
        """What it draws on."""
        return self.studio.device

    def shipped_tokenizer(self) -> Any:
        """Nothing: a model is always loaded."""
        return None

    def option(self, key: str, default: Any) -> Any:
        """A setting of ours, as the person left it."""
        return self.studio.option(key, default)

    def register(self) -> type | None:
        """Nothing has to be put in place."""
        return None
