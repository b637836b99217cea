"""Which process is meant, whether it lives, and how it is ended with everything it started.

A process number is used again after a process has ended, so a process is told by its number *and* its start.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

SECONDS_OF_DOUBT = 3.0
"""Clocks of processes and of files are compared no closer than this."""


@dataclass(frozen=True)
class Identity:
    """One process, never another one that got its number later.

    Attributes:
        started: the system's own word for its start; only ever compared with another one from the same machine.
    """

    pid: int
    started: str

    @classmethod
    def of(cls, pid: int) -> Identity | None:
        """The process that has this number now; None where there is none."""
        started = _started(pid)
        return None if started is None else cls(pid, started)

    @property
    def is_alive(self) -> bool:
        return _started(self.pid) == self.started


def was_running(pid: int, moment: float) -> bool:
    """Whether the process that has this number now was there already at `moment` (seconds since 1970)."""
    began = _start_time(pid)
    return began is not None and began <= moment + SECONDS_OF_DOUBT


def new_group() -> dict[str, object]:
    """Arguments of `Popen` for a process that outlives ours and that no Ctrl-C of ours reaches."""
    if os.name == "nt":
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW}
    return {"start_new_session": True}


def kill_tree(process: Identity) -> bool:
    """Ends a process and all that it started, at once. False where it had ended already."""
    if not process.is_alive:
        return False
    if os.name == "nt":
        subprocess.run(["taskkill", "/T", "/F", "/PID", str(process.pid)], capture_output=True, check=False)
        return True
    family = [process.pid, *_descendants(process.pid)]
    if _group_of(process.pid) == process.pid:  # never a group that we are in ourselves
        _signal(os.killpg, process.pid)
    for pid in family:
        _signal(os.kill, pid)
    return True


def _signal(send, pid: int) -> None:
    try:
        send(pid, signal.SIGKILL)
    except ProcessLookupError:
        return  # it has ended meanwhile


def _group_of(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None


def _descendants(pid: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for child, parent in _parents():
        children.setdefault(parent, []).append(child)
    found, waiting = [], [pid]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


if sys.platform.startswith("linux"):

    def _stat(pid: int) -> list[str] | None:
        """The fields of /proc/PID/stat behind the name, which may itself hold spaces and brackets."""
        try:
            text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        except (OSError, ValueError):
            return None
        fields = text.rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields  # ended, and only waits to be noticed

    def _boot() -> str:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()

    def _started(pid: int) -> str | None:
        fields = _stat(pid)
        return None if fields is None else f"{_boot()}/{fields[19]}"

    def _start_time(pid: int) -> float | None:
        fields = _stat(pid)
        if fields is None:
            return None
        uptime = float(Path("/proc/uptime").read_text(encoding="ascii").split()[0])
        return time.time() - uptime + int(fields[19]) / os.sysconf("SC_CLK_TCK")

    def _parents() -> list[tuple[int, int]]:
        numbers = [int(name) for name in os.listdir("/proc") if name.isdigit()]
        stats = ((pid, _stat(pid)) for pid in numbers)
        return [(pid, int(fields[1])) for pid, fields in stats if fields]

elif os.name == "nt":
    import ctypes
    from ctypes import wintypes

    _kernel = ctypes.WinDLL("kernel32", use_last_error=True)
    _kernel.OpenProcess.restype = wintypes.HANDLE
    _QUERY, _STILL_ACTIVE = 0x1000, 259
    _SECONDS_TO_1970 = 11644473600

    def _creation(pid: int) -> int | None:
        """Its creation in units of 100 ns since 1601; None where no such process runs."""
        handle = _kernel.OpenProcess(_QUERY, False, pid)
        if not handle:
            return None
        try:
            code = wintypes.DWORD()
            times = [wintypes.FILETIME() for _ in range(4)]
            if not _kernel.GetExitCodeProcess(wintypes.HANDLE(handle), ctypes.byref(code)):
                return None
            if code.value != _STILL_ACTIVE:
                return None
            if not _kernel.GetProcessTimes(wintypes.HANDLE(handle), *map(ctypes.byref, times)):
                return None
            return times[0].dwHighDateTime << 32 | times[0].dwLowDateTime
        finally:
            _kernel.CloseHandle(wintypes.HANDLE(handle))

    def _started(pid: int) -> str | None:
        made = _creation(pid)
        return None if made is None else str(made)

    def _start_time(pid: int) -> float | None:
        made = _creation(pid)
        return None if made is None else made / 1e7 - _SECONDS_TO_1970

    def _parents() -> list[tuple[int, int]]:
        return []  # taskkill finds them itself

else:

    def _ps(*words: str) -> list[str]:
        environment = {**os.environ, "LC_ALL": "C"}
        done = subprocess.run(["ps", *words], capture_output=True, text=True, env=environment, check=False)
        return [line.strip() for line in done.stdout.splitlines() if line.strip()]

    def _started(pid: int) -> str | None:
        lines = _ps("-o", "stat=,lstart=", "-p", str(pid))
        state, _, started = lines[0].partition(" ") if lines else ("Z", "", "")
        return None if state.startswith("Z") else " ".join(started.split())

    def _start_time(pid: int) -> float | None:
        started = _started(pid)
        return None if started is None else time.mktime(time.strptime(started, "%a %b %d %H:%M:%S %Y"))

    def _parents() -> list[tuple[int, int]]:
        pairs = (line.split() for line in _ps("-axo", "pid=,ppid="))
        return [(int(pid), int(parent)) for pid, parent in pairs]
