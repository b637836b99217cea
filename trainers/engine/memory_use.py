"""How much memory a run really took, stage by stage: what the memory plan is held against."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch


def peak_resident_bytes() -> int:
    """The most memory this process had in use so far, as the system counts it; 0 where it does not say."""
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    status = Path("/proc/self/status")
    if status.exists():
        line = next((line for line in status.read_text().splitlines() if line.startswith("VmHWM:")), "")
        return int(line.split()[1]) * 1024 if line else 0
    if os.name != "posix":
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class MemoryUse:
    """The peaks of a run's stages, named as the memory plan names them.

    On CUDA what torch has given out (and, for the whole run, what it has reserved from the driver, to which the
    driver's own 0.3 to 0.6 GiB come). Elsewhere only the whole process's peak is known.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stages: dict[str, int] = {}
        self._reserved = 0
        self.counts = device.type == "cuda"
        if self.counts:
            torch.cuda.reset_peak_memory_stats(device)

    def end_of(self, stage: str) -> None:
        """What was taken since the last call belongs to `stage`."""
        if not self.counts:
            return
        peak = torch.cuda.max_memory_allocated(self.device)
        self.stages[stage] = max(self.stages.get(stage, 0), peak)
        self._reserved = max(self._reserved, torch.cuda.max_memory_reserved(self.device))
        torch.cuda.reset_peak_memory_stats(self.device)

    def facts(self) -> dict[str, Any]:
        """The fields of the event `memory`, but for the plan's."""
        peak = max(self.stages.values(), default=0) if self.counts else peak_resident_bytes()
        return {
            "device": self.device.type,
            "peak_bytes": peak,
            "reserved_bytes": self._reserved if self.counts else peak,
            "stages": dict(self.stages),
        }
