"""The objectives against float64 references and diffusers' own functions."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainers.engine import objectives

BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
ALPHAS = torch.cumprod(1 - BETAS, 0)
ALL = torch.arange(1000)


def _sample(batch=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    latents, noise = (torch.randn(batch, 4, 6, 5, generator=g) for _ in range(2))
    return latents, noise, torch.tensor([0, 17, 500, 999][:batch])


def _ddpm(**options):
    from diffusers import DDPMScheduler

    return DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, **options)


def test_noising_and_velocity_are_the_ones_of_diffusers():
    latents, noise, t = _sample()
    ddpm = _ddpm()
    torch.testing.assert_close(ALPHAS, ddpm.alphas_cumprod, rtol=1e-6, atol=0)
    torch.testing.assert_close(objectives.add_noise(latents, noise, t, ALPHAS), ddpm.add_noise(latents, noise, t))
    torch.testing.assert_close(objectives.target("v", latents, noise, t, ALPHAS), ddpm.get_velocity(latents, noise, t))
    assert objectives.target("epsilon", latents, noise, t, ALPHAS) is noise


def test_noising_against_float64():
    latents, noise, t = _sample()
    a = ALPHAS.double()[t].view(-1, 1, 1, 1)
    wanted = a.sqrt() * latents.double() + (1 - a).sqrt() * noise.double()
    torch.testing.assert_close(objectives.add_noise(latents, noise, t, ALPHAS).double(), wanted, rtol=1e-5, atol=1e-6)
    low = objectives.add_noise(latents.bfloat16(), noise.bfloat16(), t, ALPHAS)
    assert low.dtype == torch.bfloat16


def test_snr_is_the_one_of_diffusers():
    from diffusers.training_utils import compute_snr

    torch.testing.assert_close(objectives.snr(ALL, ALPHAS), compute_snr(_ddpm(), ALL), rtol=1e-4, atol=0)


@pytest.mark.parametrize("options", [{"min_snr_gamma": 5.0}, {"min_snr_gamma": 1.0}, {"debiased": True}])
def test_a_weighting_means_the_same_for_both_predictions(options):
    """The same error of x_0 costs the same, whichever of the two the model predicts."""
    a = ALPHAS.double()
    epsilon_error = (a / (1 - a)).sqrt()  # of an error of 1 in x_0
    v_error = 1 / (1 - a).sqrt()
    cost = [
        objectives.sample_weights(ALL, ALPHAS, prediction, **options).double() * error**2
        for prediction, error in (("epsilon", epsilon_error), ("v", v_error))
    ]
    torch.testing.assert_close(cost[0], cost[1], rtol=1e-4, atol=0)


def test_min_snr_and_debiased_against_their_formulas():
    ratio = objectives.snr(ALL, ALPHAS)
    capped = torch.minimum(ratio, torch.full_like(ratio, 5.0))
    weights = objectives.sample_weights
    torch.testing.assert_close(weights(ALL, ALPHAS, "epsilon", 5.0), capped / ratio)
    torch.testing.assert_close(weights(ALL, ALPHAS, "v", 5.0), capped / (ratio + 1))
    torch.testing.assert_close(weights(ALL, ALPHAS, "epsilon", debiased=True), 1 / ratio.sqrt())
    assert torch.equal(weights(ALL, ALPHAS, "v"), torch.ones(1000))


def test_zero_terminal_snr_is_the_one_of_diffusers_and_stays_finite():
    scaled = objectives.rescale_zero_terminal_snr(ALPHAS)
    theirs = _ddpm(rescale_betas_zero_snr=True, prediction_type="v_prediction").alphas_cumprod
    torch.testing.assert_close(scaled, theirs, rtol=2e-3, atol=1e-6)
    assert scaled[-1] == 0
    assert scaled[0] == pytest.approx(ALPHAS[0].item(), rel=1e-6)
    assert objectives.snr(ALL, scaled)[-1] == 0
    for prediction in ("epsilon", "v"):
        for options in ({}, {"min_snr_gamma": 5.0}, {"debiased": True}):
            assert objectives.sample_weights(ALL, scaled, prediction, **options).isfinite().all()
    for schedule in ("constant", "exponential", "snr"):
        assert objectives.huber_threshold(ALL, scaled, 0.1, schedule).isfinite().all()
    latents, noise, _ = _sample(1)
    last = torch.tensor([999])
    assert torch.equal(objectives.add_noise(latents, noise, last, scaled), noise)
    assert torch.equal(objectives.target("v", latents, noise, last, scaled), -latents)


def test_zero_terminal_snr_needs_v():
    assert objectives.zero_terminal_snr_problem("v", True) is None
    assert objectives.zero_terminal_snr_problem("epsilon", False) is None
    assert "epsilon" in objectives.zero_terminal_snr_problem("epsilon", True)


DENSITIES = {
    "uniform": lambda x: x,
    "early": lambda x: 1 - (1 - x) ** 2,
    "late": lambda x: x**2,
    "sigmoid": lambda x: 0.5 * (1 + math.erf(math.log(x / (1 - x)) / math.sqrt(2))),
}


@pytest.mark.parametrize("sampling", DENSITIES)
def test_timesteps_follow_their_distribution(sampling):
    u = (torch.arange(100_000) + 0.5) / 100_000
    t = objectives.timesteps_from_uniform(u, sampling, 0, 999)
    for mark in (100, 250, 500, 900):
        assert (t < mark).double().mean().item() == pytest.approx(DENSITIES[sampling](mark / 1000), abs=1e-3)


@settings(max_examples=60, deadline=None)
@given(
    u=st.floats(0, 1, exclude_max=True), ends=st.tuples(st.integers(0, 999), st.integers(0, 999)),
    sampling=st.sampled_from(sorted(DENSITIES)),
)  # fmt: skip
def test_timesteps_stay_in_their_range(u, ends, sampling):
    low, high = sorted(ends)
    t = objectives.timesteps_from_uniform(torch.tensor([u, 0.0, 1.0 - 2**-24]), sampling, low, high)
    assert t.dtype == torch.int64
    assert low <= t.min() and t.max() <= high


def test_losses_against_float64():
    g = torch.Generator().manual_seed(3)
    pred, wanted = (torch.randn(3, 4, 5, 5, generator=g) for _ in range(2))
    c = torch.tensor([0.1, 0.5, 1.0])
    d, c64 = (pred.double() - wanted.double()), c.double().view(-1, 1, 1, 1)
    excess = (d**2 + c64**2).sqrt() - c64
    for kind, reference in (("l2", d**2), ("huber", 2 * c64 * excess), ("smooth_l1", 2 * excess)):
        got = objectives.elementwise_loss(pred, wanted, kind, c)
        torch.testing.assert_close(got.double(), reference, rtol=1e-5, atol=1e-7)


def test_small_errors_keep_their_gradient():
    """The textbook form of the Huber loss has no digits left for an error of 1e-5."""
    pred = torch.full((1, 1, 1, 1), 1e-5, requires_grad=True)
    objectives.elementwise_loss(pred, torch.zeros(1, 1, 1, 1), "huber", 1.0).sum().backward()
    assert pred.grad.item() == pytest.approx(2e-5, rel=1e-4)


def test_huber_thresholds():
    t = torch.tensor([0, 500, 999])
    threshold = objectives.huber_threshold
    assert torch.allclose(threshold(t, ALPHAS, 0.1, "constant"), torch.tensor(0.1))
    torch.testing.assert_close(threshold(t, ALPHAS, 0.1, "exponential"), 0.1 ** (t / 1000))
    sigma = ((1 - ALPHAS[t]) / ALPHAS[t]).sqrt()
    torch.testing.assert_close(threshold(t, ALPHAS, 0.1, "snr"), 0.9 / (1 + sigma) ** 2 + 0.1)


def test_masked_mean():
    loss = torch.arange(16.0).view(1, 1, 4, 4).repeat(2, 3, 1, 1)
    mask = torch.zeros(2, 1, 4, 4)
    mask[0, 0, 0] = 1  # the top row of the first picture; the second has an empty mask
    assert objectives.masked_mean(loss, mask).tolist() == [pytest.approx(1.5), 0.0]
    assert objectives.masked_mean(loss).tolist() == [7.5, 7.5]
    assert torch.allclose(objectives.masked_mean(loss, mask, 1.0), torch.tensor(7.5))
    half = objectives.masked_mean(loss, mask, 0.5)
    assert half[0] == pytest.approx((6 + 0.5 * 114) / (4 + 0.5 * 12))
    assert half[1] == pytest.approx(7.5)
