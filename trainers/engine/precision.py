"""Which device and which number format a run computes with."""

from __future__ import annotations

import os

import torch

from trainers.errors import InputError, did_you_mean
from trainers.spec import AUTO_DEVICE

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
DEVICE_TYPES = ("cpu", "cuda", "mps", "xpu")


def _available(kind: str) -> bool:
    if kind == "cpu":
        return True
    if kind == "cuda":
        return torch.cuda.is_available()
    backend = torch.backends.mps if kind == "mps" else getattr(torch, kind, None)
    return backend is not None and backend.is_available()


def device_for(wanted: str) -> torch.device:
    """The device named by the option `device`; "auto" takes the one that a WebUI named, else the best one there is.

    Raises InputError for a name that is none, and for a device that this machine or this torch does not have.
    """
    if wanted == "auto":
        wanted = os.environ.get(AUTO_DEVICE, "").strip() or wanted
    if wanted == "auto":
        return _first(next(kind for kind in ("cuda", "xpu", "mps", "cpu") if _available(kind)))
    kind, _, number = wanted.strip().lower().partition(":")
    if kind not in DEVICE_TYPES or (number and not number.isdigit()):
        hint = did_you_mean(kind, ("auto", *DEVICE_TYPES))
        raise InputError(f"device: {wanted!r} is no device; use auto, cpu, cuda, cuda:1, mps or xpu.{hint}")
    if not _available(kind):
        raise InputError(f"device: {wanted!r} was asked for, but torch finds no such device here; use auto or cpu.")
    if number:
        count = getattr(torch, kind).device_count() if kind in ("cuda", "xpu") else 1
        if int(number) >= count:
            raise InputError(f"device: {wanted!r} was asked for, but there are only {count} (counted from 0).")
        return torch.device(kind, int(number))
    return _first(kind)


def _first(kind: str) -> torch.device:
    """The first device of a kind, with its number, as tensors name it: "cuda" is not equal to their "cuda:0"."""
    return torch.device(kind) if kind == "cpu" else torch.device(kind, 0)


def bf16_is_fast(device: torch.device) -> bool:
    """Whether the device computes bfloat16 in hardware (torch also emulates it, slowly, and calls that supported)."""
    if device.type == "cuda":
        if torch.version.hip:
            return torch.cuda.is_bf16_supported()
        return torch.cuda.get_device_capability(device)[0] >= 8
    return device.type == "xpu"


def resolve(precision: str, device: torch.device) -> torch.dtype:
    """The number format the model computes in; "auto" is bf16 or fp16 on CUDA, and fp32 on the CPU and on Apple's GPU.

    The trained parameters are float32 in every case. Raises InputError for fp16 on the CPU.
    """
    if precision == "auto":
        if device.type in ("cuda", "xpu"):
            return torch.bfloat16 if bf16_is_fast(device) else torch.float16
        return torch.float32
    if precision == "fp16" and device.type == "cpu":
        raise InputError("precision: fp16 cannot be trained on the CPU; use bf16 or fp32.")
    return DTYPES[precision]


def needs_loss_scaling(dtype: torch.dtype) -> bool:
    """Whether gradients would underflow without a scaled loss: float16 alone has too few exponents."""
    return dtype == torch.float16


def loss_scaler(dtype: torch.dtype, device: torch.device):
    """A scaler for losses in float16, or None where gradients do not underflow; with the names of every torch."""
    if not needs_loss_scaling(dtype):
        return None
    if hasattr(torch.amp, "GradScaler"):  # torch 2.3 and later
        return torch.amp.GradScaler(device.type)
    return torch.cuda.amp.GradScaler(enabled=device.type == "cuda")


def name_of(dtype: torch.dtype) -> str:
    """ "fp32", "bf16" or "fp16"."""
    return next(name for name, known in DTYPES.items() if known == dtype)
