"""One layer of a live model as an adapter sees it: its geometry, its input, its output.

Nothing here writes to the layer. The base weight is read only by the few kinds whose formula asks for it.
"""

from __future__ import annotations

import weakref

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Number formats that hold the weight itself; others (int8, packed 4 bit) are codes of a quantizer.
_PLAIN = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
_FLOAT8 = {getattr(torch, name) for name in ("float8_e4m3fn", "float8_e5m2") if hasattr(torch, name)}


def kind_of(module: nn.Module) -> str | None:
    """ "linear", "conv", "layer_norm", "group_norm", or None for a module no adapter sits on."""
    if hasattr(module, "num_groups") and hasattr(module, "num_channels"):
        return "group_norm"
    if hasattr(module, "normalized_shape"):
        return "layer_norm"
    if hasattr(module, "kernel_size") and hasattr(module, "out_channels"):
        plain = len(module.kernel_size) == 2 and not getattr(module, "transposed", False)
        return "conv" if plain else None
    return "linear" if _matrix_shape(module) is not None else None


def _matrix_shape(module: nn.Module) -> tuple[int, int] | None:
    """(out, in) of a linear layer. Quantizers' own classes may not say it: then what they keep in place of the weight
    does (bitsandbytes in its `quant_state`, GGUF as the shape it answers with)."""
    if hasattr(module, "in_features") and hasattr(module, "out_features"):
        return (module.out_features, module.in_features)
    weight = getattr(module, "weight", None)
    if weight is None or not type(module).__name__.endswith("Linear"):
        return None
    shape = tuple(getattr(getattr(weight, "quant_state", None), "shape", None) or weight.shape)
    return shape if len(shape) == 2 else None


class Layer:
    """A linear layer, convolution or norm of a live model, or one projection inside a fused attention.

    The module is held weakly: an adapter that is still attached does not keep a model in memory that its host dropped.

    Attributes:
        kind: see `kind_of`.
        shape: of the weight: `(out, in)`, `(out, in/groups, k, k)` or `(channels,)`.
        part: None, or for a fused attention 0, 1, 2 (a third of `in_proj`) or "out".
        row_axis: axis of the input that counts the batch (1 inside open_clip's older, sequence-first attention).
    """

    def __init__(self, module: nn.Module, part: int | str | None = None, row_axis: int = 0) -> None:
        self._module = weakref.ref(module)
        self.part = part
        self.row_axis = row_axis
        if part is not None:
            self.kind: str = "linear"
            self.shape: tuple[int, ...] = (module.embed_dim, module.embed_dim)
            return
        kind = kind_of(module)
        if kind is None:
            raise TypeError(f"{type(module).__name__} is not a layer an adapter can sit on")
        self.kind = kind
        self.shape = _shape(module, kind)

    @property
    def module(self) -> nn.Module:
        """The live module; `ReferenceError` when the host has dropped its model."""
        module = self._module()
        if module is None:
            raise ReferenceError("the model of this layer is gone")
        return module

    @property
    def channel_axis(self) -> int:
        """Axis of the output that counts the channels."""
        return 1 if self.kind in ("conv", "group_norm") else -1

    def per_channel(self, values: Tensor, ndim: int) -> Tensor:
        """`values` (one per channel) shaped so that it multiplies an activation with `ndim` axes."""
        flat = values.reshape(-1)
        return flat.reshape(-1, *[1] * (ndim - 2)) if self.channel_axis == 1 else flat

    def linear_map(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """The layer's own operation with another weight, which may have another number of outputs."""
        if self.kind == "linear":
            return F.linear(x, weight.reshape(weight.shape[0], -1), bias)
        module = self.module
        if weight.dim() == 2:
            weight = weight[:, :, None, None]
        padding = module.padding
        mode = getattr(module, "padding_mode", "zeros")
        if mode != "zeros":  # "tiling" makes every convolution circular
            x = F.pad(x, module._reversed_padding_repeated_twice, mode=mode)
            padding = 0
        return F.conv2d(x, weight, bias, module.stride, padding, module.dilation, module.groups)

    def normalised(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        """The norm layer's own operation with another weight and bias."""
        module = self.module
        if self.kind == "group_norm":
            return F.group_norm(x, module.num_groups, weight, bias, module.eps)
        return F.layer_norm(x, module.normalized_shape, weight, bias, module.eps)

    # --- what is read of the base

    def _tensor(self, name: str) -> Tensor | None:
        module = self.module
        if self.part is None:
            return getattr(module, name, None)
        if self.part == "out":
            return getattr(module.out_proj, name)
        fused = getattr(module, f"in_proj_{name}")
        width = module.embed_dim
        return None if fused is None else fused[self.part * width : (self.part + 1) * width]

    def bias(self) -> Tensor | None:
        """The base's bias (the live tensor: read only)."""
        return self._tensor("bias")

    def weight_version(self) -> tuple:
        """Changes when the host puts other values into the weight (an in-place copy) or another tensor."""
        tensor = self.module.in_proj_weight if isinstance(self.part, int) else self._tensor("weight")
        if tensor is None:
            return (None, 0)
        # Inference tensors count no versions; hosts that use them replace the tensor instead.
        return (id(tensor), 0 if tensor.is_inference() else tensor._version)

    def _plain_weight(self) -> Tensor | None:
        weight = self._tensor("weight")
        if weight is None or tuple(weight.shape) != self.shape:
            return None
        if weight.dtype in _PLAIN:
            return weight
        scaled = any(hasattr(self.module, name) for name in ("scale_weight", "weight_scale"))
        return weight if weight.dtype in _FLOAT8 and not scaled else None

    def readable(self) -> bool:
        """Whether the weight lies there as plain numbers (not quantized, not on the meta device)."""
        weight = self._plain_weight()
        return weight is not None and weight.device.type != "meta"

    def weight(self, x: Tensor) -> Tensor:
        """A float32 copy (float64 of a float64 base) of the base's weight on the device of `x`.

        The weight of a quantized linear layer is found by asking the layer for its answer to the unit vectors.
        """
        weight = self._plain_weight()
        if weight is not None:
            wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
            return weight.detach().to(x.device, wide)
        if self.kind != "linear":
            raise TypeError("the weight of a quantized convolution cannot be read")
        unit = torch.eye(self.shape[1], device=x.device, dtype=x.dtype)
        return self.base(unit).detach().float().T.contiguous()

    def base(self, x: Tensor) -> Tensor:
        """The frozen layer's answer to another input, without its bias."""
        weight = self._plain_weight()
        if weight is not None and weight.dtype == x.dtype and weight.device == x.device:
            return self.linear_map(x, weight)
        if self.part is not None:
            return F.linear(x, self._tensor("weight").to(x))
        return self.without_bias(self.module.forward(x))

    def without_bias(self, y: Tensor) -> Tensor:
        """An output of the frozen layer minus its bias."""
        bias = self.bias()
        return y if bias is None else y - self.per_channel(bias.to(y.device, y.dtype), y.dim())


def _shape(module: nn.Module, kind: str) -> tuple[int, ...]:
    if kind == "linear":
        return _matrix_shape(module)
    if kind == "conv":
        return (module.out_channels, module.in_channels // module.groups, *module.kernel_size)
    return (module.num_channels,) if kind == "group_norm" else tuple(module.normalized_shape)
