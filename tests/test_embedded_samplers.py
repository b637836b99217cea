"""Every sampler and schedule of the embedded host, with a model that knows the answer."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch

from extension.hosts.embedded.samplers import (
    SAMPLERS,
    SCHEDULES,
    find_sampler,
    find_schedule,
    make_scheduler,
    make_sigmas,
    model_sigmas,
)
from extension.hosts.embedded.sampling import alpha_at, first_latents
from trainers.bases.loader import noise_schedule
from trainers.errors import InputError

PAIRS = [(one, way) for one in SAMPLERS for way in (SCHEDULES[:1] if one.fixed else SCHEDULES)]
ALPHAS = noise_schedule()


def _walk(scheduler, latents, target, first=0, prediction="epsilon"):
    """Runs a scheduler with the exact prediction for `target`."""
    random = {}
    if "generator" in inspect.signature(scheduler.step).parameters:
        random["generator"] = [torch.Generator().manual_seed(n) for n in range(len(latents))]
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    for timestep in scheduler.timesteps[first:]:
        sample = scheduler.scale_model_input(latents, timestep)
        alpha = alpha_at(scheduler.alphas_cumprod, float(timestep)).double()
        noise = (sample - alpha.sqrt() * target) / (1 - alpha).sqrt()
        answer = noise if prediction == "epsilon" else alpha.sqrt() * noise - (1 - alpha).sqrt() * target
        latents = scheduler.step(answer.float(), timestep, latents, **random).prev_sample
    return latents


@pytest.mark.parametrize(("sampler", "schedule"), PAIRS, ids=[f"{one.name}-{way.label}" for one, way in PAIRS])
def test_a_perfect_model_is_followed_to_its_answer(sampler, schedule):
    scheduler = make_scheduler(sampler, schedule, ALPHAS, 6)
    assert len(scheduler.timesteps) == 6 if sampler.calls == 1 else 11
    noise, target = torch.randn(2, 4, 2, 2), torch.full((2, 4, 2, 2), 0.5)
    made = _walk(scheduler, first_latents(scheduler, None, noise, 0), target)
    assert torch.allclose(made, target, atol=1e-4)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=[one.name for one in SAMPLERS])
def test_it_can_begin_in_the_middle_with_a_noised_picture(sampler):
    scheduler = make_scheduler(sampler, SCHEDULES[0], ALPHAS, 8)
    target, noise = torch.full((1, 4, 2, 2), 0.5), torch.randn(1, 4, 2, 2)
    first = 5 * sampler.calls
    made = _walk(scheduler, first_latents(scheduler, target, noise, first), target, first)
    assert torch.allclose(made, target, atol=1e-4)


@pytest.mark.parametrize("sampler", [one for one in SAMPLERS if one.name in ("Euler", "DDIM", "DPM++ 2M")])
def test_velocity_and_a_schedule_that_ends_in_pure_noise(sampler):
    scheduler = make_scheduler(sampler, find_schedule("uniform"), ALPHAS, 8, prediction="v", zero_snr=True)
    target = torch.full((1, 4, 2, 2), 0.5)
    made = _walk(scheduler, first_latents(scheduler, None, torch.randn(1, 4, 2, 2), 0), target, prediction="v")
    assert torch.isfinite(made).all() and torch.allclose(made, target, atol=1e-2)


def test_sigmas_begin_and_end_where_the_model_does():
    sigmas = model_sigmas(ALPHAS)
    assert (sigmas[0], sigmas[-1]) == (pytest.approx(0.0292, abs=1e-4), pytest.approx(14.6146, abs=1e-3))
    for schedule in SCHEDULES[1:]:
        made = make_sigmas(schedule.label, sigmas, 10)
        assert len(made) == 11 and made[-1] == 0 and (np.diff(made) < 0).all()
        assert made[0] == pytest.approx(sigmas[-1])


def test_names_as_people_know_them():
    assert (
        find_sampler("dpm++ 2m karras")[0].name == "DPM++ 2M" and find_sampler("DPM++ 2M Karras")[1].label == "Karras"
    )
    assert find_sampler("k_euler_a")[0].name == "Euler a" and find_sampler("Euler a") == (
        find_sampler("k_euler_a")[0],
        None,
    )
    assert find_schedule(None).label == "Automatic" and find_schedule("SGMUniform").name == "sgm_uniform"
    with pytest.raises(InputError, match="Did you mean"):
        find_sampler("Eulr")
