"""One micro step: a batch, its noise and timesteps, the model's answer, the loss and its gradient."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from trainers.data.dataset import Batch
from trainers.engine import noise as noises
from trainers.engine import objectives
from trainers.engine.session import Session
from trainers.rng import derived_seed, generator
from trainers.spec import Job


@dataclass(frozen=True)
class Drawn:
    """What is random about a micro step, the same however the batch is spread over processes."""

    noise: torch.Tensor
    perturbed: torch.Tensor
    timesteps: torch.Tensor


def draw_random(job: Job, batch: Batch, index: int) -> Drawn:
    """Noise [B, 4, h, w] and timesteps [B] of batch `index`; each sample has generators of its own."""
    places = batch.sample_indices
    noise = noises.training_noise(
        batch.latents.shape,
        [generator(job.seed, "noise", index, place) for place in places],
        offset=job.noise_offset,
        adaptive_offset=job.adaptive_noise_offset,
        latents=batch.latents,
        pyramid_iterations=job.pyramid_iterations,
        pyramid_discount=job.pyramid_discount,
    )
    perturbed = noises.perturb_input(
        noise, [generator(job.seed, "perturbation", index, place) for place in places], job.input_perturbation
    )
    uniform = torch.stack([torch.rand((), generator=generator(job.seed, "timestep", index, p)) for p in places])
    timesteps = objectives.timesteps_from_uniform(uniform, job.timestep_sampling, job.timestep_min, job.timestep_max)
    return Drawn(noise, perturbed, timesteps)


def hold_to_base(
    session: Session, wanted: torch.Tensor, noisy: torch.Tensor, drawn: Drawn, batch: Batch
) -> torch.Tensor:
    """`wanted` [B, 4, h, w] with what the base alone predicts for the regularisation pictures.

    A target without noise of its own: the loss there is the squared distance from the base, so that what the base
    knows is kept with far fewer pictures than their own noise would take.
    """
    rows = batch.regularisation.nonzero()[:, 0]
    if not len(rows):
        return wanted
    captions = [batch.captions[row] for row in rows]
    with torch.no_grad(), session.trainable.without():
        known = session.predict(noisy[rows], drawn.timesteps[rows], captions, batch.time_ids[rows])
    return wanted.index_copy(0, rows, known.to(wanted))


def sample_losses(session: Session, batch: Batch, drawn: Drawn) -> tuple[torch.Tensor, torch.Tensor]:
    """(weighted losses [B] to learn from, plain losses [B] to show)."""
    job, alphas = session.job, session.alphas_cumprod
    noisy = objectives.add_noise(batch.latents, drawn.perturbed, drawn.timesteps, alphas)
    wanted = objectives.target(job.prediction, batch.latents, drawn.noise, drawn.timesteps, alphas)
    if job.prior_target == "base":
        wanted = hold_to_base(session, wanted, noisy, drawn, batch)
    output = session.predict(noisy, drawn.timesteps, batch.captions, batch.time_ids)
    threshold = None
    if job.loss != "l2":
        threshold = objectives.huber_threshold(drawn.timesteps, alphas, job.huber_c, job.huber_schedule)
    elements = objectives.elementwise_loss(output, wanted.to(output.device), job.loss, threshold)
    masks = None if batch.masks is None else batch.masks.to(output.device)
    plain = objectives.masked_mean(elements, masks, job.unmasked_weight)
    weights = objectives.sample_weights(drawn.timesteps, alphas, job.prediction, job.min_snr_gamma, job.debiased)
    return plain * (weights * batch.weights).to(plain.device), plain.detach()


def prepare(session: Session, index: int) -> None:
    """Reads global batch `index` and draws what is random about it, while the device is still busy with another."""
    batch = session.dataset.batch(index, session.world.size, session.world.rank)
    session.prepared = (index, batch, draw_random(session.job, batch, index) if batch.captions else None)


def micro_step(session: Session, index: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Adds the gradient of this process's share of global batch `index`; returns (sum of weighted losses / size of
    the global batch, the same of the plain losses), each [] on the device: to read them is to wait for it."""
    job, world = session.job, session.world
    if session.prepared is None or session.prepared[0] != index:
        prepare(session, index)
    _, batch, drawn = session.prepared
    session.prepared = None
    if not batch.captions:  # a short last batch may leave a process without samples
        return torch.zeros((), device=session.device), torch.zeros((), device=session.device)
    torch.manual_seed(derived_seed(job.seed, "dropout", index, world.rank))
    learned, plain = sample_losses(session, batch, drawn)
    share = learned.sum() / batch.global_size
    loss = share / job.gradient_accumulation
    if job.get("fused_backward") and not torch.isfinite(loss):
        return share.detach(), share.detach() * float("nan")  # weights would be updated before anybody could look
    (session.scaler.scale(loss) if session.scaler else loss).backward()
    return share.detach(), plain.sum() / batch.global_size
