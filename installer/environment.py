"""The trainers' environment, made once, then only checked: `.venv` beside install.py, or a WebUI's (`installer.host`).

A stamp file inside it says what it was made from. While it is being made the stamp says so, and a set-up that finds
such a stamp starts afresh. Nothing is ever installed anywhere else: where the running Python has a torch, the
environment only gets a `.pth` file that appends that Python's folders behind its own.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from installer import machine
from installer.lock import only_one
from installer.packages import look
from installer.problems import SetupError, explain, tail_of
from installer.processes import Status, Watch, capture, follow

ROOT = Path(__file__).resolve().parent.parent
STAMP = "athanor-setup.json"
OURS, BORROWED = "athanor.pth", "athanor-torch.pth"
TORCH, TORCH_NEEDS = "torch.txt", "torch-needs.txt"
TRAINERS, TRAINERS_OLD, TESTS = "trainers.txt", "trainers-torch21.txt", "tests.txt"
WHEELS = "wheels"
SERVE, SERVE_OLD = "serve.txt", "serve-torch21.txt"
NEWER_TRAINERS_FROM = (2, 6)


class Environment:
    """The environment in `folder`, for the requirement files in `root/requirements`.

    Attributes:
        watch: told of every step and of every line that it prints; None where nobody looks on.
    """

    watch: Watch | None = None

    def __init__(self, root: Path = ROOT, folder: Path | None = None) -> None:
        self.root = root
        self.folder = folder or root / ".venv"
        self.lock_path = self.folder.with_name(self.folder.name + ".lock")
        self.stamp_path = self.folder / STAMP
        self.log_path = self.folder / "athanor-setup.log"

    @property
    def python(self) -> Path:
        """The environment's interpreter."""
        return self.folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")

    def command(self) -> list[Path]:
        """The words before `-m MODULE` or `-c PROGRAM`."""
        return [self.python]

    def _pip_command(self) -> list[str | Path]:
        return [self.python, "-m", "pip", "install", "--no-warn-script-location"]

    def stamp(self) -> dict[str, Any]:
        """What the environment was made from; empty without a readable stamp."""
        try:
            stamp = json.loads(self.stamp_path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return stamp if isinstance(stamp, dict) else {}

    def _write_stamp(self, stamp: dict[str, Any]) -> None:
        temporary = self.stamp_path.with_suffix(".new")
        temporary.write_text(json.dumps(stamp, indent=1, sort_keys=True), encoding="utf-8")
        os.replace(temporary, self.stamp_path)

    def lists(self, names: Sequence[str]) -> list[Path]:
        """The requirement files of these names that are there."""
        return [file for file in (self.root / "requirements" / name for name in names) if file.is_file()]

    def _hash(self, *names: str) -> str:
        digest = hashlib.sha256()
        for name in names:
            digest.update((self.root / "requirements" / name).read_bytes().replace(b"\r\n", b"\n"))
        return digest.hexdigest()

    def _wanted(self, tests: bool, serve: bool = False) -> dict[str, Any]:
        """The stamp of a fitting environment, found out without importing or starting anything."""
        torch = None if machine.running_in(self.folder) else machine.nearby_torch_version()
        if torch is not None and machine.version_tuple(torch) < machine.OLDEST_TORCH:
            torch = None
        return {
            "python": f"{sys.version_info[0]}.{sys.version_info[1]}",
            "torch_nearby": torch,
            "requirements": self._hash(TORCH, TORCH_NEEDS, TRAINERS, TRAINERS_OLD),
            "serve": self._hash(SERVE, SERVE_OLD) if serve else None,
            "tests": self._hash(TESTS) if tests else None,
            "root": str(self.root),
        }

    def fits(self, tests: bool = False, serve: bool = False) -> bool:
        """Whether the environment is complete and made for this Python, this torch and these requirements."""
        stamp, wanted = self.stamp(), self._wanted(tests, serve)
        if not stamp.get("ready") or not self.python.exists():
            return False
        if machine.running_in(self.folder):
            wanted["torch_nearby"] = stamp.get("torch_nearby")
        # What is there and not asked for does no harm.
        wanted.update({name: stamp.get(name) for name, asked in (("tests", tests), ("serve", serve)) if not asked})
        return all(stamp.get(name) == value for name, value in wanted.items())

    # --- making it

    def _status(self, what: str) -> Status:
        return Status(what, self.watch)

    def ensure(self, tests: bool = False, serve: bool = False) -> Path:
        """Makes the environment where it is missing or outdated; returns its interpreter. Fast when it fits.

        Args:
            tests: also what the tests need, the embedded host among it.
            serve: also what the embedded host needs.
        """
        serve = serve or tests
        if self.fits(tests, serve):
            return self.python
        if not os.access(self.root, os.W_OK):
            raise SetupError(f"{self.root} cannot be written; give yourself write access or move Athanor elsewhere.")
        with only_one(self.lock_path):
            if not self.fits(tests, serve):  # another set-up may have made it meanwhile
                self._make(tests, serve)
        return self.python

    def _make(self, tests: bool, serve: bool) -> None:
        began = time.monotonic()
        wanted = self._wanted(tests, serve)
        stamp = self._prepare_folder(wanted)
        stamp.update(wanted, ready=False)
        self._write_stamp(stamp)
        site = self._site_packages()
        torch = None
        if wanted["torch_nearby"]:
            status = self._status(f"Trying the torch that is already here ({wanted['torch_nearby']})")
            torch = machine.found_torch()
            status.done("it works and will be used" if torch else "it does not work, so another one is installed")
        # The borrowed folders come back last: pip must not count what lies there as installed.
        (site / BORROWED).unlink(missing_ok=True)
        sets = [TRAINERS, *[SERVE] * serve]
        if torch is None:
            self._install_torch()
            sets.insert(0, TORCH_NEEDS)
        elif machine.version_tuple(torch.version) < NEWER_TRAINERS_FROM:
            sets = [TRAINERS_OLD, *[SERVE_OLD] * serve]
        files = self.lists(sets + [TESTS] * tests)
        stamp["lists"] = [file.name for file in files]
        self._install(files)
        (site / OURS).write_text(f"{self.root}\n", encoding="utf-8")
        if torch is not None:
            (site / BORROWED).write_text("\n".join(torch.folders) + "\n", encoding="utf-8")
        stamp["versions"] = self._check(files, serve)
        stamp["ready"] = True
        self._write_stamp(stamp)
        print(f"The environment is ready ({time.monotonic() - began:.0f} s).", flush=True)

    def _prepare_folder(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """An environment folder with a working pip; returns the stamp to go on from."""
        stamp = self.stamp()
        if self.folder.exists() and not stamp and any(self.folder.iterdir()):
            return self._adopt(wanted)
        if stamp.get("adopted"):
            return self._adopt(wanted)
        same = all(stamp.get(name) == wanted[name] for name in ("python", "torch_nearby"))
        if stamp.get("ready") and same and self.python.exists():
            return stamp  # only the requirements changed
        if self.folder.exists():
            if machine.running_in(self.folder):
                raise SetupError(
                    "This Python is the environment that has to be made anew; run install.py with another."
                )
            why = (
                "an earlier set-up was interrupted" if not stamp.get("ready") else "Python or torch is another one now"
            )
            print(f"Making the environment anew: {why}.", flush=True)
            self._remove()
        return self._create()

    def _adopt(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """A `.venv` that somebody else made is used when it can be, and never deleted."""
        status, output = capture([self.python, "-m", "pip", "--version"], timeout=120)
        if status != 0 or f"(python {wanted['python']})" not in output:
            raise SetupError(
                f"{self.folder} was not made by Athanor and does not work with Python {wanted['python']}; "
                "rename or delete that folder and try again."
            )
        print(f"Using the environment that is already in {self.folder}.", flush=True)
        return {"adopted": True}

    def _remove(self) -> None:
        try:
            shutil.rmtree(self.folder)
        except OSError as error:
            raise SetupError(
                f"{self.folder} cannot be removed ({error.strerror}); close what uses it, delete it and try again."
            ) from None

    def _create(self) -> dict[str, Any]:
        for module in ("venv", "ensurepip"):
            if importlib.util.find_spec(module) is None:
                raise SetupError(_without_venv(module))
        self.folder.mkdir(exist_ok=True)
        self._write_stamp({"ready": False})
        status = self._status(f"Making an environment for Python {'.'.join(map(str, sys.version_info[:2]))}")
        # The base interpreter, not a virtual environment's, so that this one does not depend on that one.
        base = getattr(sys, "_base_executable", "") or sys.executable
        code, output = capture([base, "-m", "venv", self.folder], timeout=600)
        if code != 0:
            if "ensurepip" in output:
                raise SetupError(_without_venv("ensurepip"), tail_of(output))
            raise SetupError(f"No environment could be made in {self.folder}: see below.", tail_of(output))
        status.done()
        return {}

    def _site_packages(self) -> Path:
        code, output = capture(
            [self.python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], timeout=60
        )
        if code != 0:
            raise SetupError(f"The environment in {self.folder} does not start: delete it.", tail_of(output))
        return Path(output.strip().splitlines()[-1])

    def _install_torch(self) -> None:
        """Tries the builds that suit the machine in turn; the last one's failure is the set-up's."""
        requirement = self._torch_requirement()
        # What is the same for torch and the trainers gets one version at once.
        limits = [part for name in (TORCH_NEEDS, TRAINERS) for part in ("-c", self.root / "requirements" / name)]
        builds = machine.suitable_builds()
        for build, last in zip(builds, [False] * (len(builds) - 1) + [True], strict=True):
            arguments: Sequence[str | Path] = limits
            if build.index is not None:
                if not machine.reachable(build.index + "/"):
                    print(f"{build.index} cannot be reached, so {requirement} comes from pip's own index.", flush=True)
                    continue
                # Torch alone: its needs are in our lists, and that index keeps only some of them.
                arguments = ("--no-deps", "--index-url", build.index)
            try:
                self._pip(f"Installing {requirement}, {build.title}", *arguments, requirement)
                return
            except SetupError as problem:
                if last:
                    raise
                print(f"That did not work ({explain(problem.tail)}); trying pip's own index.", flush=True)

    def _install(self, files: Sequence[Path]) -> None:
        """Installs lists: from the folder `wheels` beside install.py where that is enough, else as pip is set up."""
        lists = [part for file in files for part in ("-r", file)]
        what, wheels = "Installing the trainers' packages", self.root / WHEELS
        if not wheels.is_dir():
            return self._pip(what, "--no-deps", *lists)
        try:
            self._pip(f"{what} from {wheels}", "--no-deps", "--no-index", "--find-links", wheels, *lists)
        except SetupError as problem:
            print(f"That did not work ({explain(problem.tail)}); trying pip's own index too.", flush=True)
            self._pip(what, "--no-deps", "--find-links", wheels, *lists)

    def _torch_requirement(self) -> str:
        lines = (self.root / "requirements" / TORCH).read_text(encoding="utf-8").splitlines()
        return next(line.split(";")[0].strip() for line in lines if line.startswith("torch=="))

    def _pip(self, what: str, *arguments: str | Path) -> None:
        status = self._status(what)
        command = [*self._pip_command(), *arguments]
        code, output = follow(command, status.line)
        if self.watch is None:
            with contextlib.suppress(OSError), open(self.log_path, "a", encoding="utf-8") as log:
                log.write(f"$ {' '.join(map(str, command))}\n{output}\n\n")
        if code != 0:
            status.done("failed")
            raise SetupError(
                f"{what} failed: {explain(output)}. The whole output is in {self.log_path}.", tail_of(output)
            )
        status.done()

    def _check(self, files: Sequence[Path], serve: bool) -> dict[str, str]:
        """The versions of what was installed, after importing it once in the environment."""
        status = self._status("Checking that everything can be imported")
        code, output = capture([*self.command(), "-c", _IMPORT_SERVE * serve + _IMPORT_ALL], timeout=600)
        if code != 0:
            status.done("failed")
            raise SetupError("The packages are installed but cannot be imported; see below.", tail_of(output))
        wrong = [package.complaint for package in look(self.command(), files, self.folder) if package.complaint]
        if wrong and not self.stamp().get("adopted"):
            status.done("failed")
            raise SetupError(f"The environment in {self.folder} is mixed up; delete it.", "\n".join(wrong))
        versions = json.loads(output.strip().splitlines()[-1])
        status.done(", ".join(f"{name} {version}" for name, version in versions.items()))
        return versions


_IMPORT_ALL = """
import json, torch, accelerate, diffusers, numpy, peft, PIL, safetensors, transformers, yaml
shown = (torch, diffusers, transformers, peft, accelerate)
print("\\n" + json.dumps({module.__name__: str(module.__version__) for module in shown}))
"""

_IMPORT_SERVE = "import fastapi, gradio, uvicorn"


def _without_venv(module: str) -> str:
    """What to do where Python was packaged without the parts that make an environment."""
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    remedy = f"on Debian or Ubuntu: sudo apt install python{version}-venv; elsewhere install Python from python.org"
    return f"This Python ({sys.executable}) comes without the module {module!r}, which is needed ({remedy})."
