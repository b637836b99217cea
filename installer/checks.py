"""Everything `install.py test` runs: ruff, the import contracts and pytest."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from installer.environment import ROOT
from installer.processes import clean_environment

CONTRACTS = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True, no_logo=True))"


MOST_WORKERS = 4
"""Each of them holds some gigabyte."""


def _on_all_cores(pytest_arguments: Sequence[str]) -> list[str]:
    """What has pytest use every core; a person's own choice, or a single file, stays as it is."""
    chosen = any(each.startswith(("-n", "--numprocesses", "--pdb", "-s")) for each in pytest_arguments)
    named = any(not each.startswith("-") and ".py" in each for each in pytest_arguments)
    workers = min(os.cpu_count() or 1, MOST_WORKERS)
    return [] if chosen or named or workers < 2 else ["-n", str(workers), "--dist", "loadfile"]


def run_checks(python: Path, pytest_arguments: Sequence[str]) -> int:
    """Runs every check, also after one failed; 0 when all passed. Pytest comes last, so its summary ends the output."""
    checks = (
        ("ruff check", [python, "-m", "ruff", "check", "."]),
        ("ruff format", [python, "-m", "ruff", "format", "--check", "."]),
        ("import contracts", [python, "-c", CONTRACTS]),
        ("tests", [python, "-m", "pytest", *_on_all_cores(pytest_arguments), *pytest_arguments]),
    )
    # No test may ask the network for a model; a test that tries should fail here as it does without one. The tests
    # share the cores, so each computes with one.
    environment = clean_environment(
        {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    )
    failed: list[str] = []
    for name, command in checks:
        if name == "tests":
            said = f"failed: {', '.join(failed)}" if failed else "all passed"
            print(f"== checks before the tests: {said}\n== tests", flush=True)
        began = time.monotonic()
        status = subprocess.call(command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL)
        if status != 0:
            failed.append(name)
        if name != "tests":
            verdict = "passed" if status == 0 else "FAILED"
            print(f"== {name}: {verdict} ({time.monotonic() - began:.1f} s)", flush=True)
    return 1 if failed else 0
