"""What the lenders of all hosts have in common: whether tensors can be shared, sharing them, what came free."""

from __future__ import annotations

import gc
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from extension.jobs.environment import ROOT, Environment
from extension.jobs.files import write_json
from extension.jobs.lease import CannotLend, Holding
from trainers.formats import safetensors_io
from trainers.formats.families import FAMILIES, Family
from trainers.formats.live_tensors import Shared

SHARED_MEMORY = Path("/dev/shm")
_SPARE = 1.05
_WRAPPER = ".wrapped"
"""A1111 puts its token embeddings around the model's."""
Components = Mapping[str, tuple[str, Mapping[str, torch.Tensor]]]
"""{component: (naming, {name: tensor})}, see `trainers.formats.live_tensors`."""


def tensors_of(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A module's parameters under the names that its file has."""
    named = module.named_parameters(remove_duplicate=False)
    return {name.replace(_WRAPPER, ""): parameter.detach() for name, parameter in named}


def nbytes_of(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes that they take."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def device_name(device: torch.device) -> str:
    """As the queue calls it: "cuda:0", "cpu"."""
    if device.type in ("cuda", "xpu"):
        return f"{device.type}:{device.index or 0}"
    return device.type


def system_problem(kind: str) -> str:
    """Why no process here can map another one's memory of this kind, as a clause; "" where it can."""
    if not sys.platform.startswith("linux"):
        return f"memory cannot be shared between processes on {platform.system() or 'this system'}"
    if kind not in ("cpu", "cuda"):
        return f"memory of {kind} devices cannot be shared between processes"
    if kind == "cpu":
        return "" if SHARED_MEMORY.is_dir() else f"this system has no {SHARED_MEMORY}"
    if "microsoft" in platform.release().lower():
        return "memory of graphics cards cannot be shared between processes under WSL"
    if torch.version.hip:
        return "sharing the memory of graphics cards was never tried with ROCm"
    return _allocator_problem()


def _allocator_problem() -> str:
    settings = ",".join(os.environ.get(name, "") for name in ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"))
    if "expandable_segments:true" in settings.replace(" ", "").lower():
        return "the WebUI's memory lies in expandable segments, which cannot be shared (PYTORCH_CUDA_ALLOC_CONF)"
    if torch.cuda.get_allocator_backend() != "native":
        return "the WebUI's memory comes from cudaMallocAsync, which cannot share it"
    return ""


def tensors_problem(components: Components) -> str:
    """Why these tensors cannot be trained on as they lie, as a clause; "" where they can."""
    tensors = [tensor for _, given in components.values() for tensor in given.values()]
    if not tensors or any(tensor.is_meta for tensor in tensors):
        return "the WebUI's model is not whole in memory"
    kinds = {tensor.dtype for tensor in tensors}
    small = [kind for kind in kinds if not kind.is_floating_point or kind.itemsize < 2]
    if small:
        return f"the WebUI keeps the model as {str(small[0]).removeprefix('torch.')}"
    unet = {tensor.device for tensor in components["unet"][1].values()}
    if len(unet) > 1:
        return "a part of the WebUI's model is moved out of the card's memory"
    problems = [system_problem(kind) for kind in {tensor.device.type for tensor in tensors}]
    problems += [problem for (card, _), problem in _tried.items() if card in map(str, unet)]
    return next(filter(None, problems), "")


def room_problem(components: Components) -> str:
    """Whether /dev/shm lacks room for what lies in the computer's memory and is not shared yet."""
    tensors = [tensor for _, given in components.values() for tensor in given.values()]
    needed = nbytes_of(one for one in tensors if one.device.type == "cpu" and not one.is_shared())
    free = shutil.disk_usage(SHARED_MEMORY).free if needed else 0
    if needed * _SPARE > free and needed:
        return f"{SHARED_MEMORY} has room for {free / 2**20:.0f} MiB and the model takes {needed / 2**20:.0f} MiB"
    return ""


_TRIAL_SECONDS = 120.0
_tried: dict[tuple[str, str], str] = {}
"""What trials came to, by device and the trainers' Python."""


def try_first(environment: Environment, held: Holding | None) -> None:
    """Has sharing a card tried before anything waits for it: nobody can draw while a model is exported."""
    if held is not None and not held.problem and held.device.startswith("cuda"):
        trial(environment, torch.device(held.device))


def trial(environment: Environment, device: torch.device) -> str:
    """Has a process of the trainers map a few numbers of ours and compute with them; why that failed, as a clause, or
    "". Done once for each device and Python of the trainers, as it takes as long as starting a trainer."""
    key = str(device), " ".join(environment.interpreter())
    if key not in _tried:
        numbers = torch.arange(4096, dtype=torch.float32, device=device)
        shared = Shared({"trial": ("ldm", {"numbers": numbers})})
        try:
            with tempfile.TemporaryDirectory(prefix="athanor-") as folder:
                write_json(Path(folder) / "trial.json", shared.description())
                _tried[key] = _tried_with(environment, Path(folder) / "trial.json")
        finally:
            shared.release()
    return _tried[key]


def _tried_with(environment: Environment, file: Path) -> str:
    command = environment.command("trainers.bases.live_trial", file)
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment.process_variables(), stdin=subprocess.DEVNULL, capture_output=True,
            text=True, encoding="utf-8", errors="replace", timeout=_TRIAL_SECONDS, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"a trial of sharing memory did not end well ({error.__class__.__name__})"
    last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
    return "" if done.returncode == 0 else f"a trial of sharing memory failed ({last[:200]})"


def export(components: Components, manifest: Path, about: Mapping[str, Any], environment: Environment) -> Shared:
    """Shares the tensors and writes how they are mapped.

    Args:
        environment: of the trainers; with it sharing a card's memory is tried once before.

    Raises:
        CannotLend: they cannot be shared.
    """
    problem = tensors_problem(components) or room_problem(components)
    card = next(iter(components["unet"][1].values())).device
    if not problem and card.type == "cuda":
        problem = trial(environment, card)
    if problem:
        raise CannotLend(problem)
    try:
        shared = Shared(components)
    except RuntimeError as error:
        raise CannotLend(f"torch cannot share its memory ({str(error).splitlines()[0]})") from None
    write_json(manifest, shared.description(**about))
    manifest.chmod(0o600)  # whoever reads it can reach the host's memory
    return shared


def has_room_for(shared: Shared) -> bool:
    """Whether another copy fits beside tensors on a card; in the computer's memory that is taken for granted."""
    return shared.card is None or shared.nbytes * _SPARE < torch.cuda.mem_get_info(shared.card)[0]


_COMPARED = 48
"""Tensors that are compared with the file's: evenly spread, so that an adapter's layers are among them."""


def check_clean(components: Components, family: str, checkpoint: Path, merged: str) -> None:
    """The weights are those of the file.

    Args:
        merged: the name of a layer where something was merged, as far as the host's loader knows.

    Raises:
        CannotLend: they are not.
    """
    different = merged or _differs_from_file(components, FAMILIES[family], checkpoint)
    if different:
        raise CannotLend(f"the WebUI's weights are not the file's at {different}; something is merged into them")


def _differs_from_file(components: Components, family: Family, checkpoint: Path) -> str:
    """The name of a large tensor that is not what a single safetensors file says; "" where none was found."""
    if checkpoint.suffix.lower() != ".safetensors":
        return ""
    prefixes = {"unet": family.unet_prefix, **{one.component: one.ldm_prefix for one in family.text_encoders}}
    live = {
        prefix + name: tensor
        for component, prefix in prefixes.items()
        for name, tensor in components[component][1].items()
        if tensor.ndim > 1 and "embedding" not in name
    }
    header = safetensors_io.read_header(checkpoint)
    names = [name for name in live if name in header.tensors]
    chosen = set(names[:: max(1, len(names) // _COMPARED)])
    stored, _ = safetensors_io.load(checkpoint, mapped=True, wanted=chosen.__contains__, header=header)
    for name, tensor in stored.items():
        now = live[name].cpu()
        if now.shape == tensor.shape and not torch.equal(now, tensor.to(now.dtype)):
            return name
    return ""


def in_use(device: torch.device) -> int:
    """Bytes in use: on the card by everybody, on the CPU by this process."""
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index  # torch 2.1 needs one
        free, total = torch.cuda.mem_get_info(index)
        return total - free
    with suppress(OSError, ValueError):
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    return 0


def return_memory(device: torch.device) -> None:
    """Gives what nobody holds any more back to the system."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.ipc_collect()
    trim_heap()


def trim_heap() -> None:
    """glibc keeps freed memory for itself; this hands it back. Does nothing elsewhere."""
    if sys.platform.startswith("linux"):
        import ctypes

        with suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)
