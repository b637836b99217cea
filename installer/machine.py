"""What there is on this machine: a torch that can be used as it is, an NVIDIA GPU, a reachable package index."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import platform
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from installer.processes import capture

TORCH_INDEX = "https://download.pytorch.org/whl"
OLDEST_TORCH = (2, 1)
# CUDA 13 builds of torch (the ones on PyPI) need this driver and at least a Turing GPU; CUDA 12.6 serves older ones.
CUDA13_DRIVER, CUDA13_CAPABILITY = 580, 7.5


@dataclass(frozen=True)
class FoundTorch:
    """A torch that the running Python can import: its version and the folders it and its needs are found in."""

    version: str
    folders: tuple[str, ...]


@dataclass(frozen=True)
class Gpu:
    """An NVIDIA GPU as nvidia-smi names it; `driver` is the driver's main version."""

    name: str
    driver: int
    capability: float
    memory_mib: int


@dataclass(frozen=True)
class TorchBuild:
    """Which build of torch suits the machine; `index` None means pip's own index and its default build."""

    title: str
    index: str | None


def version_tuple(version: str) -> tuple[int, int]:
    """(2, 13) of "2.13.0+cpu"; (0, 0) when it cannot be read."""
    match = re.match(r"(\d+)\.(\d+)", version)
    return (int(match.group(1)), int(match.group(2))) if match else (0, 0)


def running_in(folder: Path) -> bool:
    """Whether the running Python is the one of the environment `folder`."""
    return os.path.realpath(sys.prefix) == os.path.realpath(folder)


def nearby_torch_version() -> str | None:
    """Version of a torch that the running Python would find, without importing it (that takes seconds)."""
    try:
        spec = importlib.util.find_spec("torch")
    except (ImportError, ValueError):
        return None
    if spec is None or not spec.origin:
        return None
    try:
        text = Path(spec.origin).with_name("version.py").read_text(encoding="utf-8")
    except OSError:
        return None
    match = re.search(r"__version__\s*(?::\s*\w+\s*)?=\s*['\"]([^'\"]+)", text)
    return match.group(1) if match else None


_LOOK = """
import json, os, sys, torch
torch.ones(2).sum().item()
home = os.path.dirname(os.path.dirname(os.path.abspath(torch.__file__)))
sites = [p for p in sys.path if os.path.basename(p) in ("site-packages", "dist-packages") and os.path.isdir(p)]
print("\\n" + json.dumps({"version": str(torch.__version__), "folders": list(dict.fromkeys([home, *sites]))}))
"""


def found_torch() -> FoundTorch | None:
    """The running Python's torch when it is new enough and really works, else None. Takes as long as importing it."""
    version = nearby_torch_version()
    if version is None or version_tuple(version) < OLDEST_TORCH:
        return None
    status, output = capture([sys.executable, "-c", _LOOK], timeout=300)
    if status != 0:
        return None
    found = json.loads(output.strip().splitlines()[-1])
    return FoundTorch(found["version"], tuple(found["folders"]))


def nvidia_gpus() -> list[Gpu]:
    """The NVIDIA GPUs that the driver shows; empty without a driver."""
    program = shutil.which("nvidia-smi")
    if program is None and os.name == "nt":
        program = r"C:\Windows\System32\nvidia-smi.exe"
    if program is None:
        return []
    fields = "name,driver_version,compute_cap,memory.total"
    status, output = capture([program, f"--query-gpu={fields}", "--format=csv,noheader,nounits"], timeout=20)
    gpus = []
    for line in output.splitlines() if status == 0 else []:
        parts = [part.strip() for part in line.split(",")]
        with contextlib.suppress(ValueError, IndexError):
            gpus.append(Gpu(parts[0], int(parts[1].split(".")[0]), float(parts[2]), int(float(parts[3]))))
    return gpus


def reachable(url: str, timeout: float = 4.0) -> bool:
    """Whether something answers at `url` within `timeout` seconds (through the system's proxy settings)."""
    import urllib.error  # takes longer to import than all that a WebUI's start does here
    import urllib.request

    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=timeout):
            return True
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError):
        return False


def suitable_builds() -> list[TorchBuild]:
    """The builds of torch to try for this machine, best first."""
    plain = TorchBuild("the build that the package index gives", None)
    if platform.system() == "Darwin":
        return [plain]
    gpus = nvidia_gpus()
    if not gpus and platform.system() == "Windows":
        return [TorchBuild("the CPU build (no NVIDIA GPU was found)", None)]
    if not gpus:
        return [TorchBuild("the CPU build (no NVIDIA GPU was found)", f"{TORCH_INDEX}/cpu"), plain]
    old = [gpu for gpu in gpus if gpu.driver < CUDA13_DRIVER or gpu.capability < CUDA13_CAPABILITY]
    if old:
        return [TorchBuild(f"the CUDA 12.6 build ({old[0].name})", f"{TORCH_INDEX}/cu126"), plain]
    if platform.system() == "Windows":
        return [TorchBuild(f"the CUDA 13.0 build ({gpus[0].name})", f"{TORCH_INDEX}/cu130"), plain]
    return [TorchBuild(f"the CUDA build ({gpus[0].name})", None)]
