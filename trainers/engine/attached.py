"""Training on the model that a WebUI has loaded: what the run folder says of it, mapping it, and watching its owner.

The WebUI writes `lease.json` into the run folder before it starts a trainer: how the device is shared, and whether to
pause while it draws. Where the trainer attaches, `host_tensors.json` beside it describes the WebUI's tensors. Both
count only for the attempt that they were written for, so a run that is resumed otherwise goes on from the file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trainers.bases.detect import BaseInfo
from trainers.bases.live import CannotAttach, LiveBase, live_base, read_description
from trainers.engine.frozen import freeze_module_weights, thaw
from trainers.engine.lock import process_start
from trainers.formats.families import FAMILIES
from trainers.formats.live_tensors import FILE_NAME

LEASE_FILE, PROCESS_FILE = "lease.json", "process.json"
ATTACH = "attach"


@dataclass(frozen=True)
class Lease:
    """How the device is shared with the WebUI that started this trainer.

    Attributes:
        mode: "attach", "hand_over" or "side_by_side"; "" where no WebUI is concerned.
        drawing: a file that is locked while the WebUI draws, None where the trainer need not pause.
        host: number and start of the WebUI's process.
    """

    mode: str = ""
    drawing: Path | None = None
    host: tuple[int, str] = (0, "")


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def read_lease(run: Path) -> Lease:
    """What was agreed for this attempt at a run; an empty lease where nothing was."""
    content = _read(run / LEASE_FILE)
    if not content or content.get("attempt") != _read(run / PROCESS_FILE).get("attempt"):
        return Lease()
    host = content.get("host") or {}
    drawing = run / str(content["drawing"]) if content.get("drawing") else None
    return Lease(str(content.get("mode", "")), drawing, (int(host.get("pid", 0)), str(host.get("started", ""))))


def is_alive(host: tuple[int, str]) -> bool:
    """Whether the process lives; its start tells it from another one that got its number later."""
    pid, started = host
    found = process_start(pid)
    return found in ("", started)  # "": nothing is attached where starts are not told


class HostGone(Exception):
    """The WebUI whose memory the base lies in has ended."""


def attach(run: Path, lease: Lease, info: BaseInfo, only: torch.dtype | None) -> LiveBase:
    """The base over the WebUI's tensors.

    Args:
        only: the number format that the UNet and the text encoders must have; None takes any.

    Raises:
        CannotAttach: one clause on why not; the base's file serves instead.
    """
    if not is_alive(lease.host):
        raise CannotAttach("the WebUI has ended")
    live = live_base(read_description(run / FILE_NAME), info)
    others = {live.component_dtype(name) for name in FAMILIES[info.family].components} - {only}
    if only is not None and others:
        found = str(others.pop()).removeprefix("torch.")
        raise CannotAttach(f"this kind of adapter computes with the base's own weights, and the WebUI's are {found}")
    try:
        live.info.components["unet"].load(None, None)
    except (RuntimeError, OSError) as error:
        raise CannotAttach(f"its memory cannot be mapped: {str(error).splitlines()[0]}") from None
    return live


def watch_of(lease: Lease, live: LiveBase | None) -> Callable[[], None] | None:
    """A check that raises `HostGone`, where the base's memory ends with the WebUI; on the CPU it stays."""
    if live is None or live.kind == "cpu":
        return None

    def check() -> None:
        if not is_alive(lease.host):
            raise HostGone("the WebUI whose model is trained on has ended")

    return check


def private_bytes() -> int | None:
    """Memory that is this process's alone (on Linux), in bytes."""
    try:
        lines = Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_"))


def _recast_embedding(module: nn.Embedding, dtype: torch.dtype) -> None:
    """A table stays as it is kept; the rows that are looked up are brought to the compute format."""
    module.register_forward_hook(lambda _module, _inputs, rows: rows.to(dtype))


def compute_over(module: nn.Module, dtype: torch.dtype) -> None:
    """Has a module compute in `dtype` over frozen weights that stay the format they have.

    Large weights are recast when they are used, forward and backward; norms and biases, which are small, get copies.
    Does nothing where everything has that format already.
    """
    frozen = [parameter for parameter in module.parameters() if not parameter.requires_grad]
    if all(parameter.dtype == dtype for parameter in frozen):
        return
    freeze_module_weights(module, None, dtype)
    for layer in module.modules():
        is_table = isinstance(layer, nn.Embedding) and layer.weight.dtype != dtype
        if is_table and not getattr(layer, "recasts_rows", False):
            layer.recasts_rows = True
            _recast_embedding(layer, dtype)
        for name, parameter in list(layer.named_parameters(recurse=False)):
            if parameter.ndim < 2 and parameter.dtype != dtype and not parameter.requires_grad:
                setattr(layer, name, nn.Parameter(parameter.detach().to(dtype), requires_grad=False))


@contextmanager
def open_for_adapters(base: Any, dtype: torch.dtype) -> Iterator[None]:
    """While adapters are put into a base whose weights have another format than `dtype`, its layers are ordinary ones:
    PEFT makes an adapter of the layer's own class."""
    modules = [module for module in (base.unet, *base.text_encoders) if module is not None]
    for module in modules:
        thaw(module)
    yield
    for module in modules:
        compute_over(module, dtype)
