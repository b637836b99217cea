"""What a run resumes from: `state/<step>/`, and the pointer `state/current` that names the newest complete one.

A state folder is written under a temporary name and renamed when it is complete, then the pointer is replaced: both
are atomic, so a kill at any instant leaves the previous state or the new one.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from trainers.engine.runfolder import replace, replace_text
from trainers.errors import InputError

KEEP = 2


@dataclass
class Counters:
    """The few numbers of a run beside its tensors. `step` steps are done."""

    step: int = 0
    skipped_in_a_row: int = 0
    skipped: int = 0
    rollbacks: int = 0
    lr_scale: float = 1.0
    loss_average: float | None = None
    baseline: dict[str, float] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)  # findings of `trainers.engine.watch` that were said


def _sync_folder(folder: Path) -> None:
    """Make a rename durable where the system allows folders to be opened (not Windows)."""
    if os.name != "nt":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _plain(content: Any) -> Any:
    """The same content without parameters: torch before 2.4 does not read back one that carries attributes."""
    if isinstance(content, dict):
        return {name: _plain(one) for name, one in content.items()}
    if isinstance(content, (list, tuple)) and type(content) in (list, tuple):
        return type(content)(_plain(one) for one in content)
    return content.detach() if isinstance(content, torch.nn.Parameter) else content


def _write(path: Path, content: Any) -> None:
    with open(path, "wb") as file:
        torch.save(_plain(content), file)
        file.flush()
        os.fsync(file.fileno())


def save_state(states: Path, counters: Counters, tensors: dict[str, Any]) -> Path:
    """Write a state; `tensors` holds nested dictionaries of tensors and numbers (weights, optimizer, average, scaler).

    Raises OSError (a full disk) with the previous state intact.
    """
    states.mkdir(parents=True, exist_ok=True)
    name = f"{counters.step:08d}" + (f"-r{counters.rollbacks}" if counters.rollbacks else "")
    final, temporary = states / name, states / (name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        _write(temporary / "tensors.pt", tensors)
        replace_text(temporary / "counters.json", json.dumps(asdict(counters), indent=1))
        if final.exists() and _current(states) == name:
            shutil.rmtree(temporary)  # the same step again holds the same bytes, and the pointer must not name a hole
        else:
            shutil.rmtree(final, ignore_errors=True)  # what a kill left before the pointer named it
            replace(temporary, final)
        _sync_folder(states)
        replace_text(states / "current", name)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _forget_old(states, name)
    return final


def _current(states: Path) -> str | None:
    """The name in the pointer, or None when there is none yet."""
    pointer = states / "current"
    return pointer.read_text(encoding="utf-8").strip() if pointer.exists() else None


def _forget_old(states: Path, current: str) -> None:
    kept = sorted((p for p in states.iterdir() if p.is_dir() and not p.name.endswith(".tmp")), key=lambda p: p.name)
    older = [p for p in kept if p.name != current]
    for path in older[: max(0, len(older) - (KEEP - 1))]:
        shutil.rmtree(path, ignore_errors=True)


def newest_step(states: Path) -> int:
    """How many steps the newest state has done; 0 when there is none yet."""
    name = (_current(states) or "").partition("-")[0]
    return int(name) if name.isdigit() else 0


def load_state(states: Path) -> tuple[Counters, dict[str, Any]] | None:
    """The state that the pointer names, with its tensors on the CPU, or None when there is none yet.

    Whoever takes the tensors copies them to where they belong: optimizers keep some of theirs on the CPU.
    """
    name = _current(states)
    if name is None:
        return None
    folder = states / name
    try:
        counters = Counters(**json.loads((folder / "counters.json").read_text(encoding="utf-8")))
        tensors = torch.load(folder / "tensors.pt", map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(
            f"{folder}: this state cannot be read ({error.__class__.__name__}); name an older folder of "
            f"{states} in {states / 'current'} and resume again."
        ) from error
    return counters, tensors
