"""The real trainer in a process whose memory ends where a test wants it to (Linux): `python -m limited_trainer …`.

After its second step the first process notes how much memory it has then and adds what the variable `ATHANOR_TEST_ROOM`
says (MiB); that is the most that it and every later process of the run may have from there on.
"""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

from trainers import cli
from trainers.engine import loop, state


def data_bytes() -> int:
    """What counts against RLIMIT_DATA."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmData"))
    return int(line.split()[1]) * 1024


def hold(run: Path) -> None:
    limit = run / "limit"
    if not limit.exists():
        limit.write_text(str(data_bytes() + int(os.environ["ATHANOR_TEST_ROOM"]) * 2**20))
    most = int(limit.read_text())
    resource.setrlimit(resource.RLIMIT_DATA, (most, resource.RLIM_INFINITY))


def main() -> int:
    real = state.save_state

    def save(states: Path, counters: state.Counters, tensors: dict) -> Path:
        made = real(states, counters, tensors)
        if counters.step == 2:
            hold(states.parent)
        return made

    loop.state.save_state = save
    run = Path(sys.argv[-1])
    if (run / "limit").exists():
        hold(run)
    return cli.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
