"""Starts the making of the trainers' environment. Standard library only: `install.py` runs this too."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from extension.jobs.processes import new_group


def start_build(root: Path, data: Path | None, again: bool = False) -> subprocess.Popen[bytes]:
    """Starts `install.py setup` as a process that outlives this one.

    Args:
        again: also look closely at an environment that says it is complete.

    Raises:
        OSError: it could not be started.
    """
    command = [sys.executable, str(root / "install.py"), "setup"]
    command += (["--data", str(data)] if data else []) + (["--again"] if again else [])
    # Its output goes to its log. A WebUI reads an installer's output to the end: no pipe of it may be passed on.
    return subprocess.Popen(
        command,
        cwd=root,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        close_fds=True,
        **new_group(),  # type: ignore[call-overload]
    )
