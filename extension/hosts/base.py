"""What the rest of the extension may ask of a host, whichever it is."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn


@dataclass(frozen=True)
class Folders:
    """Where a host keeps files.

    Attributes:
        adapters, embeddings, masks: folders that are searched, the first one is written to.
        data: the host's data folder; runs are kept below it.
        hypernetworks, aesthetics: as adapters; a CLIP model's folder may lie beside the aesthetic gradients.
    """

    adapters: Sequence[Path]
    embeddings: Sequence[Path]
    masks: Sequence[Path]
    data: Path
    hypernetworks: Sequence[Path] = ()
    aesthetics: Sequence[Path] = ()


@dataclass(frozen=True)
class LoadedModel:
    """The model that is loaded now.

    Attributes:
        family: "sd1", "sd2" or "sdxl"; None for one that we cannot inject into.
        parts: live modules: "unet", "text_encoder", "text_encoder_2".
        checkpoint: its file, None where the host does not say.
        widths: width of the token embeddings by text encoder.
        vocabulary: CLIP's words, to notice an embedding that takes a word's place.
        tokenizer: the first text encoder's, as transformers or open_clip have it; None where it is not known.
        prediction: "epsilon" or "v"; empty where the host does not say.
        vae: the autoencoder file that the host draws with instead of the model's own; empty for its own.
    """

    family: str | None
    parts: Mapping[str, nn.Module]
    checkpoint: Path | None = None
    widths: Mapping[str, int] = field(default_factory=dict)
    vocabulary: Container[str] = ()
    tokenizer: Any = None
    prediction: str = ""
    vae: str = ""


class Host(Protocol):
    """A WebUI."""

    name: str

    def folders(self) -> Folders:
        """Where its files are."""

    def model(self) -> LoadedModel | None:
        """The model that is loaded, None while there is none."""

    def device(self) -> torch.device | None:
        """What it draws on, as the person chose it (`--device-id 1`); None where it does not say."""

    def shipped_tokenizer(self) -> Any:
        """CLIP's tokenizer, as a host has it while no model is loaded; None where it has none then."""

    def option(self, key: str, default: Any) -> Any:
        """A setting of ours, as the person left it."""

    def register(self) -> type | None:
        """Puts our callbacks in place; called once for each load of the scripts.

        Returns:
            The class that the host makes its script objects from, None where it needs none.
        """
