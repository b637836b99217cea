"""The Python that trainers run with, which is never the host's own environment."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from extension.jobs.places import ROOT
from extension.jobs.setup import Setup

__all__ = ["ROOT", "Environment", "default_python"]
PYTHON_VARIABLE = "ATHANOR_PYTHON"
_HOST_ONLY = ("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "PYTHONSAFEPATH", "PYTHONUSERBASE")


def named_python() -> Path | None:
    """The interpreter that a person named, if one was."""
    named = os.environ.get(PYTHON_VARIABLE, "").strip()
    return Path(named).expanduser() if named else None


def default_python() -> Path:
    """The interpreter of the environment that install.py's commands make, or the one a person named."""
    return named_python() or ROOT / ".venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


@dataclass(frozen=True)
class Environment:
    """How a trainer is started.

    Attributes:
        python: the interpreter.
        program: the module that is run; the tests put another one here.
        paths: folders it finds modules in, besides its own.
        variables: further environment variables.
        setup: where a WebUI's own environment is made; it takes the place of `python`.
    """

    python: Path = field(default_factory=default_python)
    program: str = "trainers"
    paths: tuple[Path, ...] = (ROOT,)
    variables: dict[str, str] = field(default_factory=dict)
    setup: Setup | None = None

    def interpreter(self) -> list[str]:
        """The words before `-m MODULE`."""
        return (self.setup.interpreter() if self.setup and not named_python() else None) or [str(self.python)]

    @property
    def problem(self) -> str:
        """Why nothing can be started with it yet, in one sentence; empty when it can."""
        if self.setup and not named_python():
            return self.setup.problem
        if self.python.is_file():
            return ""
        return f"The trainers' environment is not there yet ({self.python}); run: python install.py demo"

    def command(self, *words: str | Path) -> list[str]:
        """`python -m words…`, as a list: no shell ever reads it."""
        return [*self.interpreter(), "-m", *map(str, words)]

    def child(self, run: Path, attempt: str) -> list[str]:
        """The command that works on a run."""
        return self.command("extension.jobs.child", run, attempt, "--program", self.program)

    def process_variables(self) -> dict[str, str]:
        """The environment of the process: the host's, without what would bring the host's packages in."""
        kept = {name: value for name, value in os.environ.items() if name not in _HOST_ONLY}
        own = {
            "PYTHONPATH": os.pathsep.join(map(str, self.paths)),
            "PYTHONIOENCODING": "utf-8",
            "PYTHONUNBUFFERED": "1",
            "PYTHONNOUSERSITE": "1",
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_OFFLINE": "1",
            # Other extensions bring these into a WebUI; transformers would import them.
            "USE_TF": "0",
            "USE_FLAX": "0",
        }
        return {**kept, **own, **self.variables}
