"""Samplers and noise schedules by the names that A1111 uses, made of diffusers' schedulers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import diffusers
import numpy as np
import torch
from torch import Tensor

from trainers.errors import InputError, did_you_mean

AUTOMATIC = "Automatic"


@dataclass(frozen=True)
class Sampler:
    """One entry of the list.

    Attributes:
        scheduler: class in diffusers; `arguments` for its constructor.
        automatic: the schedule that "Automatic" means.
        free: takes any list of sigmas; others know some schedules only (`Schedule.flags`), or one (`fixed`).
        calls: calls of the UNet per step (the last step has one).
        random: adds fresh noise at every step.
    """

    name: str
    scheduler: str
    aliases: tuple[str, ...] = ()
    arguments: Mapping[str, Any] = field(default_factory=dict)
    automatic: str = "Uniform"
    free: bool = True
    fixed: bool = False
    calls: int = 1
    random: bool = False


_SDE = {"algorithm_type": "sde-dpmsolver++"}
_DDIM = {"clip_sample": False, "timestep_spacing": "leading", "steps_offset": 1}

SAMPLERS = (
    Sampler("DPM++ 2M", "DPMSolverMultistepScheduler", ("k_dpmpp_2m",), automatic="Karras"),
    Sampler(
        "DPM++ 2M SDE",
        "DPMSolverMultistepScheduler",
        ("k_dpmpp_2m_sde",),
        _SDE,
        automatic="Exponential",
        random=True,
    ),
    Sampler(
        "DPM++ 2M SDE Heun",
        "DPMSolverMultistepScheduler",
        ("k_dpmpp_2m_sde_heun",),
        {**_SDE, "solver_type": "heun"},
        automatic="Exponential",
        random=True,
    ),
    Sampler("Euler a", "EulerAncestralDiscreteScheduler", ("k_euler_a", "k_euler_ancestral"), random=True),
    Sampler("Euler", "EulerDiscreteScheduler", ("k_euler",)),
    Sampler("Heun", "HeunDiscreteScheduler", ("k_heun",), free=False, calls=2),
    Sampler("DPM2", "KDPM2DiscreteScheduler", ("k_dpm_2",), automatic="Karras", free=False, calls=2),
    Sampler(
        "DPM2 a",
        "KDPM2AncestralDiscreteScheduler",
        ("k_dpm_2_a",),
        automatic="Karras",
        free=False,
        calls=2,
        random=True,
    ),
    Sampler("DDIM", "DDIMScheduler", ("ddim",), _DDIM, free=False, fixed=True),
    Sampler("UniPC", "UniPCMultistepScheduler", ("unipc",), free=False, fixed=True),
)


@dataclass(frozen=True)
class Schedule:
    """How the noise falls over the steps; `flags` for the schedulers that make their own sigmas."""

    name: str
    label: str
    flags: Mapping[str, Any] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    rho: float = -1


SCHEDULES = (
    Schedule("automatic", AUTOMATIC),
    Schedule("uniform", "Uniform"),
    Schedule("karras", "Karras", {"use_karras_sigmas": True}, rho=7.0),
    Schedule("exponential", "Exponential", {"use_exponential_sigmas": True}),
    Schedule("sgm_uniform", "SGM Uniform", {"timestep_spacing": "trailing"}, ("SGMUniform",)),
)


def find_schedule(name: str | None) -> Schedule:
    """The schedule of this name, label or alias, in any case; none means Automatic.

    Raises InputError.
    """
    wanted = (name or AUTOMATIC).strip().lower()
    for schedule in SCHEDULES:
        if wanted in (schedule.name, schedule.label.lower(), *(alias.lower() for alias in schedule.aliases)):
            return schedule
    labels = [schedule.label for schedule in SCHEDULES]
    raise InputError(
        f"scheduler: {name!r} is not one of {', '.join(labels)}.{did_you_mean(str(name), labels)}",
    )


def find_sampler(name: str | None) -> tuple[Sampler, Schedule | None]:
    """The sampler of this name or alias, in any case; and the schedule an older name ends with ("DPM++ 2M Karras").

    Raises InputError.
    """
    wanted = (name or "Euler a").strip().lower()
    for ending in (None, *SCHEDULES[1:]):
        base = wanted if ending is None else wanted.removesuffix(f" {ending.label.lower()}")
        if ending is not None and base == wanted:
            continue
        for sampler in SAMPLERS:
            if base in (sampler.name.lower(), *(alias.lower() for alias in sampler.aliases)):
                return sampler, ending
    names = [sampler.name for sampler in SAMPLERS]
    raise InputError(f"sampler: {name!r} is not one of {', '.join(names)}.{did_you_mean(str(name), names)}")


# --- sigmas, from the noisiest to the cleanest; the last is 0


def model_sigmas(alphas_cumprod: Tensor) -> np.ndarray:
    """Noise over signal at every timestep, rising."""
    ratio = (1 - alphas_cumprod.double()) / alphas_cumprod.double()
    return ratio.sqrt().numpy()


def sigma_at(sigmas: np.ndarray, timesteps: np.ndarray) -> np.ndarray:
    """Sigmas between whole timesteps, by interpolating their logarithms."""
    return np.exp(np.interp(timesteps, np.arange(len(sigmas)), np.log(sigmas)))


def timestep_of(sigmas: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The inverse of `sigma_at`."""
    return np.interp(np.log(np.maximum(wanted, 1e-10)), np.log(sigmas), np.arange(len(sigmas)))


def karras(first: float, last: float, steps: int, rho: float = 7.0) -> np.ndarray:
    """Karras et al. 2022 (arXiv:2206.00364), equation 5."""
    ramp = np.linspace(0, 1, steps)
    return (first ** (1 / rho) + ramp * (last ** (1 / rho) - first ** (1 / rho))) ** rho


def exponential(first: float, last: float, steps: int) -> np.ndarray:
    """Evenly spaced logarithms."""
    return np.exp(np.linspace(math.log(first), math.log(last), steps))


def make_sigmas(label: str, sigmas: np.ndarray, steps: int) -> np.ndarray:
    """`steps` + 1 sigmas of the schedule with this label."""
    end = len(sigmas) - 1
    if label == "Karras":
        made = karras(sigmas[-1], sigmas[0], steps)
    elif label == "Exponential":
        made = exponential(sigmas[-1], sigmas[0], steps)
    elif label == "SGM Uniform":
        made = sigma_at(sigmas, np.linspace(end, 0, steps + 1)[:-1])
    else:
        made = sigma_at(sigmas, np.linspace(end, 0, steps))
    return np.append(made, 0.0)


# --- making one


@lru_cache(maxsize=8)
def _betas(key: tuple[float, ...]) -> list[float]:
    alphas = np.asarray(key, dtype=np.float64)
    return (1 - alphas / np.concatenate([[1.0], alphas[:-1]])).tolist()


def _common(sampler: Sampler, alphas_cumprod: Tensor, prediction: str, zero_snr: bool) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "num_train_timesteps": len(alphas_cumprod),
        "trained_betas": _betas(tuple(alphas_cumprod.double().tolist())),
        "prediction_type": "v_prediction" if prediction == "v" else "epsilon",
        "timestep_spacing": "linspace",
        **sampler.arguments,
    }
    if zero_snr and sampler.name in ("DDIM", "UniPC"):
        arguments.update(rescale_betas_zero_snr=True, timestep_spacing="trailing")
    elif zero_snr and sampler.free:
        arguments["rescale_betas_zero_snr"] = True
    return arguments


def make_scheduler(
    sampler: Sampler,
    schedule: Schedule,
    alphas_cumprod: Tensor,
    steps: int,
    *,
    prediction: str = "epsilon",
    zero_snr: bool = False,
) -> Any:
    """A diffusers scheduler with its timesteps set.

    Args:
        alphas_cumprod: the model's, [T].
        prediction: "epsilon" or "v".
        zero_snr: the model's last timestep is pure noise.
    """
    label = sampler.automatic if schedule.label == AUTOMATIC else schedule.label
    arguments = _common(sampler, alphas_cumprod, prediction, zero_snr)
    if not sampler.free and not sampler.fixed:
        arguments.update(next(one.flags for one in SCHEDULES if one.label == label))
    scheduler = getattr(diffusers, sampler.scheduler)(**arguments)
    scheduler.set_timesteps(steps)
    if sampler.free:
        known = model_sigmas(scheduler.alphas_cumprod)
        sigmas = make_sigmas(label, known, steps)
        # These schedulers walk whatever list lies here; their constructors offer only some of the schedules.
        scheduler.sigmas = torch.from_numpy(sigmas.astype(np.float32))
        scheduler.timesteps = torch.from_numpy(timestep_of(known, sigmas[:-1]).astype(np.float32))
    return scheduler
