"""`install.py doctor`: what is on this machine, where it comes from, and what to do about what is wrong."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from extension.jobs.places import ENVIRONMENTS, too_deep
from installer import machine
from installer.environment import ROOT, Environment
from installer.link import is_webui
from installer.lock import is_held
from installer.problems import tail_of
from installer.processes import capture
from installer.webui import examine, packages_of

GIB = 1024**3
ENVIRONMENT_GIB = 2.0

_DEVICES = """
import json, torch
devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
mps = bool(getattr(torch.backends, "mps", None) and torch.backends.mps.is_available())
print("\\n" + json.dumps({"cuda": torch.version.cuda, "devices": devices, "mps": mps}))
"""


def report(webui: Path | None = None, root: Path = ROOT, python: Path | None = None) -> list[str]:
    """The lines of the report: facts first, then every problem with what to do about it.

    Args:
        python: the Python that runs the WebUI, where it is not in one of the usual places.
    """
    problems: list[str] = []
    lines = ["Athanor " + _version(root), f"folder: {root}", *_system(root)]
    lines += [
        f"NVIDIA GPU: {gpu.name}, {gpu.memory_mib} MiB, driver {gpu.driver}" for gpu in machine.nvidia_gpus()
    ] or ["NVIDIA GPU: none found"]
    lines += list(_environment(root, problems, needed=webui is None))
    lines += list(examine(webui, python, root, problems)) if webui else []
    lines += list(_write_access(root, webui, problems))
    lines += ["", *(f"To do: {problem}" for problem in problems)] if problems else ["", "No problem found."]
    return lines


def _version(root: Path) -> str:
    for line in (root / "pyproject.toml").read_text(encoding="utf-8").splitlines():
        if line.startswith("version"):
            return line.split('"')[1]
    return "(unknown version)"


def _system(root: Path) -> Iterator[str]:
    yield f"system: {platform.platform()}, {os.cpu_count()} processors"
    total, available = memory()
    if total:
        yield f"memory: {total / GIB:.1f} GiB, {available / GIB:.1f} GiB available"
    yield f"disk: {shutil.disk_usage(root).free / GIB:.1f} GiB free"
    yield f"Python: {platform.python_version()} ({sys.executable})"
    yield f"torch beside this Python: {machine.nearby_torch_version() or 'none'}"


def memory() -> tuple[int, int]:
    """Main memory in bytes: (all, available); zeros where the system does not say."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        rows = dict(line.split(":", 1) for line in meminfo.read_text(encoding="ascii").splitlines() if ":" in line)
        return tuple(int(rows.get(name, "0 kB").split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))  # type: ignore[return-value]
    if os.name == "nt":
        state = (ctypes.c_ulonglong * 8)()
        ctypes.cast(state, ctypes.POINTER(ctypes.c_ulong))[0] = ctypes.sizeof(state)
        if ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(state)):  # type: ignore[attr-defined]
            return state[1], state[2]
        return 0, 0
    try:
        all_of_it = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return 0, 0
    return all_of_it, all_of_it


def _environment(root: Path, problems: list[str], needed: bool) -> Iterator[str]:
    environment = Environment(root)
    if not environment.python.exists():
        yield "environment of the commands: not made yet (python install.py demo makes it)"
        if shutil.disk_usage(root).free < ENVIRONMENT_GIB * GIB and needed:
            problems.append(
                f"less than {ENVIRONMENT_GIB:.0f} GiB of disk is free; the environment needs more than that."
            )
        return
    if not environment.fits():
        busy = is_held(environment.lock_path)
        state = "is being made or brought up to date just now" if busy else "outdated or unfinished"
        yield f"environment of the commands: {environment.folder}, {state}"
        if needed and not busy:
            problems.append("the environment is outdated or unfinished; `python install.py demo` mends it.")
        return
    yield f"environment of the commands: {environment.folder}, complete"
    files = environment.lists(environment.stamp().get("lists", []))
    yield from packages_of(environment.command(), files, environment.folder, problems)
    status, output = capture([environment.python, "-c", _DEVICES], timeout=300)
    if status != 0:
        problems.append("the environment does not work; delete the folder .venv and run `python install.py demo`.")
        yield from (f"  {line}" for line in tail_of(output).splitlines())
        return
    found = json.loads(output.strip().splitlines()[-1])
    accelerators = found["devices"] or (["Apple GPU"] if found["mps"] else [])
    where = ", ".join(accelerators) or "the processor only"
    yield f"    torch computes on: {where}; CUDA {found['cuda'] or 'not built in'}"
    if machine.nvidia_gpus() and not found["devices"]:
        problems.append(
            "torch does not see the NVIDIA GPU; update its driver, or delete the folder .venv and try again."
        )


def _writable(folder: Path) -> bool:
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _write_access(root: Path, webui: Path | None, problems: list[str]) -> Iterator[str]:
    folders = [root]
    if webui is not None and is_webui(webui):
        folders += [webui, webui / "extensions", webui / "models"]
    for folder in folders:
        writable = _writable(folder)
        yield f"write access: {folder}: {'yes' if writable else 'no'}"
        if not writable:
            problems.append(f"give yourself write access to {folder}.")
    if too_deep(root / ENVIRONMENTS / "py310-00000000"):
        problems.append("this folder's path is long for Windows; move it nearer to the drive, or switch long paths on.")
