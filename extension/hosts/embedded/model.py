"""The base model that is loaded: its modules, what injects into them, and how it is called."""

from __future__ import annotations

import gc
import re
import threading
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from extension.hosts.embedded.conditioning import Conditioner
from extension.injection import Injection
from trainers.bases.loader import Base, load_base
from trainers.bases.tokenizer import vocabulary
from trainers.bases.vae import decode, encode_moments
from trainers.errors import InputError
from trainers.formats.hashes import file_sha256

_HASH_AT_ONCE = 256 * 1024 * 1024
DEVICES = ("cuda", "xpu", "mps")


def best_device(wanted: str = "auto") -> torch.device:
    """The device of this name; "auto" takes a GPU where there is one.

    Raises InputError.
    """
    if wanted == "auto":
        for kind in DEVICES:
            backend = torch.backends.mps if kind == "mps" else getattr(torch, kind, None)
            if backend is not None and backend.is_available():
                return torch.device(kind)
        return torch.device("cpu")
    try:
        torch.zeros(1, device=wanted)
        return torch.device(wanted)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise InputError(f"device: {wanted!r} cannot be used here; use auto or cpu.") from None


def number_format(device: torch.device) -> torch.dtype:
    """Half precision on a GPU, where it is twice as fast and takes half the memory."""
    return torch.float16 if device.type in ("cuda", "xpu") else torch.float32


class Model:
    """A loaded base.

    Attributes:
        injection: adapters beside its layers.
        conditioner: encodes prompts with it.
        widths: of the token embeddings, by text encoder.
        sha256: of its file, "" until it is known (a large file is read in the background).
    """

    def __init__(self, path: Path, device: torch.device) -> None:
        self.path = path
        self.device = device
        self.reload()
        self.widths = {
            name: part.get_input_embeddings().weight.shape[1] for name, part in self.parts.items() if name != "unet"
        }
        self.sha256 = ""
        if path.is_file():
            self._hash()

    def reload(self) -> None:
        """Has its modules in memory, again where they were freed."""
        # Autoencoders of SD1 and SDXL overflow in half precision.
        self.base: Base = load_base(
            self.path, dtype=number_format(self.device), vae_dtype=torch.float32, device=self.device
        )
        self.injection = Injection(self.family, self.parts)
        self.conditioner = Conditioner(self.base)

    @property
    def in_memory(self) -> bool:
        """Whether its modules are there."""
        return self.base.unet is not None

    def _hash(self) -> None:
        def compute() -> None:
            self.sha256 = file_sha256(self.path)

        if self.path.stat().st_size <= _HASH_AT_ONCE:
            compute()
        else:
            threading.Thread(target=compute, daemon=True).start()

    @property
    def name(self) -> str:
        """The file's name without its ending."""
        return self.path.stem if self.path.is_file() else self.path.name

    @property
    def short_hash(self) -> str:
        """The ten digits by which models are known."""
        return self.sha256[:10]

    @property
    def title(self) -> str:
        """As A1111 lists it: the file's name and the short hash."""
        return f"{self.path.name} [{self.short_hash}]" if self.sha256 else self.path.name

    @property
    def family(self) -> str:
        return self.base.family.name

    @property
    def parts(self) -> dict[str, nn.Module]:
        """Live modules: "unet", "text_encoder", "text_encoder_2"; none while they are freed."""
        if not self.in_memory:
            return {}
        names = [spec.component for spec in self.base.family.text_encoders]
        return {"unet": self.base.unet, **dict(zip(names, self.base.text_encoders, strict=True))}

    @property
    def vocabulary(self) -> Mapping[str, int]:
        return vocabulary()[0]

    @property
    def native_size(self) -> tuple[int, int]:
        """(width, height) it was made for: as its file says, else its family's."""
        stated = re.fullmatch(r"(\d{2,4})x(\d{2,4})", self.base.info.metadata.get("modelspec.resolution", ""))
        if stated and all(int(side) % 8 == 0 for side in stated.groups()):
            return int(stated.group(1)), int(stated.group(2))
        side = self.base.family.resolution_for(self.base.prediction)
        return side, side

    def size_inputs(self, pooled: Tensor | None, width: int, height: int) -> dict[str, Tensor]:
        """SDXL's extra inputs for an uncropped picture of this size; nothing for the other families."""
        if pooled is None:
            return {}
        ids = torch.tensor([[height, width, 0, 0, height, width]], dtype=pooled.dtype, device=pooled.device)
        return {"text_embeds": pooled, "time_ids": ids.expand(len(pooled), -1)}

    def decode(self, latents: Tensor) -> Tensor:
        """Pixels [B, 3, H, W] in -1..1, one picture at a time so that none depends on the others."""
        scale = self.base.family.latent_scale
        return torch.cat([decode(self.base.vae, one[None], scale) for one in latents]).cpu()

    def encode(self, pixels: Tensor) -> Tensor:
        """Scaled latents [B, 4, h, w] of pixels in -1..1: the most likely ones."""
        means = [encode_moments(self.base.vae, one[None])[:, :4] for one in pixels]
        return torch.cat(means) * self.base.family.latent_scale

    def close(self) -> None:
        """Frees its modules."""
        self.injection.detach()
        self.base.unet = self.base.vae = None
        self.base.text_encoders = []
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
