"""Frozen layers whose weights stay in the number format they are stored in.

Under autocast, or over 8-bit weights, plain autograd keeps a cast copy of every weight until the backward pass, so a
small format would save nothing. Here the backward pass holds the stored weight itself and casts it a second time.

8-bit weights are float8 e4m3fn with one scale per output row, a power of two, so casting back is exact in bfloat16,
float16 and float32. On Gaussian weights the relative error |W8 - W| / |W| is 0.027 at any size; without a scale it
would be 0.11 at a standard deviation of 0.005, where the format runs out of exponents. Both are checked in
tests/test_engine_frozen.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainers.errors import InputError

FP8 = getattr(torch, "float8_e4m3fn", None)
FP8_MAX = 448.0
# float16 holds powers of two down to 2^-24; a smaller scale could not be cast to it.
_SMALLEST_EXPONENT = -24


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """float8 e4m3fn values and a float32 scale per output row, [out, 1, ...]: weight is about values * scale.

    The scale is the smallest power of two that keeps the row's largest value within the format's range.
    """
    rows = weight.detach().float()
    largest = rows.flatten(1).abs().amax(dim=1)
    exponent = torch.ceil(torch.log2(largest / FP8_MAX)).clamp(min=_SMALLEST_EXPONENT)
    exponent = torch.where(largest > 0, exponent, torch.zeros_like(exponent))
    scale = torch.exp2(exponent).view(-1, *[1] * (weight.ndim - 1))
    return (rows / scale).clamp(-FP8_MAX, FP8_MAX).to(FP8), scale


def _decode_on_cpu(values: Tensor) -> Tensor:
    """float8 e4m3fn / 256 as float16, by moving bits: ten times as fast as torch's own cast, which is not vectorised.

    Both formats hold sign, exponent, mantissa in this order; float16 has one bit more of exponent, biased by 8 more
    (hence the 256), and seven more of mantissa.
    """
    bits = values.view(torch.int8).to(torch.int16).bitwise_left_shift_(7)
    return bits.bitwise_and_(~0x4000).view(torch.float16)  # the sign was carried into the new exponent bit too


def recast(weight: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The weight to compute with; the stored tensor itself where it already has that format."""
    if scale is None:
        return weight.to(dtype)
    if weight.device.type != "cpu":
        return weight.to(dtype).mul_(scale.to(dtype))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return _decode_on_cpu(weight).to(wide).mul_(scale * 256).to(dtype)


def _hold(ctx, weight: Tensor, scale: Tensor | None) -> None:
    """Keeps the stored weight for the backward pass; autograd refuses to save what was made in inference mode."""
    ctx.scale = scale
    if weight.is_inference():
        ctx.weight = weight
    else:
        ctx.weight = None
        ctx.save_for_backward(weight)


def _held(ctx, dtype: torch.dtype) -> Tensor:
    weight = ctx.weight if ctx.weight is not None else ctx.saved_tensors[0]
    return recast(weight, ctx.scale, dtype)


class _Linear(torch.autograd.Function):
    """x W^T + b for a frozen W, with the gradient of x alone."""

    @staticmethod
    def forward(ctx, x, weight, scale, bias):
        _hold(ctx, weight, scale)
        return F.linear(x, recast(weight, scale, x.dtype), bias)

    @staticmethod
    def backward(ctx, gradient):
        return gradient @ _held(ctx, gradient.dtype), None, None, None


class _Conv2d(torch.autograd.Function):
    """A convolution with a frozen kernel, with the gradient of x alone."""

    @staticmethod
    def forward(ctx, x, weight, scale, bias, stride, padding, dilation, groups):
        _hold(ctx, weight, scale)
        ctx.shape, ctx.settings = x.shape, (stride, padding, dilation, groups)
        return F.conv2d(x, recast(weight, scale, x.dtype), bias, stride, padding, dilation, groups)

    @staticmethod
    def backward(ctx, gradient):
        kernel = _held(ctx, gradient.dtype)
        found = torch.nn.grad.conv2d_input(ctx.shape, kernel, gradient, *ctx.settings)
        return found, None, None, None, None, None, None, None


class _Frozen:
    """What both kinds of layer share. A layer becomes frozen by a change of class, so `isinstance(layer, nn.Linear)`
    and every reference to the layer stay true."""

    def _apply(self, fn, recurse=True):
        """Moves between devices as usual, but `.to(dtype)` and `.half()` leave the stored format alone."""
        stored, scale = self.weight.detach(), self.weight_scale  # detached: the parameter is changed in place
        super()._apply(fn, recurse)
        device = self.weight.device
        if self.weight.dtype != stored.dtype:
            self.weight = nn.Parameter(stored.to(device), requires_grad=False)
        if scale is not None and self.weight_scale.dtype != scale.dtype:
            self.weight_scale = scale.to(device)
        return self

    def _inputs(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        dtype = self.compute_dtype or x.dtype
        return x.to(dtype), None if self.bias is None else self.bias.to(dtype)


class FrozenLinear(_Frozen, nn.Linear):
    """`nn.Linear` over a stored weight; computes in `compute_dtype`, or in the input's format where that is None."""

    def forward(self, x: Tensor) -> Tensor:
        x, bias = self._inputs(x)
        return _Linear.apply(x, self.weight, self.weight_scale, bias)


class FrozenConv2d(_Frozen, nn.Conv2d):
    """`nn.Conv2d` over a stored weight, with every padding that `nn.Conv2d` has."""

    def forward(self, x: Tensor) -> Tensor:
        x, bias = self._inputs(x)
        padding = self.padding
        if self.padding_mode != "zeros" or isinstance(padding, str):
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            x, padding = F.pad(x, self._reversed_padding_repeated_twice, mode=mode), (0, 0)
        return _Conv2d.apply(x, self.weight, self.weight_scale, bias, self.stride, padding, self.dilation, self.groups)


_FROZEN = {nn.Linear: FrozenLinear, nn.Conv2d: FrozenConv2d}

# Few weights, and every output passes through them: not worth 8 bits.
SENSITIVE = ("conv_in", "conv_out", "time_embedding", "time_emb_proj", "add_embedding")


def is_sensitive(name: str) -> bool:
    """Whether a layer of this name is kept out of 8-bit storage."""
    return any(part in SENSITIVE for part in name.split("."))


@dataclass(frozen=True)
class Frozen:
    """What was done: number of layers, and bytes of their weights before and after."""

    layers: int
    bytes_before: int
    bytes_after: int


def check_fp8(device: torch.device | str = "cpu") -> None:
    """InputError when this torch or this device has no float8 e4m3fn."""
    problem = FP8 is None
    if not problem:
        try:
            torch.ones(1, device=device).to(FP8).to(torch.float32)
        except (RuntimeError, TypeError, NotImplementedError):
            problem = True
    if problem:
        raise InputError(f"base_dtype: fp8 cannot be used with this torch on {device}; use bf16, fp16 or fp32.")


def _freeze(layer: nn.Module, storage_dtype: torch.dtype, compute_dtype: torch.dtype | None) -> None:
    weight = layer.weight.detach()
    scale = None
    if storage_dtype != weight.dtype:
        weight, scale = quantize(weight) if storage_dtype == FP8 else (weight.to(storage_dtype), None)
        layer.weight = nn.Parameter(weight, requires_grad=False)
    layer.__class__ = _FROZEN[type(layer)]
    layer.compute_dtype = compute_dtype
    layer.register_buffer("weight_scale", scale)
    if layer.bias is not None and compute_dtype is not None and layer.bias.dtype != compute_dtype:
        layer.bias = nn.Parameter(layer.bias.detach().to(compute_dtype), requires_grad=False)


def _own_small_inference_tensors(module: nn.Module) -> None:
    """Autograd saves the weights of norms, and refuses those made in inference mode: these few get copies."""
    for layer in module.modules():
        for name, parameter in list(layer.named_parameters(recurse=False)):
            if parameter.ndim < 2 and parameter.is_inference():
                setattr(layer, name, nn.Parameter(parameter.detach().clone(), requires_grad=False))


def thaw(module: nn.Module) -> None:
    """Makes stored-weight layers without a scale ordinary ones again, in place, for code that asks for their class."""
    for layer in module.modules():
        if isinstance(layer, _Frozen) and layer.weight_scale is None:
            layer.__class__ = next(plain for plain, frozen in _FROZEN.items() if frozen is type(layer))


def freeze_module_weights(
    module: nn.Module,
    storage_dtype: torch.dtype | None,
    compute_dtype: torch.dtype | None = None,
    skip: Callable[[str], bool] = is_sensitive,
) -> Frozen:
    """Turns every frozen `nn.Linear` and `nn.Conv2d` in `module` (or `module` itself) into a stored-weight layer.

    Args:
        storage_dtype: the format weights are kept in; `torch.float8_e4m3fn` also gets a scale per output row. None
            keeps each tensor as it is, without a copy (weights that are shared with another process or mapped).
        compute_dtype: the format layers compute in; None means that of each input.
        skip: layers, by name, that are not turned to 8 bits.

    Layers with a trainable weight (an adapter's own), other classes, and layers that already are in the format they
    compute in stay what they are and cost nothing. Put PEFT's adapters in first: PEFT gives an adapter the base
    weight's format. Raises InputError where 8-bit floats do not exist.
    """
    if FP8 is not None and storage_dtype == FP8:
        check_fp8(next(module.parameters()).device)
    layers = before = after = 0
    for name, layer in list(module.named_modules()):
        if type(layer) not in _FROZEN or layer.weight.requires_grad:
            continue
        present = layer.weight.dtype
        wanted = storage_dtype or present
        if wanted == FP8 and skip(name):
            wanted = compute_dtype or present
        if wanted == present and compute_dtype in (None, present) and not layer.weight.is_inference():
            continue
        before += layer.weight.nbytes
        _freeze(layer, wanted, compute_dtype)
        after += layer.weight.nbytes + (0 if layer.weight_scale is None else layer.weight_scale.nbytes)
        layers += 1
    _own_small_inference_tensors(module)
    return Frozen(layers, before, after)
