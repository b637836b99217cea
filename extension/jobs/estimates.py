"""How long a step will take: as former runs on this machine measured it, else roughly, from how fast it multiplies.

A rough estimate counts the operations of a step. A UNet of SD1's size (860 million weights) takes 0.80 tera-operations
for one 64 x 64 latent, SDXL's (2,567 million) 5.98 for 128 x 128; others are taken in proportion to weights and places.
Training takes about three passes, and reaches about a third of what plain matrix products reach.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from extension.jobs.run_files import run_folders
from extension.recipes import describe_base
from trainers import spec
from trainers.errors import InputError
from trainers.events import read_events

MEASURED_STEPS = 10
"""A run with fewer steps has measured nothing yet: what is said of its time is an estimate."""

_RUNS_LOOKED_AT = 20
_ALIKE = 1.5
"""How many times larger a UNet may be whose steps still tell something."""
_NEAR = 2.0
"""How many times more work a step may be than the measured one, so that its time still counts as measured."""
_SIDES = {"sd1": 512, "sd2": 768, "sdxl": 1024}
_OPERATIONS = {
    "sd1": (0.80e12, 859_520_964, 512),
    "sd2": (0.80e12, 865_910_724, 512),
    "sdxl": (5.98e12, 2_567_463_684, 1024),
}
_PASSES = {"dreambooth": 4.0}
_PASSES_ELSE = 3.0
_SHARE_OF_PEAK = 0.35
_OVERHEAD = {"cuda": 0.08, "cpu": 0.12}
_speeds: dict[str, float] = {}
_measuring = threading.Lock()


@dataclass(frozen=True)
class Kind:
    """What steps must share so that one's duration says something of another's: of a device only its type, of a UNet
    only about how large it is.

    Attributes:
        device: "cpu", "cuda" or "cuda:1".
        parameters: values of the UNet, 0 for the family's published size.
    """

    family: str
    method: str
    device: str = field(compare=False)
    parameters: int = field(default=0, compare=False)
    device_type: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "device_type", self.device.partition(":")[0])

    @property
    def size(self) -> float:
        """Values of the UNet."""
        return self.parameters or _OPERATIONS.get(self.family, (0, 1, 0))[1]

    def is_like(self, other: Kind) -> bool:
        """Whether steps of this kind tell how long those of another take."""
        return self == other and 1 / _ALIKE < self.size / other.size < _ALIKE


def work(resolution: Any, job: Mapping[str, Any]) -> float:
    """How much a step does, in pixels."""
    return float(resolution or 512) ** 2 * int(job.get("batch_size") or 1) * int(job.get("gradient_accumulation") or 1)


def side_for(family: str, resolution: Any, stated: int | None) -> int:
    """The resolution that a job will have: its own, else what the base says, else the family's."""
    return int(resolution or stated or _SIDES.get(family, 512))


def seconds_per_step(kind: Kind, wanted: float, runs: Path) -> tuple[float | None, str]:
    """(seconds of one step that does `wanted` work, the run that measured it).

    The name is empty where no run measured steps about as large, and the seconds then are rough; None where not even
    that is known. Of the runs that did, the one whose steps are most like these counts, the newest of several.
    """
    fitting = [
        (run, found) for run in _newest(runs) if (found := _measured(run)) and found[1] and found[0].is_like(kind)
    ]
    if not fitting:
        return _rough(kind, wanted), ""
    run, (_, done, seconds) = min(fitting, key=lambda each: round(abs(math.log(wanted / each[1][1])), 1))
    near = 1 / _NEAR <= wanted / done <= _NEAR  # small steps take longer for each picture than large ones
    return seconds * wanted / done, run.name if near else ""


def _newest(runs: Path) -> Iterator[Path]:
    found = [run for run in run_folders(runs) if (run / "events.jsonl").exists() and (run / "job.yaml").exists()]
    yield from sorted(found, key=lambda run: (run / "events.jsonl").stat().st_mtime, reverse=True)[:_RUNS_LOOKED_AT]


_known: dict[tuple[str, int], tuple[Kind, float, float] | None] = {}


def _measured(run: Path) -> tuple[Kind, float, float] | None:
    """Kind, work and median seconds of a former run's steps; read once for each length of its events."""
    key = (str(run), (run / "events.jsonl").stat().st_size)
    if key not in _known:
        _known[key] = _read(run)
    return _known[key]


def _read(run: Path) -> tuple[Kind, float, float] | None:
    try:
        job = spec.read_yaml(run / "job.yaml")
    except InputError:
        return None
    events, _ = read_events(run / "events.jsonl")
    plans = [event for event in events if event["event"] == "plan"]
    steps = sorted(event["seconds"] for event in events if event["event"] == "step" and "seconds" in event)
    if not plans or len(steps) < MEASURED_STEPS:
        return None
    parameters = describe_base(Path(str(job["base"]))).parameters if job.get("base") else 0
    kind = Kind(str(plans[-1].get("family")), str(job.get("method")), str(plans[-1].get("device")), parameters)
    return kind, work(plans[-1].get("resolution"), job), steps[len(steps) // 2]


def _rough(kind: Kind, wanted: float) -> float | None:
    if kind.family not in _OPERATIONS:
        return None
    operations, published, side = _OPERATIONS[kind.family]
    one = operations * kind.size / published * wanted / side**2
    seconds = one * _PASSES.get(kind.method, _PASSES_ELSE) / (speed(kind.device) * _SHARE_OF_PEAK)
    return seconds + _OVERHEAD.get(kind.device_type, 0.1)


def speed(device: str) -> float:
    """Operations per second of a plain matrix product on a device, measured once; a guess where it cannot be."""
    with _measuring:
        if device not in _speeds:
            try:
                _speeds[device] = _measure(device)
            except (RuntimeError, AssertionError, NotImplementedError):  # busy, full, or not here
                _speeds[device] = 1e13 if device != "cpu" else 1e11
        return _speeds[device]


def _measure(device: str) -> float:
    side, dtype = (2048, torch.float16) if device.startswith(("cuda", "xpu")) else (512, torch.float32)
    matrix = torch.ones(side, side, dtype=dtype, device=device)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        float((matrix @ matrix)[0, 0])  # reading a value waits for the device
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best
