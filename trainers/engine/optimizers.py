"""The optimizers by name: how each is made, what it wants, and what it keeps in memory.

A new optimizer is one more entry in `OPTIMIZERS` (and its name in `trainers/options.py`). Each one can be resumed
bit for bit from its `state_dict`.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from trainers.engine.ema import replaced
from trainers.errors import InputError, did_you_mean

# Learning rates for AdamW: trainers' experience (SD1 adapters bear about twice SDXL's rate), to be measured against.
_ADAMW_RATES = {
    "lora": {"sd1": 2e-4, "sd2": 2e-4, "sdxl": 1e-4},
    "textual_inversion": {"sd1": 2e-3, "sd2": 2e-3, "sdxl": 2e-3},
    "pivotal": {"sd1": 2e-4, "sd2": 2e-4, "sdxl": 1e-4},
    "hypernetwork": {"sd1": 5e-5, "sd2": 5e-5, "sdxl": 2e-5},
    "dreambooth": {"sd1": 2e-6, "sd2": 2e-6, "sdxl": 1e-6},
}
_FALLBACK_RATE = 1e-4
TEXT_ENCODER_SHARE = 0.25


@dataclass(frozen=True)
class OptimizerKind:
    """One optimizer.

    Attributes:
        make: gives the class; imports its package only now, and raises InputError when that cannot be.
        defaults: arguments that differ from the class's own.
        rate_factor: its usual learning rate as a multiple of AdamW's; None where the rate is 1.0 by design.
        single_rate: all parameters must have one rate (it finds the real one itself).
        state_bytes: memory of its state per trained float32 parameter, for the memory plan.
    """

    make: Callable[[], type[torch.optim.Optimizer]]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    rate_factor: float | None = 1.0
    single_rate: bool = False
    state_bytes: float = 8.0


def _from_package(package: str, module: str, name: str, why: str) -> Callable[[], type[torch.optim.Optimizer]]:
    def make() -> type[torch.optim.Optimizer]:
        try:
            return getattr(importlib.import_module(module), name)
        except Exception as error:
            raise InputError(
                f"optimizer: {why} needs the package {package}, which cannot be imported here "
                f"({type(error).__name__}); install it, or use optimizer adamw."
            ) from error

    return make


def _adamw8bit() -> type[torch.optim.Optimizer]:
    if not torch.cuda.is_available():
        raise InputError("optimizer: adamw8bit needs a CUDA GPU, and there is none here; use adamw or adafactor.")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise InputError(
            "optimizer: adamw8bit needs the package bitsandbytes, which is not installed; "
            "install it into the trainer's environment, or use adamw or adafactor."
        )
    return _from_package("bitsandbytes", "bitsandbytes.optim", "AdamW8bit", "adamw8bit")()


def _lion() -> type[torch.optim.Optimizer]:
    from trainers.engine.lion import Lion

    return Lion


OPTIMIZERS: dict[str, OptimizerKind] = {
    "adamw": OptimizerKind(lambda: torch.optim.AdamW),
    "adamw8bit": OptimizerKind(_adamw8bit, state_bytes=2.0),
    # Bias correction and the safeguard are what Prodigy's authors recommend for diffusion models and with warm-up.
    "prodigy": OptimizerKind(
        _from_package("prodigyopt", "prodigyopt", "Prodigy", "prodigy"),
        {"use_bias_correction": True, "safeguard_warmup": True},
        rate_factor=None,
        single_rate=True,
        state_bytes=16.0,
    ),
    # The rate comes from our schedule, so Adafactor's own two ways of choosing one are off.
    "adafactor": OptimizerKind(
        _from_package("transformers", "transformers.optimization", "Adafactor", "adafactor"),
        {"scale_parameter": False, "relative_step": False, "warmup_init": False},
        state_bytes=0.5,
    ),
    "lion": OptimizerKind(_lion, rate_factor=1 / 3, state_bytes=4.0),
    # Its authors: 1 to 10 times the rate of a run with a falling schedule.
    "schedulefree": OptimizerKind(
        _from_package("schedulefree", "schedulefree", "AdamWScheduleFree", "schedulefree"), rate_factor=2.0
    ),
}

# Given by options of their own, or changing what the loop relies on.
_RESERVED = {
    "lr": "learning_rate",
    "weight_decay": "weight_decay",
    "warmup_steps": "warmup",
}
_HIDDEN = {"self", "params", "maximize", "differentiable", "capturable", "fsdp_in_use", "args", "kwargs"}


def default_learning_rate(job, family: str) -> float:
    """`job.learning_rate`, or the optimizer's usual one for this method and family."""
    if job.learning_rate is not None:
        return job.learning_rate
    kind = OPTIMIZERS[job.optimizer]
    if kind.rate_factor is None:
        return 1.0
    return _ADAMW_RATES.get(job.method, {}).get(family, _FALLBACK_RATE) * kind.rate_factor


def default_embedding_lr(job, family: str) -> float:
    """The usual rate of a word's vectors that learn beside a LoRA; the same one with `single_rate`."""
    kind = OPTIMIZERS[job.optimizer]
    if kind.single_rate or kind.rate_factor is None:
        return default_learning_rate(job, family)
    return _ADAMW_RATES["textual_inversion"][family] * kind.rate_factor


def default_text_encoder_lr(job, family: str) -> float:
    """The text encoders' rate: `job.text_encoder_lr`, or a quarter of the UNet's; the same one with `single_rate`."""
    if job.text_encoder_lr is not None:
        return job.text_encoder_lr
    share = 1.0 if OPTIMIZERS[job.optimizer].single_rate else TEXT_ENCODER_SHARE
    return default_learning_rate(job, family) * share


def _convert(text: str) -> Any:
    """A number, yes/no, none, a row of numbers in brackets or with commas, or else the text itself."""
    text = text.strip()
    word = text.lower()
    if word in ("true", "false"):
        return word == "true"
    if word == "none":
        return None
    inner = text[1:-1] if text[:1] + text[-1:] in ("()", "[]") else text
    if inner != text or "," in inner:
        return tuple(_convert(part) for part in inner.split(",") if part.strip())
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value)


def _wrong_kind(value: Any, default: Any) -> str | None:
    """What an argument with this default takes, where `value` is not that; None when it fits."""
    if isinstance(default, bool):
        return None if isinstance(value, bool) else "true or false"
    if isinstance(default, (tuple, list)):
        fits = isinstance(value, tuple) and len(value) == len(default) and all(map(_is_number, value))
        return None if fits else f"{len(default)} numbers, such as {','.join(map(str, default))}"
    if _is_number(default):
        return None if _is_number(value) else "a number"
    if default is None and isinstance(value, str):
        return "a number, true or false, or none"
    return None


def parse_arguments(arguments: Sequence[str], constructor: Callable) -> dict[str, Any]:
    """`name=value` texts as keyword arguments of `constructor`; every problem in one InputError."""
    known = {name: p.default for name, p in inspect.signature(constructor).parameters.items() if name not in _HIDDEN}
    offered = [name for name in known if name not in _RESERVED]
    values: dict[str, Any] = {}
    problems = []
    for argument in arguments:
        name, separator, text = (part.strip() for part in str(argument).partition("="))
        if not separator or not name or not text:
            problems.append(f"optimizer_args: {argument!r} will not do; write each as name=value.")
        elif name in _RESERVED:
            problems.append(f"optimizer_args: {name} is set with the option {_RESERVED[name]}.")
        elif name not in offered:
            near = did_you_mean(name, offered) or f" It has {', '.join(offered)}."
            problems.append(f"optimizer_args: this optimizer has no argument {name!r}.{near}")
        else:
            values[name] = _convert(text)
            wanted = _wrong_kind(values[name], known[name])
            if wanted:
                problems.append(f"optimizer_args: {name}={text} will not do; it takes {wanted}.")
    if problems:
        raise InputError(*problems)
    return values


def _check_single_rate(name: str, groups: Sequence[Mapping[str, Any]]) -> None:
    rates = {group["lr"] for group in groups if group.get("lr")}
    if len(rates) > 1:
        raise InputError(
            f"optimizer: {name} finds the learning rate itself, so all parts must have the same one; "
            "leave text_encoder_lr empty (or 0) and block_lrs empty, or use adamw."
        )


def check(job) -> None:
    """Raises InputError when the job's optimizer cannot be made here; imports it, makes nothing."""
    parse_arguments(job.optimizer_args, OPTIMIZERS[job.optimizer].make().__init__)


def make_optimizer(param_groups: Sequence[dict[str, Any]], job) -> torch.optim.Optimizer:
    """The job's optimizer over groups `{"params": [...], "lr": base rate, ...}`; other keys of a group are kept.

    Weight decay is the job's, unless a group has its own. Raises InputError for a package or device that is missing,
    and for arguments that the optimizer does not know.
    """
    kind = OPTIMIZERS[job.optimizer]
    constructor = kind.make()
    arguments = {**kind.defaults, **parse_arguments(job.optimizer_args, constructor.__init__)}
    if kind.single_rate:
        _check_single_rate(job.optimizer, param_groups)
    groups = [{"weight_decay": job.weight_decay, **group} for group in param_groups]
    if job.optimizer == "adamw" and not {"foreach", "fused"} & set(arguments):
        # One launch for all parameters; the same arithmetic.
        arguments["fused"] = all(each.device.type == "cuda" for group in groups for each in group["params"])
    try:
        # Prodigy prints from its constructor, in the middle of a progress bar.
        with contextlib.redirect_stdout(io.StringIO()):
            optimizer = constructor(groups, **arguments)
    except (TypeError, ValueError) as error:
        raise InputError(f"optimizer_args: {job.optimizer} does not take these values ({error}).") from error
    if hasattr(optimizer, "train"):
        optimizer.train()  # schedule-free: with no state yet this only says that what follows is training
    return optimizer


def set_rates(optimizer: torch.optim.Optimizer, base_rates: Sequence[float], factor: float) -> None:
    """Gives every parameter group its base rate times `factor` (see `lr_schedules.factor`)."""
    for group, rate in zip(optimizer.param_groups, base_rates, strict=True):
        group["lr"] = rate * factor


def effective_rates(optimizer: torch.optim.Optimizer) -> list[float]:
    """The rate each group really steps with, for the log: Prodigy's is its estimate d times the set one."""
    return [float(group["lr"]) * float(group.get("d", 1.0)) for group in optimizer.param_groups]


@contextmanager
def evaluation_weights(
    optimizer: torch.optim.Optimizer, parameters: Sequence[torch.Tensor] | None = None
) -> Iterator[None]:
    """Inside the `with` the parameters (all, or those given) hold what is to be saved and shown.

    Afterwards they hold exactly their former bits.

    For schedule-free that is the average x = y + (1 - 1/beta1)(z - y) (https://arxiv.org/abs/2405.15682); its own
    way back, from x to y, would change the last bits, and a run with a preview would differ from one without.
    Every other optimizer trains the weights that are shown.
    """
    if not (hasattr(optimizer, "eval") and hasattr(optimizer, "train")):
        yield
        return
    wanted = None if parameters is None else {id(parameter) for parameter in parameters}
    changed, averages = [], []
    for group in optimizer.param_groups:
        weight = 1.0 - 1.0 / group["betas"][0]
        for parameter in group["params"]:
            z = optimizer.state.get(parameter, {}).get("z")
            if z is not None and (wanted is None or id(parameter) in wanted):
                changed.append(parameter)
                averages.append(parameter.detach().lerp(z, weight))
    with replaced(changed, averages):
        yield
