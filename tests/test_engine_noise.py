"""The training noise: what it is, and that a sample's noise is its own."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainers.engine.noise import perturb_input, training_noise
from trainers.rng import generator

KINDS = {
    "plain": {},
    "offset": {"offset": 0.1},
    "adaptive": {"offset": 0.05, "adaptive_offset": 0.2},
    "pyramid": {"pyramid_iterations": 6, "pyramid_discount": 0.3},
    "all": {"offset": 0.1, "adaptive_offset": 0.1, "pyramid_iterations": 4, "pyramid_discount": 0.5},
}
SHAPE = (6, 4, 16, 24)
LATENTS = torch.randn(SHAPE, generator=torch.Generator().manual_seed(5)) + 0.5


def _draw(rows, kind):
    rows = list(rows)
    generators = [generator(7, "noise", 3, row) for row in rows]
    return training_noise((len(rows), *SHAPE[1:]), generators, latents=LATENTS[rows], **KINDS[kind])


@settings(max_examples=25, deadline=None)
@given(kind=st.sampled_from(sorted(KINDS)), order=st.permutations(range(6)), cut=st.integers(1, 5))
def test_noise_does_not_depend_on_the_sharding(kind, order, cut):
    whole = _draw(range(6), kind)
    for shard in (order[:cut], order[cut:]):
        assert torch.equal(_draw(shard, kind), whole[list(shard)])


def test_plain_noise_is_normal_and_float32():
    noise = training_noise((8, 4, 64, 64), [generator(1, "noise", i) for i in range(8)])
    assert noise.dtype == torch.float32
    assert noise.mean().abs() < 0.01
    assert noise.std() == pytest.approx(1.0, abs=0.01)


def test_offset_shifts_each_channel_by_its_strength():
    shape = (400, 4, 8, 8)
    generators = lambda: [generator(1, "noise", i) for i in range(shape[0])]  # noqa: E731
    shift = training_noise(shape, generators(), offset=0.5) - training_noise(shape, generators())
    assert torch.allclose(shift, shift[:, :, :1, :1].expand_as(shift), atol=1e-6)
    assert shift[:, :, 0, 0].std() == pytest.approx(0.5, rel=0.05)


def test_adaptive_offset_follows_the_latents_and_never_turns_negative():
    generators = lambda: [generator(1, "noise", 0)]  # noqa: E731
    base = training_noise((1, 4, 8, 8), generators(), offset=1.0) - training_noise((1, 4, 8, 8), generators())
    for latent, adaptive, strength in ((2.0, 0.1, 0.1 + 0.2), (-2.0, 0.1, 0.1 + 0.2), (2.0, -1.0, 0.0)):
        latents = torch.full((1, 4, 8, 8), latent)
        noise = training_noise((1, 4, 8, 8), generators(), offset=0.1, adaptive_offset=adaptive, latents=latents)
        plain = training_noise((1, 4, 8, 8), generators())
        torch.testing.assert_close(noise - plain, strength * base, rtol=1e-3, atol=1e-5)


def test_pyramid_noise_has_unit_variance_and_more_in_the_low_frequencies():
    generators = lambda: [generator(2, "noise", i) for i in range(40)]  # noqa: E731
    shape = (40, 4, 32, 32)
    pyramid = training_noise(shape, generators(), pyramid_iterations=6, pyramid_discount=0.6)
    assert torch.allclose(pyramid.flatten(1).std(dim=1), torch.tensor(1.0), atol=1e-5)
    plain = training_noise(shape, generators())
    coarse = [torch.nn.functional.avg_pool2d(noise, 8).var() for noise in (pyramid, plain)]
    assert coarse[0] > 4 * coarse[1]


def test_input_perturbation():
    shape = (3, 4, 32, 32)
    noise = training_noise(shape, [generator(1, "noise", i) for i in range(3)])
    fresh = lambda: [generator(1, "perturb", i) for i in range(3)]  # noqa: E731
    assert perturb_input(noise, fresh(), 0.0) is noise
    perturbed = perturb_input(noise, fresh(), 0.1)
    assert (perturbed - noise).std() == pytest.approx(0.1, rel=0.05)


def test_a_generator_per_sample_is_demanded():
    with pytest.raises(ValueError, match="generators"):
        training_noise((2, 4, 8, 8), [generator(1, "noise", 0)])
