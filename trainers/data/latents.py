"""Prepared pictures: each picture's cuts, brought to their bucket, encoded once and kept."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from trainers.buckets import Placement, Size
from trainers.data.cache import Entries, digest
from trainers.data.images import UnreadablePicture, load_picture, read_bytes
from trainers.data.masks import mask_from_file, to_latent_size
from trainers.data.picture import Picture
from trainers.errors import InputError
from trainers.rng import python_random

RANDOM_CROPS = 4
MEMORY_LIMIT = 256 << 20
Encode = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Cut:
    """One way a picture is shown: `bucket` cut at `offset` (left, top) out of the picture resized to `resized`."""

    bucket: Size
    resized: Size
    offset: Size
    flip: bool

    def time_ids(self, original: Size) -> tuple[int, int, int, int, int, int]:
        """SDXL's size conditioning: original height, width; top, left of the cut; target height, width.

        As in diffusers' SDXL training: the cut's corner is counted in the resized picture, mirrored where it is.
        """
        left = self.resized[0] - self.bucket[0] - self.offset[0] if self.flip else self.offset[0]
        return original[1], original[0], self.offset[1], left, self.bucket[1], self.bucket[0]

    def key(self, picture: Picture) -> str:
        """Name of the cache entry: it changes with the picture, its mask and everything done to them."""
        masks = picture.options.masks
        mask = "none" if masks == "none" else f"{masks} {picture.mask_sha256}"
        return digest(picture.sha256, mask, self.bucket, self.resized, self.offset, self.flip)


def centre_cut(placement: Placement) -> Cut:
    return Cut(placement.bucket, placement.resized, placement.centre, False)


def cuts_of(picture: Picture, placement: Placement, seed: int) -> list[Cut]:
    """All cuts of a picture: up to `RANDOM_CROPS` places with crop "random", each mirrored too with flip."""
    right, down = placement.slack
    offsets = [placement.centre]
    if picture.options.crop == "random" and (right or down):
        draw = python_random(seed, "crop", picture.key)
        offsets = [(draw.randint(0, right), draw.randint(0, down)) for _ in range(RANDOM_CROPS)]
        offsets = list(dict.fromkeys(offsets))
    flips = (False, True) if picture.options.flip else (False,)
    return [Cut(placement.bucket, placement.resized, offset, flip) for offset in offsets for flip in flips]


def render(picture: Picture, cut: Cut, factor: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(pixels [3, H, W] in [-1, 1], mask [1, H / factor, W / factor] or None)."""
    rgb, alpha = load_picture(picture.path)
    pixels = np.asarray(_cut_out(rgb, cut, Image.Resampling.LANCZOS), dtype=np.float32)
    mask = _mask(picture, rgb.size, alpha)
    cells = None if mask is None else to_latent_size(_cut_out(mask, cut, Image.Resampling.BILINEAR), factor)
    return torch.from_numpy(pixels / 127.5 - 1.0).permute(2, 0, 1).contiguous(), cells


def _mask(picture: Picture, size: Size, alpha: Image.Image | None) -> Image.Image | None:
    wanted = picture.options.masks
    if wanted in ("files", "auto") and picture.mask_path is not None:
        return mask_from_file(read_bytes(picture.mask_path), size)
    return alpha if wanted in ("alpha", "auto") else None


def _cut_out(image: Image.Image, cut: Cut, resample: Image.Resampling) -> Image.Image:
    if image.size != cut.resized:
        image = image.resize(cut.resized, resample)
    left, top = cut.offset
    image = image.crop((left, top, left + cut.bucket[0], top + cut.bucket[1]))
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if cut.flip else image


class LatentStore:
    """Moments (mean, log variance) and masks of cuts: from memory up to a bound, from the cache folder beyond."""

    def __init__(self, entries: Entries, factor: int, memory_limit: int = MEMORY_LIMIT) -> None:
        self._entries, self.factor, self._limit = entries, factor, memory_limit
        self._held: dict[str, dict[str, torch.Tensor]] = {}
        # One block for all that is held: many small ones made between the autoencoder's large ones would keep the
        # memory between them from being used again.
        self._block, self._used = torch.empty(0), 0

    def ensure(
        self,
        wanted: Iterable[tuple[Picture, Cut]],
        encode: Encode,
        batch_size: int,
        report: Callable[[int, int, str], None] | None,
    ) -> int:
        """Make what is missing or damaged; returns how many were encoded."""
        cuts = {cut.key(picture): (picture, cut) for picture, cut in wanted}
        self._make_room(cut for _, cut in cuts.values())
        known = self._entries.known()
        missing = {key: pair for key, pair in cuts.items() if not self._is_there(key, pair[1], known)}
        done = 0
        for keys, pixels, masks in self._rendered(missing, list(_same_size_batches(missing, batch_size))):
            with torch.no_grad():
                moments = encode(pixels).detach().float().cpu()
            for key, moment, mask in zip(keys, moments, masks, strict=True):
                if not torch.isfinite(moment).all():
                    raise InputError(
                        f"{missing[key][0].path}: the autoencoder makes values of this picture that are not finite."
                    )
                self._entries.write(key, {"moments": moment} if mask is None else {"moments": moment, "mask": mask})
            done += len(keys)
            if report:
                report(done, len(missing), "pictures prepared")
        for key in missing:
            self._hold(key, self._entries.read(key) or {})
        return done

    def read(self, picture: Picture, cut: Cut) -> dict[str, torch.Tensor]:
        """{"moments": [2 C, h, w], "mask": [1, h, w] where there is one}; float32."""
        key = cut.key(picture)
        tensors = self._held.get(key) or self._entries.read(key)
        if tensors is None:
            self._entries.path(key).unlink(missing_ok=True)
            raise InputError(
                f"The prepared version of {picture.path} was damaged or removed; resume the run and it is made again."
            )
        return tensors

    def _cells(self, cut: Cut) -> int:
        return (cut.bucket[0] // self.factor) * (cut.bucket[1] // self.factor)

    def _make_room(self, cuts: Iterable[Cut]) -> None:
        numbers = sum(9 * self._cells(cut) for cut in cuts)  # eight channels of moments and a mask
        self._block, self._used, self._held = torch.empty(min(numbers, self._limit // 4)), 0, {}

    def _hold(self, key: str, tensors: dict[str, torch.Tensor]) -> None:
        if self._used + sum(tensor.numel() for tensor in tensors.values()) > self._block.numel():
            return
        kept = {}
        for name, tensor in tensors.items():
            place = self._block[self._used : self._used + tensor.numel()].view(tensor.shape)
            kept[name] = place.copy_(tensor)
            self._used += tensor.numel()
        self._held[key] = kept

    def _is_there(self, key: str, cut: Cut, known: dict[str, int]) -> bool:
        """By the file's size alone for a large data set; by its whole content as long as that fits into memory."""
        cells = self._cells(cut)
        if known.get(key, 0) < 8 * cells * 4:
            return False
        if self._used + 9 * cells > self._block.numel():
            return True
        tensors = self._entries.read(key)
        if tensors is None or "moments" not in tensors:
            return False
        self._hold(key, tensors)
        return True

    def _rendered(
        self, missing: dict[str, tuple[Picture, Cut]], batches: list[list[str]]
    ) -> Iterator[tuple[list[str], torch.Tensor, list[torch.Tensor | None]]]:
        """Batches of pixels; a few are drawn ahead on other threads while the autoencoder works."""

        def one(keys: list[str]) -> tuple[list[str], torch.Tensor, list[torch.Tensor | None]]:
            drawn = []
            for picture, cut in (missing[key] for key in keys):
                try:
                    drawn.append(render(picture, cut, self.factor))
                except UnreadablePicture as error:
                    raise InputError(f"{picture.path}: changed while it was being read ({error}).") from None
            return keys, torch.stack([pixels for pixels, _ in drawn]), [mask for _, mask in drawn]

        workers = min(4, os.cpu_count() or 1)
        with ThreadPoolExecutor(workers) as pool:
            ahead: deque = deque()
            for keys in batches:
                ahead.append(pool.submit(one, keys))
                if len(ahead) > workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()


def _same_size_batches(missing: dict[str, tuple[Picture, Cut]], batch_size: int) -> Iterator[list[str]]:
    by_size: dict[Size, list[str]] = {}
    for key, (_, cut) in missing.items():
        by_size.setdefault(cut.bucket, []).append(key)
    for size in sorted(by_size):
        keys = by_size[size]
        for start in range(0, len(keys), batch_size):
            yield keys[start : start + batch_size]
