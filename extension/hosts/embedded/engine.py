"""The studio: the model that is loaded, where files are, and one job at a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from extension.hosts.embedded.drawing import Batch
from extension.hosts.embedded.infotext import write_infotext
from extension.hosts.embedded.model import Model, best_device
from extension.hosts.embedded.places import Places, Settings
from extension.hosts.embedded.progress import Progress
from extension.hosts.embedded.request import Request, hires_size, settle
from extension.hosts.embedded.samplers import AUTOMATIC, find_sampler, find_schedule
from trainers import __version__
from trainers.errors import InputError, did_you_mean


@dataclass
class Picture:
    """One finished picture; `strip` shows its way from noise, where that was asked for, `path` is its file."""

    image: Image.Image
    infotext: str
    seed: int
    prompt: str
    negative: str
    strip: Image.Image | None = None
    path: Path | None = None


@dataclass
class Drawn:
    """A finished job.

    Attributes:
        reports: sentences about tags and files, each once.
        stopped: it was interrupted.
    """

    request: Request
    pictures: list[Picture] = field(default_factory=list)
    reports: list[str] = field(default_factory=list)
    stopped: bool = False
    seconds: float = 0.0


class Studio:
    """Everything that draws.

    Attributes:
        progress: of the job that is running.
        lock: held by whoever uses the model.
        turn: a context that tells trainers that something is drawn.
    """

    def __init__(self, base: Path, places: Places, device: str = "auto") -> None:
        places.make()
        self.places = places
        self.settings = Settings(places.data / "settings.json")
        self.library = places.library()
        self.library.rescan()
        self.progress = Progress()
        self.lock = threading.Lock()
        self.turn: Callable[[], AbstractContextManager[None]] = nullcontext
        self.started_with = base
        self.device = best_device(device)
        self.model = Model(base, self.device)

    # --- models

    def bases(self) -> list[Path]:
        """The base models that can be loaded."""
        return self.places.bases(self.started_with)

    def find_base(self, wanted: str) -> Path:
        """The listed base model that a title, a file's name or a hash means.

        Raises InputError.
        """
        bare = wanted.split(" [")[0].strip()
        for path in self.bases():
            if bare in (path.name, path.stem, str(path)) or (
                path == self.model.path and wanted == self.model.short_hash
            ):
                return path
        names = [path.stem for path in self.bases()]
        raise InputError(f"model {wanted!r} not found; there are {', '.join(names)}.{did_you_mean(bare, names)}")

    def load(self, path: Path) -> None:
        """Loads another base model; when that fails the old one is loaded again."""
        with self.lock:
            if path == self.model.path:
                return
            old = self.model.path
            self.model.close()
            try:
                self.model = Model(path, self.device)
            except Exception:
                self.model = Model(old, self.device)
                raise

    # --- drawing

    def draw(self, request: Request, save_as: str | None = None) -> Drawn:
        """Draws what is asked for, after whatever is being drawn now.

        Args:
            save_as: folder of the outputs that the pictures are written to.

        Raises:
            InputError: the request will not do.
        """
        with self.lock, self.turn():
            if not self.model.in_memory:  # it was handed over to a training
                self.model.reload()
            request = settle(request, self.model.native_size)
            began = time.monotonic()
            batches = _batches(request)
            passes = 2 if request.enable_hr and not request.init_images else 1
            self.progress.begin("img2img" if request.init_images else "txt2img", len(batches) * passes)
            drawn = Drawn(request)
            try:
                self.library.rescan()
                for number, (prompts, negatives, seeds) in enumerate(batches):
                    if self.progress.interrupted:
                        break
                    self.progress.skipped = False
                    self.progress.job_no = number * passes
                    self._one_batch(drawn, prompts, negatives, seeds)
                drawn.stopped = self.progress.interrupted
            finally:
                self.progress.end()
            if save_as:
                self._save(drawn, save_as)
            drawn.seconds = time.monotonic() - began
            return drawn

    def _one_batch(self, drawn: Drawn, prompts: list[str], negatives: list[str], seeds: list[int]) -> None:
        batch = Batch(self.model, self.library, drawn.request, prompts, negatives, seeds, self.progress)
        images = batch.draw()
        about = batch.settings()
        for number, image in enumerate(images):
            settings = {
                **describe(drawn.request, self.model, seeds[number]),
                **about,
                "Version": f"athanor {__version__}",
            }
            text = write_infotext(prompts[number], negatives[number], settings)
            picture = Picture(image, text, seeds[number], prompts[number], negatives[number], batch.strips[number])
            drawn.pictures.append(picture)
        drawn.reports = list(dict.fromkeys([*drawn.reports, *batch.reports]))

    def _save(self, drawn: Drawn, folder: str) -> None:
        for picture in drawn.pictures:
            picture.path = self.places.save(picture.image, picture.infotext, folder, picture.seed)

    # --- what is there

    def rescan(self) -> bool:
        """Looks for new and changed files."""
        return self.library.rescan()

    def option(self, key: str, default: Any = None) -> Any:
        """A setting as the person left it."""
        return self.settings.get(key, default)


def _batches(request: Request) -> list[tuple[list[str], list[str], list[int]]]:
    """(prompts, negative prompts, seeds) of each batch; picture i has the seed + i."""
    prompts, negatives = request.prompts_for(request.pictures)
    size = request.batch_size
    seeds = [request.seed + number for number in range(request.pictures)]
    return [
        (prompts[start : start + size], negatives[start : start + size], seeds[start : start + size])
        for start in range(0, request.pictures, size)
    ]


def describe(request: Request, model: Model, seed: int) -> Mapping[str, object]:
    """The settings of one picture by A1111's names."""
    sampler, ending = find_sampler(request.sampler_name)
    schedule = find_schedule(request.scheduler)
    label = ending.label if ending is not None and schedule.label == AUTOMATIC else schedule.label
    hires = request.enable_hr and not request.init_images
    width, height = hires_size(request) if hires else (0, 0)
    resized = bool(request.hr_resize_x or request.hr_resize_y)
    return {
        "Steps": request.steps,
        "Sampler": sampler.name,
        "Schedule type": label,
        "CFG scale": f"{request.cfg_scale:g}",
        "Seed": seed,
        "Size": f"{request.width}x{request.height}",
        "Model hash": model.short_hash or None,
        "Model": model.name,
        "Denoising strength": f"{request.denoising_strength:g}" if hires or request.init_images else None,
        "Clip skip": request.clip_skip if request.clip_skip > 1 else None,
        "RNG": "CPU",
        "Mask blur": request.mask_blur if request.mask is not None else None,
        "Hires prompt": request.hr_prompt or None if hires else None,
        "Hires negative prompt": request.hr_negative_prompt or None if hires else None,
        "Hires upscale": f"{request.hr_scale:g}" if hires and not resized else None,
        "Hires resize": f"{width}x{height}" if resized and hires else None,
        "Hires steps": request.hr_second_pass_steps or None if hires else None,
        "Hires upscaler": request.hr_upscaler if hires else None,
    }
