"""Tensors of a living process, for another one: how they are described in a file, shared, and mapped.

On the CPU storages move into shared memory, on CUDA their handles are given away (CUDA IPC); the tensors of the owner
stay what they are, and nothing is copied for the one who maps. The description is JSON:

    {"version": 1, "torch": "2.11.0", "host": {"pid": 1, "started": "…"}, "checkpoint": "…", "vae_file": "",
     "card": "NVIDIA H100 GPU-1234…", "storages": [{"kind": "cpu", "handle": […]}, {"kind": "cuda", "handle": […]}],
     "components": {"unet": {"naming": "ldm", "tensors": {"NAME": [storage, dtype, shape, stride, offset]}}}}

A handle's bytes are written as `{"bytes": base64}`; an empty storage has no handle. What a CUDA handle is differs
between versions of torch, and its first number is the card's place in the owner's list. `naming` is "ldm" (a single
file's names) or "diffusers".
"""

from __future__ import annotations

import base64
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

VERSION = 1
FILE_NAME = "host_tensors.json"
_CUDA_COUNTER = slice(4, 6)
"""Where the counter's file and place are in what `_share_cuda_` gives (after device, handle, size, offset)."""
_COUNTERS = Path("/dev/shm")
_COUNTERS_HEAD, _COUNTER_BYTES = 64, 8
"""torch's file of counters: what it is aligned to (`map_alloc_alignment`), then one int64 for each storage."""


def _encoded(value: Any) -> Any:
    return {"bytes": base64.b64encode(value).decode("ascii")} if isinstance(value, bytes) else value


def _decoded(value: Any) -> Any:
    return base64.b64decode(value["bytes"]) if isinstance(value, Mapping) else value


def card_name(device: torch.device) -> str:
    """What tells a card from the others, however they are numbered in a process."""
    about = torch.cuda.get_device_properties(device)
    return f"{about.name} {getattr(about, 'uuid', '') or about.total_memory}"


def cards_problem(description: Mapping[str, Any]) -> str:
    """Why this process cannot reach the graphics card that a description is of, as a clause; "" where it can."""
    places = {each["handle"][0] for each in description["storages"] if each["kind"] == "cuda" and each["handle"]}
    if not places:
        return ""
    ours = torch.__version__.partition("+")[0]
    if description.get("torch") != ours:
        return f"the WebUI has torch {description.get('torch')} and the trainers have {ours}"
    if not torch.cuda.is_available() or max(places) >= torch.cuda.device_count():
        return "the trainers do not see the graphics card that the WebUI draws on"
    if card_name(torch.device("cuda", min(places))) != description.get("card"):
        return "the WebUI and the trainers number the graphics cards differently (CUDA_VISIBLE_DEVICES)"
    return ""


def _share(storage: torch.UntypedStorage) -> dict[str, Any]:
    kind = storage.device.type
    if not storage.nbytes():
        return {"kind": kind, "handle": []}
    handle = storage._share_cuda_() if kind == "cuda" else storage._share_filename_cpu_()
    return {"kind": kind, "handle": [_encoded(value) for value in handle]}


def _readers(file: bytes, place: int) -> int:
    """How many processes a CUDA storage is still given to, as torch counts them; 0 where its counters are gone."""
    try:
        with (_COUNTERS / file.decode().lstrip("/")).open("rb") as counters:
            counters.seek(_COUNTERS_HEAD + place * _COUNTER_BYTES)
            return int.from_bytes(counters.read(_COUNTER_BYTES), sys.byteorder, signed=True)
    except OSError:
        return 0


class Shared:
    """Tensors that were given to another process, kept alive until `release`.

    Args:
        components: {component: (naming, {name: tensor})}.

    Raises:
        RuntimeError: torch cannot share them (the message is torch's own).
    """

    def __init__(self, components: Mapping[str, tuple[str, Mapping[str, torch.Tensor]]]) -> None:
        self._storages: dict[int, tuple[int, torch.UntypedStorage]] = {}
        self._handles: list[dict[str, Any]] = []
        self.nbytes = 0
        try:
            self._described = {name: self._component(*given) for name, given in components.items()}
            if any(_readers(*counter) != 1 for counter in self._counters()):
                raise RuntimeError("it counts the readers of shared memory in a way that is not known here")
        except Exception:
            self._let_go(self._counters())  # whatever they seem to say: nobody has come
            raise

    def _component(self, naming: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        described = {}
        for name, tensor in tensors.items():
            index = self._storage(tensor.untyped_storage())
            dtype = str(tensor.dtype).removeprefix("torch.")
            described[name] = [index, dtype, list(tensor.shape), list(tensor.stride()), tensor.storage_offset()]
        return {"naming": naming, "tensors": described}

    def _storage(self, storage: torch.UntypedStorage) -> int:
        """The storage's place in the list; one that several tensors view is shared once."""
        known = self._storages.get(storage._cdata)
        if known is None:
            self._handles.append(_share(storage))
            known = self._storages[storage._cdata] = (len(self._handles) - 1, storage)
            self.nbytes += storage.nbytes()
        return known[0]

    @property
    def card(self) -> torch.device | None:
        """The graphics card that they lie on; None in the computer's memory."""
        devices = (storage.device for _, storage in self._storages.values())
        return next((device for device in devices if device.type == "cuda"), None)

    def holds(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor lies in one of the storages that were given away."""
        return tensor.untyped_storage()._cdata in self._storages

    def description(self, **more: Any) -> dict[str, Any]:
        """What is written for the other process."""
        return {
            "version": VERSION, "torch": torch.__version__.partition("+")[0], **more,
            **({"card": card_name(self.card)} if self.card else {}),
            "storages": self._handles, "components": self._described,
        }  # fmt: skip

    def release(self) -> None:
        """Keeps them alive no longer; to be called when the other process has ended or never came.

        torch counts, in memory that both sides see, who still reads a CUDA storage, and never gives it back while one
        does. A process that was killed has not counted itself out, so this does it for it; one that ended by itself
        has, and a counter below zero is as good as one above it.
        """
        self._let_go([each for each in self._counters() if _readers(*each) > 0])

    def _let_go(self, counted_in: list[tuple[bytes, int]]) -> None:
        """Forgets the storages, after counting out one reader of each that is named."""
        for file, place in counted_in:
            torch.UntypedStorage._release_ipc_counter_cuda(file, place)
        has_card = bool(self._counters())
        self._storages, self._handles = {}, []
        if has_card:
            torch.cuda.ipc_collect()

    def _counters(self) -> list[tuple[bytes, int]]:
        """File and place of each CUDA storage's counter."""
        cuda = [each["handle"] for each in self._handles if each["kind"] == "cuda" and each["handle"]]
        return [tuple(_decoded(value) for value in handle[_CUDA_COUNTER]) for handle in cuda]


def _mapped_storage(given: Mapping[str, Any]) -> torch.UntypedStorage:
    handle = [_decoded(value) for value in given["handle"]]
    if not handle:
        return torch.UntypedStorage(0, device=given["kind"])
    if given["kind"] == "cuda":
        torch.cuda.init()
        return torch.UntypedStorage._new_shared_cuda(*handle)
    return torch.UntypedStorage._new_shared_filename_cpu(*handle)


def _view(storage: torch.UntypedStorage, dtype: str, shape: list[int], stride: list[int], offset: int) -> torch.Tensor:
    kind = getattr(torch, dtype)
    return torch.empty(0, dtype=kind, device=storage.device).set_(storage, offset, tuple(shape), tuple(stride))


class Mapped:
    """Tensors of another process, by component and name. A storage is mapped when a tensor of it is first asked for,
    and stays mapped: it is the owner's memory, and torch counts each CUDA storage in and out only once."""

    def __init__(self, description: Mapping[str, Any]) -> None:
        self.description = description
        self._open: dict[int, Any] = {}

    def tensors(self, component: str, names: Iterable[str]) -> dict[str, torch.Tensor]:
        """Views of the other process's memory; writing to them would change it there.

        Raises:
            RuntimeError: the memory is not there any more, or is not ours to see.
        """
        described = self.description["components"][component]["tensors"]
        found = {}
        for name in names:
            index, *rest = described[name]
            if index not in self._open:
                self._open[index] = _mapped_storage(self.description["storages"][index])
            found[name] = _view(self._open[index], *rest)
        return found
