"""Drawing one batch of pictures: the first pass, the hires pass, and the finished pictures."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from PIL import Image
from torch import Tensor

from extension.hosts.embedded import pictures
from extension.hosts.embedded.model import Model
from extension.hosts.embedded.noise import PictureNoise
from extension.hosts.embedded.progress import Progress
from extension.hosts.embedded.request import Request, hires_size
from extension.hosts.embedded.samplers import find_sampler, find_schedule, make_scheduler
from extension.hosts.embedded.sampling import Kept, Moment, Pass, first_latents, run_pass
from extension.hosts.embedded.tags import Meaning, read_batch
from extension.injection import Generation
from extension.injection.aesthetic import attachments_for
from extension.injection.hypernetworks import NetworkAttachment
from extension.wanted import Library
from trainers.errors import InputError
from trainers.formats.hashes import file_sha256

STRIP_LENGTH = 8
PREVIEW_SHARE = 0.15
"""Previews may take this share of the time."""


@dataclass
class Watcher:
    """Shows the steps of a pass: progress, previews, and the pictures of the strip."""

    model: Model
    progress: Progress
    strip: bool = False
    frames: list[Tensor] = field(default_factory=list)
    _preview_cost: float = 0.0
    _next_preview: float = 0.0

    def __call__(self, moment: Moment) -> None:
        self.progress.step, self.progress.steps = moment.call, moment.calls
        if self.strip and len(self.frames) * moment.calls <= (moment.call - 1) * (STRIP_LENGTH - 1):
            self.frames.append(self.model.decode(moment.sample))
        now = time.monotonic()
        if now >= self._next_preview:
            guess = moment.guess(self.model.base.prediction)[:1]
            self.progress.picture = pictures.to_image(self.model.decode(guess)[0])
            done = time.monotonic()
            self._next_preview = done + (done - now) / PREVIEW_SHARE

    def strips(self, finished: Sequence[Image.Image]) -> list[Image.Image | None]:
        """A strip for every picture, the result at its end."""
        if not self.frames:
            return [None] * len(finished)
        return [
            pictures.side_by_side([*(pictures.to_image(frame[number]).resize(one.size) for frame in self.frames), one])
            for number, one in enumerate(finished)
        ]


class Batch:
    """One batch; the object that its adapters belong to while it is drawn.

    Attributes:
        meaning: what its prompts ask for.
        reports: sentences for the person.
        strips: see `Request.strip`.
    """

    def __init__(
        self,
        model: Model,
        library: Library,
        request: Request,
        prompts: Sequence[str],
        negatives: Sequence[str],
        seeds: Sequence[int],
        progress: Progress,
    ) -> None:
        self.model, self.request, self.progress = model, request, progress
        self.library = library
        self.prompts, self.negatives, self.seeds = list(prompts), list(negatives), list(seeds)
        self.meaning = self._read(self.prompts, self.negatives)
        self.reports = list(self.meaning.reports)
        self.strips: list[Image.Image | None] = []
        self.hashes: dict[str, str] = {}
        self._init = self._init_pictures()

    def _read(self, prompts: Sequence[str], negatives: Sequence[str]) -> Meaning:
        request = self.request
        return read_batch(prompts, negatives, self.library, self.model, request.cfg_scale, request.default_scope)

    def _init_pictures(self) -> list[Image.Image]:
        """The pictures to start from, one per picture of the batch; none for txt2img."""
        given, request = self.request.init_images, self.request
        if not given:
            return []
        chosen = [given[number % len(given)] for number in range(len(self.seeds))]
        return [pictures.resized(one, request.width, request.height, request.resize_mode) for one in chosen]

    # --- drawing

    def draw(self) -> list[Image.Image]:
        """The finished pictures."""
        injection = self.model.injection
        try:
            latents = self._first_pass(self._begin(self.meaning))
            if self.request.enable_hr and not self._init and not self.progress.stopping:
                self.progress.job_no += 1
                latents = self._hires_pass(latents)
            finished = [pictures.to_image(one) for one in self.model.decode(latents)]
            if injection.current is not None:
                self.reports += injection.current.sentences(self.model.family)
        finally:
            injection.end(self)
        self.strips = self.watcher.strips(finished)
        return self._with_kept(finished)

    def _begin(self, meaning: Meaning) -> Generation:
        self.model.conditioner.prepare(meaning.embeddings, self.request.clip_skip)
        # A merged copy of a layer takes no part in an aesthetic gradient's steps.
        merged = self.model.device.type != "cpu" and not meaning.wanted.aesthetics
        try:
            generation = self.model.injection.begin(self, meaning.uses, merged=merged)
        except InputError as problem:
            self.reports += problem.problems
            generation = self.model.injection.begin(self, [])
        more = attachments_for(self.model.parts, generation, meaning.wanted.aesthetics)
        uses = meaning.wanted.network_uses()
        if uses:
            more.append(NetworkAttachment(self.model.base.unet, generation, uses))
        for attachment in more:
            attachment.attach()
            generation.attachments.append(attachment)  # so that it comes and goes with the generation
        return generation

    def _pass(self, generation: Generation, meaning: Meaning, noise: PictureNoise, **more: object) -> Pass:
        return Pass(
            model=self.model,
            generation=generation,
            prompts=meaning.prompts,
            generators=noise.generators,
            cfg=self.request.cfg_scale,
            regions=meaning.regions,
            stopping=lambda: self.progress.stopping,
            **more,
        )

    def _scheduler(self, sampler_name: str | None, schedule_name: str | None, steps: int) -> tuple:
        sampler, ending = find_sampler(sampler_name)
        schedule = find_schedule(schedule_name)
        if ending is not None and schedule.name == "automatic":
            schedule = ending
        base = self.model.base
        made = make_scheduler(
            sampler,
            schedule,
            base.alphas_cumprod,
            steps,
            prediction=base.prediction,
            zero_snr=base.info.zero_terminal_snr,
        )
        return made, sampler.calls

    def _first_pass(self, generation: Generation) -> Tensor:
        request = self.request
        scheduler, calls = self._scheduler(request.sampler_name, request.scheduler, request.steps)
        noise = PictureNoise(self.seeds, self.model.device)
        shape = (4, request.height // 8, request.width // 8)
        start, original, kept = 0, None, None
        drawn = noise.next(shape)
        if self._init:
            original = self.model.encode(torch.stack([pictures.to_pixels(one) for one in self._init]))
            start = first_step(request.steps, request.denoising_strength)
            kept = self._kept(original, drawn)
        self.watcher = Watcher(self.model, self.progress, request.strip)
        job = self._pass(
            generation,
            self.meaning,
            noise,
            scheduler=scheduler,
            latents=first_latents(scheduler, original, drawn, start * calls),
            size=(request.width, request.height),
            calls=calls,
            start=start,
            kept=kept,
            seen=self.watcher,
        )
        return run_pass(job)

    def _kept(self, original: Tensor, noise: Tensor) -> Kept | None:
        if self.request.mask is None:
            return None
        mask = pictures.latent_mask(self._mask(), self.request.width, self.request.height)
        return Kept(original, noise, mask.to(original).expand(len(original), -1, -1, -1))

    def _mask(self) -> Image.Image:
        request = self.request
        return pictures.mask_picture(
            request.mask, request.width, request.height, request.mask_blur, bool(request.inpainting_mask_invert)
        )

    def _with_kept(self, finished: list[Image.Image]) -> list[Image.Image]:
        """The parts that stay come from the picture itself, not from the autoencoder's copy of it."""
        if self.request.mask is None or not self._init:
            return finished
        mask = self._mask()
        return [Image.composite(new, old.convert("RGB"), mask) for new, old in zip(finished, self._init, strict=True)]

    def _hires_pass(self, latents: Tensor) -> Tensor:
        request, meaning = self.request, self.meaning
        if request.hr_prompt or request.hr_negative_prompt:
            prompts = [request.hr_prompt or text for text in self.prompts]
            meaning = self._read(prompts, [request.hr_negative_prompt or text for text in self.negatives])
            self.reports += [report for report in meaning.reports if report not in self.reports]
        generation = self._begin(meaning)
        width, height = hires_size(request)
        steps = request.hr_second_pass_steps or request.steps
        scheduler, calls = self._scheduler(
            request.hr_sampler_name or request.sampler_name, request.hr_scheduler or request.scheduler, steps
        )
        larger = self._upscaled(latents, width, height)
        noise = PictureNoise(self.seeds, self.model.device)
        start = first_step(steps, request.denoising_strength)
        job = self._pass(
            generation,
            meaning,
            noise,
            scheduler=scheduler,
            latents=first_latents(scheduler, larger, noise.next(larger.shape[1:]), start * calls),
            size=(width, height),
            calls=calls,
            start=start,
            base_steps=request.steps,
            hires=True,
            seen=Watcher(self.model, self.progress),
        )
        return run_pass(job)

    def _upscaled(self, latents: Tensor, width: int, height: int) -> Tensor:
        mode = self.request.hr_upscaler or "Latent"
        if mode in pictures.LATENT_MODES:
            return pictures.upscaled_latents(latents, width, height, mode)
        resampling = pictures.PIXEL_MODES.get(mode)
        seen = [pictures.to_image(one) for one in self.model.decode(latents)]
        larger = [one.resize((width, height), resampling or Image.Resampling.LANCZOS) for one in seen]
        return self.model.encode(torch.stack([pictures.to_pixels(one) for one in larger]))

    # --- what is said about it

    def settings(self) -> dict[str, object]:
        """What goes into the infotext beside what the request says."""
        wanted = self.meaning.wanted
        loras = ", ".join(f"{_plain(name)}: {value}" for name, value in wanted.lora_hashes().items())
        used = self.model.conditioner.used.values()
        named = {one.name: file_sha256(one.source)[:12] for one in used if one.source is not None}
        tis = ", ".join(f"{_plain(name)}: {value}" for name, value in named.items())
        return {
            "Lora hashes": loras or None,
            "TI hashes": tis or None,
            "Athanor": " ".join(dict.fromkeys(self.reports)) or None,
        }


def _plain(name: str) -> str:
    return name.replace(":", "").replace(",", "")


def first_step(steps: int, strength: float) -> int:
    """The step at which a picture's own noise of this strength is met; strength 1 begins at the first."""
    done = int(min(strength, 0.999) * steps)
    return max(steps - done - 1, 0)
