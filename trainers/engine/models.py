"""The parts of the base, each loaded when it is first needed and dropped when it no longer is.

With warm caches neither the autoencoder nor a frozen text encoder is ever loaded, so a run starts at once.
"""

from __future__ import annotations

import gc
import hashlib

import torch

from trainers.bases.canonical import Component
from trainers.bases.detect import BaseInfo, inspect_vae
from trainers.bases.live import LiveBase
from trainers.bases.loader import Base, load_base
from trainers.bases.vae import NonFiniteLatents, decode, encode_moments, psnr
from trainers.checks.running import round_trip
from trainers.engine.attached import compute_over
from trainers.spec import Job

ROUND_TRIPS = 2
"""Pictures that are drawn back from their latents, to see that the autoencoder can."""


class Models:
    """`base` holds what is loaded now; parts come through `need_…`.

    Args:
        dtype: the format to load in.
        live: a WebUI's tensors, used in place of the file's as they are.
    """

    def __init__(
        self, info: BaseInfo, job: Job, device: torch.device, dtype: torch.dtype, live: LiveBase | None = None
    ) -> None:
        self.info, self.job, self.device, self.dtype, self.live = info, job, device, dtype, live
        self.notes: list[str] = []
        self.base: Base = self._load(())
        self._vae_dtype = self._first_vae_dtype()
        self._round_trips = 0
        self._bad_round_trip = ""

    def _first_vae_dtype(self) -> torch.dtype:
        """SDXL's autoencoder overflows in float16: where the WebUI keeps it so, pictures are encoded in a copy."""
        if self.info.family == "sdxl" and self.live is not None and self.live.has_vae_for(self.job.vae):
            return torch.float32
        return self.dtype

    def _load(self, parts: tuple[str, ...], dtype: torch.dtype | None = None) -> Base:
        from_host = self.live is not None and ("vae" not in parts or self.live.has_vae_for(self.job.vae))
        loaded = load_base(
            self.info.path,
            prediction=self.job.prediction,
            vae=None if from_host else self.job.vae,
            dtype=None if from_host else dtype or self.dtype,
            vae_dtype=dtype,
            device=self.device,
            parts=parts,
            info=self.live.info if from_host else self.info,
        )
        if from_host:
            for module in filter(None, [loaded.unet, *loaded.text_encoders]):
                compute_over(module, self.dtype)
        return loaded

    def need_unet(self) -> torch.nn.Module:
        if self.base.unet is None:
            self.base.unet = self._load(("unet",)).unet
            self.base.unet.requires_grad_(False)
        return self.base.unet

    def need_text(self) -> Base:
        if not self.base.text_encoders:
            loaded = self._load(("text",))
            self.base.text_encoders, self.base.tokenizers = loaded.text_encoders, loaded.tokenizers
            for encoder in self.base.text_encoders:
                encoder.requires_grad_(False)
        return self.base

    def need_vae(self) -> torch.nn.Module:
        if self.base.vae is None:
            self.base.vae = self._load(("vae",), self._vae_dtype).vae
            self.base.vae.requires_grad_(False)
        return self.base.vae.to(self.device)

    def encode_moments(self, pixels: torch.Tensor) -> torch.Tensor:
        """Moments [B, 8, h, w] of pixels [B, 3, H, W]; an autoencoder that overflows goes on in fp32, and says so.

        On the CPU one by one, so that no picture's bits depend on which others had to be encoded beside it.
        """
        if self.device.type == "cpu" and len(pixels) > 1:
            return torch.cat([self.encode_moments(each[None]) for each in pixels])
        try:
            moments = encode_moments(self.need_vae(), pixels)
        except NonFiniteLatents:
            if self._vae_dtype == torch.float32:
                raise
            self.notes.append("The autoencoder overflows in half precision; it runs in fp32 instead.")
            return self._encode_in_fp32(pixels)
        if self._round_trips < ROUND_TRIPS and not self._is_good(pixels, moments):
            return self._encode_in_fp32(pixels)
        return moments

    def _encode_in_fp32(self, pixels: torch.Tensor) -> torch.Tensor:
        self._vae_dtype = torch.float32
        self.base.vae = None
        return encode_moments(self.need_vae(), pixels)

    def _is_good(self, pixels: torch.Tensor, moments: torch.Tensor) -> bool:
        """Draws the first picture back from its latent; False where that is bad and more precision may help."""
        self._round_trips += 1
        decibels = psnr(decode(self.need_vae(), moments[:1].chunk(2, dim=1)[0], 1.0), pixels[:1])
        finding = round_trip(decibels, "fp32" if self._vae_dtype == torch.float32 else "half precision")
        if finding is None:
            return True
        if self._bad_round_trip in self.notes:  # of the first picture, or of less precision: said once
            self.notes.remove(self._bad_round_trip)
        self._bad_round_trip = f"{finding.text} {finding.what_to_do}".strip()
        self.notes.append(self._bad_round_trip)
        return self._vae_dtype == torch.float32

    def park_vae(self) -> None:
        """Out of the device's memory; back when pictures are drawn."""
        if self.live is not None:
            self.drop_vae()  # it is mapped again in no time
        elif self.base.vae is not None and self.device.type != "cpu":
            self.base.vae.to("cpu")
            self._collect()

    def drop_vae(self) -> None:
        self.base.vae = None
        self._collect()

    def drop_text(self) -> None:
        self.base.text_encoders = []
        self._collect()

    def vae_fingerprint(self) -> str:
        """What the latents depend on beside the picture: the autoencoder's weights and number format."""
        component = inspect_vae(self.job.vae) if self.job.vae else self.info.components.get("vae")
        if component is None:
            return "no autoencoder"
        return weights_fingerprint(component, f"{self.info.family} {self._vae_dtype} {self.device.type}")

    def text_fingerprint(self, settings: str) -> str:
        """What the embeddings depend on beside the caption: the encoders' weights and how they are read."""
        names = [encoder.component for encoder in self.base.family.text_encoders]
        prints = [weights_fingerprint(self.info.components[name], settings) for name in names]
        return hashlib.sha256(f"{prints} {self.dtype} {self.device.type}".encode()).hexdigest()[:24]

    def _collect(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def weights_fingerprint(component: Component, salt: str) -> str:
    """A key for caches: a hash over a component's names, shapes and every tensor's bytes, as they are stored."""
    digest = hashlib.sha256(salt.encode())
    stored = component.source.load({piece.stored for piece in component.pieces.values()}.__contains__)
    for name in sorted(stored):
        tensor = stored[name].contiguous()
        digest.update(f"{name}\0{tuple(tensor.shape)}\0{tensor.dtype}".encode())
        if tensor.numel():
            digest.update(memoryview(tensor.reshape(-1).view(torch.uint8).numpy()))
    return digest.hexdigest()[:24]
