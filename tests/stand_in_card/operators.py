"""The arithmetic of the stand-in card: each operator that torch has for CUDA is computed by its twin for the processor,
over the same memory. What torch itself does on a card stays as it is: allocation, views, sharing between processes and
the counting of readers, generators' states. As on a card, operands that lie on different devices are refused.
"""

from __future__ import annotations

import ctypes
import os
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch

_library = torch.library.Library("aten", "IMPL")
_TORCHS_OWN = {
    "aten::empty.memory_format", "aten::empty_strided", "aten::resize_", "aten::_local_scalar_dense",
    "aten::record_stream", "aten::is_set_to", "aten::_efficientzerotensor", "aten::_pin_memory", "aten::is_pinned",
}  # fmt: skip
_ALSO = {"aten::copy_", "aten::convolution", "aten::convolution_backward"}
"""What has no kernel of its own for CUDA but starts one."""
_MIXED = {"aten::copy_", "aten::index", "aten::_index_put_impl_", "aten::_copy_from"}
"""What takes tensors of both devices."""
_LIBRARIES = ("cudnn", "miopen", "_cudnn", "_transform_bias", "_flash", "_efficient")
_MATHEMATICAL = 0
"""The kind of attention that is made of other operators (`SDPBackend.MATH`)."""


def on_processor(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory, as a tensor of the processor."""
    if not tensor.numel():
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
    storage = tensor.untyped_storage()
    memory = (ctypes.c_char * storage.nbytes()).from_address(storage.data_ptr())
    whole = torch.frombuffer(memory, dtype=torch.uint8).untyped_storage()
    view = torch.empty(0, dtype=tensor.dtype).set_(whole, tensor.storage_offset(), tensor.shape, tensor.stride())
    return torch._conj(view) if tensor.is_conj() else view


def on_card(tensor: torch.Tensor) -> torch.Tensor:
    """A copy of it on the card."""
    made = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cuda")
    if tensor.numel():
        on_processor(made).copy_(tensor)
    return made


def follower(given: torch.Generator | None) -> torch.Generator:
    """A generator for the processor that follows from the card's, which moves on."""
    card = torch.cuda.default_generators[0] if given is None else given
    state = card.get_state()
    seed_and_offset = state.view(torch.int64)
    made = torch.Generator().manual_seed((int(seed_and_offset[0]) * 1000003 + int(seed_and_offset[1])) % 2**63)
    seed_and_offset[1] += 4
    card.set_state(state)
    return made


def _each(value: Any, change: Callable[[torch.Tensor], Any]) -> Any:
    """A value with its tensors changed, those in lists too."""
    if isinstance(value, torch.Tensor):
        return change(value)
    return type(value)(_each(one, change) for one in value) if isinstance(value, (list, tuple)) else value


def _tensors(value: Any) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    _each(value, found.append)
    return found


class Operator:
    """One operator for CUDA, called with the arguments of its schema."""

    def __init__(self, name: str, op: Any) -> None:
        self.base_name = name.partition(".")[0]
        self.arguments, self.returns = op._schema.arguments, op._schema.returns
        self.op = TWINS.get(self.base_name, op)
        self.written = [one.name for one in self.arguments if one.alias_info is not None and one.alias_info.is_write]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        given = {one.name: value for one, value in zip(self.arguments, args, strict=False)} | kwargs
        self._refuse_mixture(given)
        values = {name: self._for_processor(name, value) for name, value in given.items()}
        if any(one.name == "generator" for one in self.arguments):
            values["generator"] = follower(given.get("generator"))
        return self._as_returned(self._compute(values), given)

    def _refuse_mixture(self, given: Mapping[str, Any]) -> None:
        tensors = [tensor for value in given.values() for tensor in _tensors(value)]
        elsewhere = any(not tensor.is_cuda and tensor.dim() for tensor in tensors)
        if elsewhere and any(tensor.is_cuda for tensor in tensors) and self.base_name not in _MIXED:
            raise RuntimeError(f"Expected all tensors to be on the same device: cuda:0 and cpu ({self.base_name})")

    def _for_processor(self, name: str, value: Any) -> Any:
        if name == "device":
            return "cpu"
        kind = next(str(one.type) for one in self.arguments if one.name == name)
        if kind == "Tensor" and isinstance(value, (bool, int, float)):  # torch hands numbers on as such
            return torch.tensor(value)
        return _each(value, lambda tensor: on_processor(tensor) if tensor.is_cuda else tensor)

    def _compute(self, values: Mapping[str, Any]) -> Any:
        try:
            if values.get("half_to_float"):
                raise RuntimeError("half")
            return self._call(values)
        except RuntimeError as error:
            if "half" not in str(error).lower():
                raise
        return self._compute_in_float(values)

    def _call(self, values: Mapping[str, Any]) -> Any:
        positional = [values[one.name] for one in self.arguments if not one.kwarg_only and one.name in values]
        return self.op(
            *positional, **{o.name: values[o.name] for o in self.arguments if o.kwarg_only and o.name in values}
        )

    def _compute_in_float(self, values: Mapping[str, Any]) -> Any:
        """What the processor lacks for float16."""
        keep = bool(values.get("half_to_float"))
        wide = {name: self._widened(value) for name, value in values.items()}
        if keep:
            wide["half_to_float"] = False
        result = self._call(wide)
        for name in self.written:
            for narrow, changed in zip(_tensors(values.get(name)), _tensors(wide.get(name)), strict=True):
                if narrow is not changed:
                    narrow.copy_(changed)
        return result if keep else _each(result, lambda one: one.half() if one.dtype == torch.float32 else one)

    @staticmethod
    def _widened(value: Any) -> Any:
        if value is torch.float16:
            return torch.float32
        return _each(value, lambda tensor: tensor.float() if tensor.dtype == torch.float16 else tensor)

    def _as_returned(self, result: Any, given: Mapping[str, Any]) -> Any:
        if not self.returns:
            return None
        results = result if len(self.returns) > 1 else (result,)
        made = [self._one_returned(about, value, given) for about, value in zip(self.returns, results, strict=True)]
        return tuple(made) if len(made) > 1 else made[0]

    def _one_returned(self, about: Any, value: Any, given: Mapping[str, Any]) -> Any:
        if about.alias_info is None:
            return _each(value, on_card)
        same = [one.name for one in self.arguments
                if one.alias_info is not None and one.alias_info.before_set == about.alias_info.before_set]  # fmt: skip
        written = given[same[0]]
        if value.shape != written.shape:  # an empty `out` takes the result's shape
            written.resize_(value.shape)
            on_processor(written).copy_(value)
        return written


def _fused_adam(decoupled: bool) -> Callable[..., None]:
    """Adam and AdamW over lists of tensors, which the processor lacks in older versions of torch."""

    def step(params, grads, means, squares, largest, counts, *, lr, beta1, beta2, weight_decay, eps, amsgrad, maximize,
             grad_scale=None, found_inf=None):  # fmt: skip
        if found_inf is not None and float(found_inf):
            return
        for i, (param, mean, square) in enumerate(zip(params, means, squares, strict=True)):
            grad = grads[i] if grad_scale is None else grads[i].div_(grad_scale)
            grad = -grad if maximize else grad
            if decoupled:
                param.mul_(1 - float(lr) * weight_decay)
            elif weight_decay:
                grad = grad + weight_decay * param
            mean.lerp_(grad.to(mean.dtype), 1 - beta1)
            square.mul_(beta2).addcmul_(grad.to(square.dtype), grad.to(square.dtype), value=1 - beta2)
            used = torch.maximum(largest[i], square, out=largest[i]) if amsgrad else square
            count = float(counts[i])
            bottom = (used / (1 - beta2**count)).sqrt_().add_(eps)
            param.addcdiv_((mean / (1 - beta1**count)).to(param.dtype), bottom.to(param.dtype), value=-float(lr))

    return step


def _unscale(tensors, found_inf, inverse):
    for tensor in tensors:
        if not torch.isfinite(tensor).all():
            found_inf.fill_(1)
        tensor.mul_(inverse.to(tensor.dtype))


def _update_scale(scale, tracker, found_inf, growth, backoff, interval):
    grows = not float(found_inf) and int(tracker) + 1 == interval
    scale.mul_(backoff if float(found_inf) else growth if grows else 1)
    tracker.fill_(0 if float(found_inf) or grows else int(tracker) + 1)
    return scale


TWINS: dict[str, Callable[..., Any]] = {
    "aten::_fused_adam_": _fused_adam(False),
    "aten::_fused_adamw_": _fused_adam(True),
    "aten::_amp_foreach_non_finite_check_and_unscale_": _unscale,
    "aten::_amp_update_scale_": _update_scale,
    "aten::_fused_sdp_choice": lambda *_args, **_kwargs: _MATHEMATICAL,
}


def _is_replaced(name: str, schema: Any) -> bool:
    if name in _TORCHS_OWN or name.startswith(("aten::set_.", *(f"aten::{one}" for one in _LIBRARIES))):
        return False
    views = any(one.alias_info is not None and not one.alias_info.is_write for one in schema.returns)
    return not views


def install() -> None:
    """Replaces torch's operators for CUDA, in this process."""
    for kind in ("enable_flash_sdp", "enable_mem_efficient_sdp"):  # kernels of CUDA's own, which WebUIs turn on
        getattr(torch.backends.cuda, kind)(False)
        setattr(torch.backends.cuda, kind, lambda _enabled: None)
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    names = [name for name in torch._C._dispatch_get_all_op_names() if name.startswith("aten::")]
    said, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)  # torch warns of each kernel that is replaced
    try:
        for name in names:
            if has(name, "CUDA") or name in _ALSO:
                _replace(name)
    finally:
        os.dup2(said, 2)
        os.close(said)
        os.close(nowhere)


def _replace(name: str) -> None:
    packet, _, overload = name.removeprefix("aten::").partition(".")
    op = getattr(getattr(torch.ops.aten, packet, None), overload or "default", None)
    if op is not None and _is_replaced(name, op._schema):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _library.impl(name.removeprefix("aten::"), Operator(name, op), "CUDA")
