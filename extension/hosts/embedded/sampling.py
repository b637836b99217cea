"""One pass from noise to latents: whom each row of a UNet call is for, guidance, and what is seen on the way."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from extension.hosts.embedded import editing
from extension.hosts.embedded.conditioning import Cond, Text
from extension.hosts.embedded.model import Model
from extension.injection import Generation, Row
from extension.injection.calls import MaskOf, UNetCalls
from extension.injection.contexts import Context
from extension.injection.embeddings import Embedding

Strength = Callable[[int, int, bool], float]
"""(steps done, steps of the pass, hires pass) -> strength of a `<ti:…>` tag."""


@dataclass(frozen=True)
class Prompt:
    """One row's prompt over the run.

    Attributes:
        tree: see `editing`.
        weight: of an AND part; 0 for a negative prompt, whose share is what the others leave.
        marked: embedding and strength behind each mark in the text.
    """

    tree: editing.Sequence_
    row: Row
    weight: float = 1.0
    marked: Mapping[int, tuple[Embedding, Strength]] = field(default_factory=dict)

    def at(self, step: int, total: int, hires: bool, base_steps: int) -> Text:
        """The text for the step after `step` of `total` steps."""
        text = editing.text_at(self.tree, step, total, hires, base_steps)
        marked = {number: (item, strength(step, total, hires)) for number, (item, strength) in self.marked.items()}
        return Text(text, self.row, marked)


@dataclass
class Moment:
    """What one call of the sampler saw, for previews."""

    call: int
    calls: int
    sample: Tensor
    prediction: Tensor
    alpha: Tensor

    def guess(self, prediction: str) -> Tensor:
        """The model's idea of the finished latents."""
        signal, noise = self.alpha.sqrt(), (1 - self.alpha).sqrt()
        if prediction == "v":
            return signal * self.sample - noise * self.prediction
        return (self.sample - noise * self.prediction) / signal.clamp(min=1e-4)


@dataclass
class Kept:
    """Parts of a picture that stay as they are.

    Attributes:
        latents: the picture; noise: what it is noised with.
        mask: [pictures, 1, h, w], 1 where something new is drawn.
    """

    latents: Tensor
    noise: Tensor
    mask: Tensor


@dataclass
class Pass:
    """Everything one pass needs.

    Attributes:
        prompts: by picture; the negative prompt's row is among them unless guidance does not need it.
        scheduler: with its timesteps set; `calls` of the UNet per step.
        start: the first step that is done; `latents` are noised for it.
        regions: masks of the regions that tags name.
    """

    model: Model
    generation: Generation
    prompts: Sequence[Sequence[Prompt]]
    scheduler: Any
    latents: Tensor
    generators: Sequence[torch.Generator]
    cfg: float
    size: tuple[int, int]
    calls: int = 1
    start: int = 0
    base_steps: int = 0
    hires: bool = False
    regions: Mapping[str, MaskOf] = field(default_factory=dict)
    kept: Kept | None = None
    stopping: Callable[[], bool] = lambda: False
    seen: Callable[[Moment], None] = lambda moment: None


def alpha_at(alphas_cumprod: Tensor, timestep: float) -> Tensor:
    """The cumulative product between whole timesteps, by interpolating the logarithm of noise over signal."""
    low = int(max(0, min(timestep, len(alphas_cumprod) - 1)))
    part = timestep - low
    if part <= 0 or low + 1 >= len(alphas_cumprod):
        return alphas_cumprod[low]
    ratios = torch.log((1 - alphas_cumprod[low : low + 2]) / alphas_cumprod[low : low + 2])
    return torch.sigmoid(-(ratios[0] * (1 - part) + ratios[1] * part))


class _Rows:
    """The rows of the call that comes next, as `UNetCalls` asks for them, and the conditionings of regions' rows."""

    def __init__(self) -> None:
        self.now: list[Row] = []
        self.contexts: dict[Row, Context] = {}

    def __call__(self, count: int) -> list[Row] | None:
        return self.now if len(self.now) == count else None


def _by_length(entries: Sequence[tuple[Prompt, Cond]]) -> list[list[int]]:
    """Numbers of the entries that go into one call: prompts of one length, so that none is filled up."""
    groups: dict[int, list[int]] = {}
    for number, (_, cond) in enumerate(entries):
        groups.setdefault(len(cond.hidden), []).append(number)
    return list(groups.values())


def _predict(job: Pass, rows: _Rows, sample: Tensor, timestep: Tensor, entries: list[tuple[Prompt, Cond]]) -> Tensor:
    """The UNet's answer for every entry."""
    weight = next(job.model.base.unet.parameters())
    answers: list[Tensor | None] = [None] * len(entries)
    for group in _by_length(entries):
        rows.now = [entries[number][0].row for number in group]
        inputs = torch.stack([sample[row.picture] for row in rows.now]).to(weight)
        hidden = torch.stack([entries[number][1].hidden for number in group]).to(weight)
        pooled = [entries[number][1].pooled for number in group]
        pooled = None if pooled[0] is None else torch.stack(pooled).to(weight)
        extra = job.model.size_inputs(pooled, *job.size)
        output = job.model.base.unet(
            inputs, timestep, encoder_hidden_states=hidden, added_cond_kwargs=extra or None
        ).sample.float()
        for number, answer in zip(group, output, strict=True):
            answers[number] = answer
    return torch.stack(answers)


def guided(prompts: Sequence[Prompt], answers: Tensor, cfg: float) -> Tensor:
    """One picture's answers to one: away from the negative prompt's, towards each part's by its weight."""
    negative = next((a for p, a in zip(prompts, answers, strict=True) if p.row.negative), None)
    positive = [(p.weight, a) for p, a in zip(prompts, answers, strict=True) if not p.row.negative]
    if negative is None:
        return sum(weight * answer for weight, answer in positive)
    return negative + cfg * sum(weight * (answer - negative) for weight, answer in positive)


def needs_negative(parts: Sequence[float], cfg: float) -> bool:
    """Whether guidance looks at the negative prompt at all."""
    return not (cfg == 1 and abs(sum(parts) - 1) < 1e-9)


def _combined(job: Pass, answers: Tensor) -> Tensor:
    results, position = [], 0
    for prompts in job.prompts:
        results.append(guided(prompts, answers[position : position + len(prompts)], job.cfg))
        position += len(prompts)
    return torch.stack(results)


def _keep(job: Pass, latents: Tensor, call: int) -> Tensor:
    """Puts the parts that stay back, noised as much as the rest is now."""
    kept, scheduler = job.kept, job.scheduler
    if kept is None:
        return latents
    original = kept.latents
    if call + 1 < len(scheduler.timesteps):
        original = _noised(scheduler, kept.latents, kept.noise, call + 1)
    return original * (1 - kept.mask) + latents * kept.mask


def _noised(scheduler: Any, latents: Tensor, noise: Tensor, call: int) -> Tensor:
    """Latents with the noise of the call after `call` calls, in the scheduler's own units."""
    timestep = scheduler.timesteps[call]
    if float(scheduler.init_noise_sigma) != 1.0:
        return latents + noise * scheduler.sigmas[call].to(latents)
    alpha = alpha_at(scheduler.alphas_cumprod, float(timestep)).to(latents)
    return alpha.sqrt() * latents + (1 - alpha).sqrt() * noise


def first_latents(scheduler: Any, latents: Tensor | None, noise: Tensor, call: int) -> Tensor:
    """What a pass begins with: noise, or a picture's latents noised for the call it starts at."""
    if latents is None:
        return noise * scheduler.init_noise_sigma
    return _noised(scheduler, latents, noise, call)


def _entries(job: Pass, step: int, total: int) -> list[tuple[Prompt, Cond]]:
    """Every row with its conditioning for this step."""
    encode = job.model.conditioner.encode
    return [
        (prompt, encode(prompt.at(step, total, job.hires, job.base_steps), job.generation))
        for prompts in job.prompts
        for prompt in prompts
    ]


def _watched(job: Pass, rows: _Rows) -> AbstractContextManager:
    """Tells the adapters whom the rows are for; without adapters nothing is on the UNet."""
    if not job.generation.attachments:
        return nullcontext()
    return UNetCalls(job.model.base.unet, job.generation, rows, job.regions, lambda row: rows.contexts.get(row))


def _contexts(job: Pass, step: int, total: int) -> dict[Row, Context]:
    """The conditionings of the rows of regions, whose prompts are read with the regions' adapters."""
    found = {}
    for prompt in (prompt for prompts in job.prompts for prompt in prompts):
        for name in job.regions:
            inside = replace(prompt, row=replace(prompt.row, region=name))
            if job.generation.acts_inside(inside.row):
                text = inside.at(step, total, job.hires, job.base_steps)
                cond = job.model.conditioner.encode(text, job.generation)
                found[inside.row] = Context(cond.hidden, cond.pooled)
    return found


def _moment(job: Pass, rows: _Rows, latents: Tensor, call: int, first: int) -> Moment:
    """One call of the UNet for every row, guidance applied."""
    scheduler = job.scheduler
    timestep = scheduler.timesteps[call]
    step = (call - first) // job.calls
    total = (len(scheduler.timesteps) + job.calls - 1) // job.calls - job.start
    job.generation.set_step(step, total, job.hires)
    entries = _entries(job, step, total)
    rows.contexts = _contexts(job, step, total)
    sample = scheduler.scale_model_input(latents, timestep)
    answers = _predict(job, rows, sample, timestep.to(job.model.device, torch.float32), entries)
    alpha = alpha_at(scheduler.alphas_cumprod, float(timestep)).to(sample)
    return Moment(call - first + 1, len(scheduler.timesteps) - first, sample, _combined(job, answers), alpha)


@torch.no_grad()
def run_pass(job: Pass) -> Tensor:
    """The finished latents; where it is stopped, the model's idea of them."""
    scheduler, latents, rows = job.scheduler, job.latents, _Rows()
    random = {"generator": list(job.generators)} if "generator" in inspect.signature(scheduler.step).parameters else {}
    first = job.start * job.calls
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    moment: Moment | None = None
    with _watched(job, rows):
        for call in range(first, len(scheduler.timesteps)):
            if job.stopping():
                return latents if moment is None else moment.guess(job.model.base.prediction)
            moment = _moment(job, rows, latents, call, first)
            job.seen(moment)
            latents = scheduler.step(
                moment.prediction, scheduler.timesteps[call], latents, **random
            ).prev_sample.float()
            latents = _keep(job, latents, call)
    return latents
