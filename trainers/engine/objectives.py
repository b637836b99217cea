"""What the model is asked for, and how its error is weighed: pure functions of tensors.

Notation: `t` [B] int64 timesteps, `alphas_cumprod` [T] the products of (1 - beta), x_t = a x_0 + s eps with
a = sqrt(alphas_cumprod[t]) and s = sqrt(1 - alphas_cumprod[t]). Nothing here averages over the batch: every result
keeps its first axis, so that several processes can add up their shares.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _at(values: Tensor, t: Tensor, like: Tensor) -> Tensor:
    """values[t] in float32, shaped [B, 1, 1, ...] so that it multiplies `like` [B, ...]."""
    picked = values.to(device=t.device, dtype=torch.float32)[t]
    return picked.view(-1, *[1] * (like.ndim - 1)).to(like.device)


def signal_and_noise(t: Tensor, alphas_cumprod: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """The factors a and s of x_t = a x_0 + s eps, each [B, 1, 1, ...] in float32."""
    alpha = _at(alphas_cumprod, t, like)
    return alpha.sqrt(), (1.0 - alpha).sqrt()


def add_noise(latents: Tensor, noise: Tensor, t: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """x_t = a x_0 + s eps (DDPM, https://arxiv.org/abs/2006.11239, eq. 4), in the dtype of `latents` [B, ...]."""
    a, s = signal_and_noise(t, alphas_cumprod, latents)
    return (a * latents + s * noise).to(latents.dtype)


def target(prediction: str, latents: Tensor, noise: Tensor, t: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """What the model should answer: "epsilon" the noise; "v" a eps - s x_0 (https://arxiv.org/abs/2202.00512)."""
    if prediction == "epsilon":
        return noise
    if prediction == "v":
        a, s = signal_and_noise(t, alphas_cumprod, latents)
        return (a * noise - s * latents).to(latents.dtype)
    raise ValueError(f"unknown prediction type {prediction!r}")


def snr(t: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """Signal-to-noise ratio a^2 / s^2 at each timestep, [B] float32; 0 where the schedule ends in pure noise."""
    alpha = alphas_cumprod.to(device=t.device, dtype=torch.float32)[t]
    return alpha / (1.0 - alpha)


def sample_weights(
    t: Tensor, alphas_cumprod: Tensor, prediction: str, min_snr_gamma: float = 0.0, debiased: bool = False
) -> Tensor:
    """The weight of each sample's squared error, [B] float32.

    Both weightings are stated for the error of the noise and carried over to v through
    |v error|^2 = (1 + 1/snr) |epsilon error|^2, so that they mean the same for either kind of model:
    - min-SNR (https://arxiv.org/abs/2303.09556): min(snr, gamma)/snr for epsilon, min(snr, gamma)/(snr + 1) for v;
    - debiased estimation (https://arxiv.org/abs/2310.08442): 1/sqrt(snr) for epsilon, sqrt(snr)/(snr + 1) for v.
    A gamma of 0 and `debiased` False give ones.
    """
    ratio = snr(t, alphas_cumprod)
    if debiased:
        if prediction == "v":
            return ratio.sqrt() / (ratio + 1.0)
        return ratio.clamp(min=1e-8).rsqrt()
    if min_snr_gamma > 0:
        if prediction == "v":
            return ratio.clamp(max=min_snr_gamma) / (ratio + 1.0)
        return (min_snr_gamma / ratio).clamp(max=1.0)
    return torch.ones_like(ratio)


def rescale_zero_terminal_snr(alphas_cumprod: Tensor) -> Tensor:
    """The schedule shifted and stretched so that its last step holds no signal: Algorithm 1 of
    https://arxiv.org/abs/2305.08891. Takes and gives [T]; the first value stays, the last becomes exactly 0."""
    root = alphas_cumprod.double().sqrt()
    first, last = root[0], root[-1]
    return (((root - last) * first / (first - last)) ** 2).to(alphas_cumprod.dtype)


def zero_terminal_snr_problem(prediction: str, zero_terminal_snr: bool) -> str | None:
    """Why a noise schedule that ends in pure noise cannot be used with this model; None when it can.

    At the last step the input of an epsilon model is its own target, so nothing about the picture could be learned.
    """
    if zero_terminal_snr and prediction != "v":
        return (
            "zero_terminal_snr: needs a model that predicts v, but this one predicts epsilon; "
            "turn zero_terminal_snr off, or set prediction to v if the model really predicts v."
        )
    return None


def timesteps_from_uniform(u: Tensor, sampling: str, t_min: int = 0, t_max: int = 999) -> Tensor:
    """Timesteps [B] int64 from t_min to t_max, both included, for uniform numbers `u` [B] in [0, 1).

    - "uniform": all alike;
    - "sigmoid": the sigmoid of a normal number (https://arxiv.org/abs/2403.03206), middle ones more often;
    - "early": density falling linearly, little noise more often (details);
    - "late": density rising linearly, much noise more often (composition).
    """
    x = u.double()
    if sampling == "sigmoid":
        x = torch.sigmoid(torch.special.ndtri(x))
    elif sampling == "early":
        x = 1.0 - (1.0 - x).sqrt()
    elif sampling == "late":
        x = x.sqrt()
    elif sampling != "uniform":
        raise ValueError(f"unknown timestep sampling {sampling!r}")
    count = t_max - t_min + 1
    return (x * count).floor().long().clamp(0, count - 1) + t_min


def huber_threshold(t: Tensor, alphas_cumprod: Tensor, huber_c: float, schedule: str) -> Tensor:
    """Where the Huber loss turns from square to straight, per sample [B] (https://arxiv.org/abs/2403.16728).

    - "constant": huber_c;
    - "exponential": huber_c ** (t / T), from 1 down to huber_c;
    - "snr": huber_c + (1 - huber_c) / (1 + sigma)^2 with sigma = s / a; huber_c itself at pure noise.
    """
    if schedule == "constant":
        return torch.full(t.shape, float(huber_c), device=t.device)
    if schedule == "exponential":
        return torch.as_tensor(float(huber_c), device=t.device) ** (t.float() / len(alphas_cumprod))
    if schedule == "snr":
        sigma = snr(t, alphas_cumprod).rsqrt()
        return huber_c + (1.0 - huber_c) / (1.0 + sigma) ** 2
    raise ValueError(f"unknown huber schedule {schedule!r}")


def elementwise_loss(pred: Tensor, wanted: Tensor, kind: str, threshold: Tensor | float | None = None) -> Tensor:
    """The error of each element in float32, same shape as `pred` [B, ...]; `threshold` is [B] or one number.

    With d = pred - wanted and c the threshold: "l2" d^2; "huber" 2 c (sqrt(d^2 + c^2) - c), which is d^2 near zero;
    "smooth_l1" 2 (sqrt(d^2 + c^2) - c), which keeps the slope of 2 |d| far from zero.
    """
    difference = pred.float() - wanted.float()
    if kind == "l2":
        return difference.square()
    if threshold is None:
        raise ValueError(f"the loss {kind!r} needs a threshold")
    c = torch.as_tensor(threshold, dtype=torch.float32, device=difference.device)
    c = c.reshape(-1, *[1] * (difference.ndim - 1))
    # sqrt(d^2 + c^2) - c loses all digits for small d; this is the same number without the subtraction.
    excess = difference.square() / ((difference.square() + c.square()).sqrt() + c)
    if kind == "huber":
        return 2.0 * c * excess
    if kind == "smooth_l1":
        return 2.0 * excess
    raise ValueError(f"unknown loss {kind!r}")


def masked_mean(loss: Tensor, mask: Tensor | None = None, unmasked_weight: float = 0.0) -> Tensor:
    """The mean error of each sample, [B], from `loss` [B, C, H, W].

    `mask` [B, 1, H, W] from 0 to 1 says how much each place counts; places outside count `unmasked_weight`. The mean
    is taken over what counts, so that a small subject weighs as much as a large one; an empty mask gives 0.
    """
    if mask is None:
        return loss.flatten(1).mean(dim=1)
    weight = mask.to(loss) + (1.0 - mask.to(loss)) * unmasked_weight
    weight = weight.expand_as(loss).flatten(1)
    return (loss.flatten(1) * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1e-6)
