"""What every host gives to the tab and the routes: one queue for each machine's data folder, devices, base models."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from extension.hosts.base import Host, LoadedModel
from extension.hosts.lease import device_name
from extension.jobs.environment import Environment
from extension.jobs.manager import Jobs, jobs_for
from extension.jobs.setup import setup_for
from extension.live import LiveFiles
from extension.recipes import Base, describe_base
from extension.tokens import Tokenize, tokenizer_of
from extension.workshop import Workshop

TRAINED_ON = ("cpu", "cuda", "mps", "xpu")
"""The kinds of device that the trainers know; a host may draw on others."""


def auto_device(host: Host) -> str:
    """What `device: auto` means beside a host: what it draws on, so that `--device-id 1` is for the trainers too."""
    own = host.device()
    if own is not None and own.type in TRAINED_ON:
        return device_name(own)
    if torch.cuda.is_available():
        return "cuda:0"
    if getattr(torch.backends, "mps", None) is not None and torch.backends.mps.is_available():
        return "mps"
    return "cpu"


def jobs_of(host: Host) -> Jobs:
    """The queue of a host; the same one for everybody who asks."""
    data = host.folders().data
    return jobs_for(data / "runs", Environment(setup=setup_for(data)), auto_device(host))


def live_files_of(host: Host) -> LiveFiles:
    """What `live=1` in a prompt of this host means."""
    return LiveFiles(lambda: jobs_of(host))


def workshop_for(
    host: Host,
    checkpoints: Callable[[], Iterable[Path]],
    results: Callable[[str], Path | None],
    changed: Callable[[str], None] = lambda method: None,
    clip_skip: Callable[[], int | None] = lambda: None,
    folders: Callable[[], Sequence[Path]] = lambda: (),
    notes: Callable[[], list[str]] = list,
) -> Workshop:
    """The workshop of a host; a page that is built again gets the same queue.

    Args:
        checkpoints: the base models that the host knows.
        results, changed, clip_skip, folders, notes: see `Workshop`.
    """
    described: dict[tuple[str, int], Base] = {}

    def bases() -> list[Base]:
        model = host.model()
        loaded = model.checkpoint if model else None
        return [
            _described(path, model if path == loaded else None, described)
            for path in dict.fromkeys([*([loaded] if loaded else []), *checkpoints()])
            if path.exists()
        ]

    data = host.folders().data
    pictures = data / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    return Workshop(
        jobs_of(host), pictures, bases, lambda: host.folders().adapters, folders,
        results, changed, clip_skip, notes, tokenizer=lambda: _tokenizer(host), device=lambda: _device(host),
    )  # fmt: skip


def _described(path: Path, model: LoadedModel | None, known: dict[tuple[str, int], Base]) -> Base:
    """What a model file says of itself (its header is read once), and the host where it is the loaded one."""
    key = (str(path), path.stat().st_mtime_ns)
    if key not in known:
        known[key] = describe_base(path)
    base = known[key]
    if model is None:
        return base
    said = {"family": model.family or base.family, "prediction": model.prediction or base.prediction, "vae": model.vae}
    return replace(base, loaded=True, **said)


def _tokenizer(host: Host) -> Tokenize | None:
    """The loaded model's tokenizer, else the one that the host ships: CLIP's words are the same in every family."""
    model = host.model()
    return (tokenizer_of(model.tokenizer) if model else None) or tokenizer_of(host.shipped_tokenizer())


def _device(host: Host) -> tuple[str, int | None]:
    """The device that is trained on, and the whole memory of a card in bytes."""
    name = auto_device(host)
    return name, torch.cuda.get_device_properties(name).total_memory if name.startswith("cuda") else None
