"""Hypernetworks in A1111's file layout: small networks that change what attention layers read.

For each width of such an input there are two: one before `to_k`, one before `to_v`; y = x + m f(x), where m is the
multiplier. A file is a pickle: {width: (state of the first, state of the second), "layer_structure": …, …}.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trainers.errors import InputError
from trainers.formats import pickles, pt_files

INITIALISATIONS = ("Normal", "KaimingUniform", "KaimingNormal", "XavierUniform", "XavierNormal")
_NAMED = {
    "relu": nn.ReLU,
    "leakyrelu": nn.LeakyReLU,
    "elu": nn.ELU,
    "swish": nn.Hardswish,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
}
_MORE = (
    "CELU GELU GLU Hardshrink Hardsigmoid Hardswish Hardtanh LogSigmoid LogSoftmax Mish PReLU ReLU6 RReLU SELU SiLU "
    "Softmin Softplus Softshrink Softsign Tanhshrink"
)
ACTIVATIONS: dict[str, type[nn.Module]] = {**_NAMED, **{name.lower(): getattr(nn, name) for name in _MORE.split()}}
"""What A1111 accepts beside "linear" (its "swish" is torch's Hardswish)."""
_OLD_NAMES = {"linear1.": "linear.0.", "linear2.": "linear.1."}
_LARGEST = 64


@dataclass(frozen=True)
class Structure:
    """How the networks of a file are built.

    Attributes:
        layers: widths as multiples of the input's, from 1 to 1.
        activation: a key of `ACTIVATIONS`, or "linear" for none.
        activate_output: activation after the last layer too.
        layer_norm: a layer norm after every layer.
        dropout: share dropped after each layer, as long as `layers`; the first and last are 0.
        initialisation: one of `INITIALISATIONS`.
    """

    layers: tuple[float, ...] = (1.0, 2.0, 1.0)
    activation: str = "linear"
    activate_output: bool = False
    layer_norm: bool = False
    dropout: tuple[float, ...] = ()
    initialisation: str = "Normal"

    def problem(self) -> str | None:
        """Why no network can be built like this, or None."""
        if len(self.layers) < 2 or self.layers[0] != 1 or self.layers[-1] != 1:
            return "the layer structure has to begin and end with 1, such as 1, 2, 1"
        if len(self.layers) > _LARGEST or not all(0 < factor <= _LARGEST for factor in self.layers):
            return f"the layer structure holds factors that are not between 0 and {_LARGEST}"
        if self.activation != "linear" and self.activation not in ACTIVATIONS:
            return f"there is no activation {self.activation!r}"
        if self.dropout and (len(self.dropout) != len(self.layers) or not all(0 <= p < 1 for p in self.dropout)):
            return "the dropout needs one number from 0 to below 1 for each layer"
        return None


def build(width: int, structure: Structure) -> nn.Sequential:
    """One network f, [.., width] -> [.., width], with A1111's numbering of its layers."""
    parts: list[nn.Module] = []
    steps = len(structure.layers) - 1
    for i in range(steps):
        first, second = (int(width * factor) for factor in structure.layers[i : i + 2])
        parts.append(nn.Linear(first, second))
        if structure.activation != "linear" and (i < steps - 1 or structure.activate_output):
            parts.append(ACTIVATIONS[structure.activation]())
        if structure.layer_norm:
            parts.append(nn.LayerNorm(second))
        if structure.dropout and structure.dropout[i + 1] > 0:
            parts.append(nn.Dropout(structure.dropout[i + 1]))
    return nn.Sequential(*parts)


@torch.no_grad()
def initialise(network: nn.Sequential, structure: Structure, draw: torch.Generator) -> None:
    """Starting weights as A1111's: biases 0, layer norms' weights drawn like "Normal" ones."""
    gain = nn.init.calculate_gain("leaky_relu" if structure.activation == "leakyrelu" else "relu")
    for layer in network:
        if not isinstance(layer, (nn.Linear, nn.LayerNorm)):
            continue
        layer.bias.zero_()
        kind = "Normal" if isinstance(layer, nn.LayerNorm) else structure.initialisation
        weight = layer.weight
        fan_in, fan_out = (weight.shape[1], weight.shape[0]) if weight.ndim == 2 else (1, 1)
        spread = {
            "Normal": 0.01,
            "KaimingUniform": gain / fan_in**0.5,
            "KaimingNormal": gain / fan_in**0.5,
            "XavierUniform": (2 / (fan_in + fan_out)) ** 0.5,
            "XavierNormal": (2 / (fan_in + fan_out)) ** 0.5,
        }[kind]
        if kind.endswith("Uniform"):
            weight.copy_((torch.rand(weight.shape, generator=draw) * 2 - 1) * spread * 3**0.5)
        else:
            weight.copy_(torch.randn(weight.shape, generator=draw) * spread)


@dataclass
class Hypernetwork:
    """What a file holds.

    Attributes:
        pairs: {width: (network before to_k, network before to_v)}, in evaluation mode.
    """

    name: str
    structure: Structure
    pairs: dict[int, tuple[nn.Sequential, nn.Sequential]]
    step: int = 0
    checkpoint: str | None = None
    more: dict[str, Any] = field(default_factory=dict)


def _structure(content: Mapping[str, Any]) -> Structure:
    layers = tuple(float(v) for v in content.get("layer_structure") or (1, 2, 1))
    dropout = content.get("dropout_structure")
    if dropout is None:
        dropout = _usual_dropout(len(layers), bool(content.get("use_dropout")), bool(content.get("last_layer_dropout")))
    return Structure(
        layers=layers,
        activation=str(content.get("activation_func") or "linear").lower(),
        activate_output=bool(content.get("activate_output", True)),
        layer_norm=bool(content.get("is_layer_norm", False)),
        dropout=tuple(float(p) for p in dropout) if any(dropout) else (),
        initialisation=str(content.get("weight_initialization") or "Normal"),
    )


def _usual_dropout(count: int, used: bool, last: bool) -> Sequence[float]:
    """A file that only says that dropout is used means 0.3 after every inner layer."""
    return [0.0, *[0.3] * (count - 3), 0.3 if last else 0.0, 0.0] if used and count > 2 else [0.0] * count


def _state(path: Path, table: Any) -> dict[str, torch.Tensor]:
    if not isinstance(table, Mapping):
        raise InputError(f"{path}: this is not a hypernetwork, or it is damaged.")
    state = {}
    for name, tensor in table.items():
        for old, new in _OLD_NAMES.items():
            name = name.replace(old, new) if name.startswith(old) else name
        state[name.removeprefix("linear.")] = tensor
    return state


def read(path: Path | str) -> Hypernetwork:
    """Reads a `.pt` file; no code in it is run.

    Raises:
        InputError: it is missing, damaged, no hypernetwork, or built in a way that is not known.
    """
    path = Path(path)
    content = pickles.load_content(path)
    widths = [key for key in content if isinstance(key, int)] if isinstance(content, Mapping) else []
    if not widths:
        raise InputError(f"{path}: this is not a hypernetwork.")
    try:
        structure = _structure(content)
    except (TypeError, ValueError):
        raise InputError(f"{path}: the description of its layers cannot be read.") from None
    if structure.problem():
        raise InputError(f"{path}: {structure.problem()}.")
    pairs = {}
    for width in sorted(widths):
        entry = content[width]
        if not isinstance(entry, (tuple, list)) or len(entry) != 2 or not 0 < width <= 65536:
            raise InputError(f"{path}: this is not a hypernetwork, or it is damaged.")
        with torch.device("meta"):
            networks = [build(width, structure) for _ in entry]
        for network, table in zip(networks, entry, strict=True):
            try:
                network.load_state_dict(_state(path, table), assign=True)
            except (RuntimeError, TypeError, AttributeError):
                raise InputError(f"{path}: its weights do not fit the layers it describes.") from None
            network.eval().requires_grad_(False).float()
        pairs[width] = (networks[0], networks[1])
    more = {key: content.get(key) for key in ("sd_checkpoint", "optional_info")}
    step = content.get("step")
    name = content.get("name")
    return Hypernetwork(
        name if isinstance(name, str) and name else path.stem,
        structure,
        pairs,
        step if isinstance(step, int) else 0,
        content.get("sd_checkpoint_name"),
        more,
    )


def to_bytes(network: Hypernetwork, dtype: torch.dtype | None = None) -> bytes:
    """The file's bytes, the same for the same content."""
    s = network.structure
    dropout = list(s.dropout or [0.0] * len(s.layers))
    content: dict[Any, Any] = {}
    for width, pair in sorted(network.pairs.items()):
        content[width] = tuple(
            {f"linear.{k}": v.detach().cpu().to(dtype or v.dtype).clone() for k, v in one.state_dict().items()}
            for one in pair
        )
    content |= {
        "step": network.step,
        "name": network.name,
        "layer_structure": [int(v) if v == int(v) else v for v in s.layers],
        "activation_func": s.activation,
        "is_layer_norm": s.layer_norm,
        "weight_initialization": s.initialisation,
        "activate_output": s.activate_output,
        "use_dropout": any(dropout),
        "dropout_structure": dropout,
        "last_layer_dropout": bool(dropout[-2]),
        "sd_checkpoint": network.more.get("sd_checkpoint"),
        "sd_checkpoint_name": network.checkpoint,
        "optional_info": network.more.get("optional_info"),
    }
    return pt_files.to_bytes(content)


def save(path: Path, network: Hypernetwork, dtype: torch.dtype | None = None) -> None:
    """Writes a `.pt` file, whole or not at all.

    Raises:
        OSError: the disk is full or the folder cannot be written.
    """
    pt_files.write(path, to_bytes(network, dtype))
