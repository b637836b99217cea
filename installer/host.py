"""What a WebUI's start does: a look at the trainers' environment, and where it does not fit, a process that makes it.

A WebUI runs `install.py` at every start and shows its output only when it has ended, so nothing here waits. Nothing
here may stop a WebUI's start either: every failure is a sentence.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from extension.jobs import places
from extension.jobs.build import start_build
from extension.jobs.copies import second_copies
from extension.jobs.files import read_json, write_json
from extension.jobs.places import Place
from extension.jobs.processes import Identity
from extension.loading import compile_all
from installer.environment import ROOT, Environment
from installer.link import SD_NEXT, is_sd_next, is_webui
from installer.lock import only_one
from installer.problems import SetupError, tail_of
from installer.processes import capture

PLAIN = "packages"
_NEEDED_MIB = 700
_SECONDS_BETWEEN_LINES = 0.3


def at_start() -> int:
    """Looks, starts what has to be started and says so. Always 0."""
    try:
        for sentence in _look():
            print(sentence if sentence.startswith("Athanor") else f"Athanor: {sentence}")
    except Exception as error:
        print(f"Athanor could not look after its trainers' environment: {type(error).__name__}: {error}")
    return 0


def _look() -> Iterator[str]:
    webui, data = webui_of_this_start()
    if webui is None or data is None:
        return
    if is_sd_next(webui):
        yield SD_NEXT
        return
    yield from second_copies(_started_as().parent.parent, _disabled(data.parent))
    place = places.choose(ROOT, data)
    if place is None:
        yield f"no folder can be written for the trainers' environment; give yourself write access to {ROOT}."
        return
    if HostEnvironment(ROOT, place).fits():
        return
    start_build(ROOT, data)
    yield (
        "the trainers' environment is being made; drawing works meanwhile, training waits for it. "
        f"The tab Athanor shows how far it is, {place.log} all of it."
    )


def _disabled(data: Path) -> list[str]:
    """Names of the extensions that are switched off, as a WebUI writes them down."""
    names = (read_json(data / "config.json") or {}).get("disabled_extensions")
    return names if isinstance(names, list) else []


def _started_as() -> Path:
    """install.py under the name it was started by, which may lead through a linked folder."""
    return Path(os.path.abspath(sys.argv[0]))


def webui_of_this_start() -> tuple[Path | None, Path | None]:
    """The WebUI that runs this, and our folder among its data; (None, None) where none does.

    The working folder is the WebUI's, or (SD.Next) the extension's. With `--data-dir` the extensions lie elsewhere.
    """
    extensions = _started_as().parent.parent
    webui = next((folder for folder in (Path.cwd(), extensions.parent) if is_webui(folder)), None)
    if webui is None:
        return None, None
    data = extensions.parent if extensions.name.lower() == "extensions" else webui
    return webui, data / "athanor"


class HostEnvironment(Environment):
    """The environment of the WebUI whose Python runs this.

    A Python without `venv` (the "embedded" one of Windows packages) gets a folder of packages instead, which
    `extension/jobs/bootstrap.py` puts before the WebUI's.
    """

    def __init__(self, root: Path, place: Place) -> None:
        super().__init__(root, place.folder)
        self.place = place
        self.lock_path = place.lock
        self.packages = place.folder / PLAIN

    @property
    def is_plain(self) -> bool:
        return self.packages.is_dir()

    @property
    def python(self) -> Path:
        return Path(sys.executable) if self.is_plain else super().python

    def command(self) -> list[Path]:
        return [self.python, self.root / "extension" / "jobs" / "bootstrap.py", self.packages] * self.is_plain or [
            self.python
        ]

    def _pip_command(self) -> list[str | Path]:
        command = super()._pip_command()
        # Beside the WebUI's packages pip would take them for installed ones, or complain of them.
        return [*command, "--target", self.packages, "--upgrade"] if self.is_plain else command

    def _site_packages(self) -> Path:
        return self.packages if self.is_plain else super()._site_packages()

    def _wanted(self, tests: bool, serve: bool = False) -> dict[str, Any]:
        return {**super()._wanted(tests, serve), "prefix": sys.prefix}

    def _prepare_folder(self, wanted: dict[str, Any]) -> dict[str, Any]:
        if self.is_plain and self.folder.exists():
            self._remove()  # pip cannot take an old version out of a plain folder
        return super()._prepare_folder(wanted)

    def _create(self) -> dict[str, Any]:
        if all(importlib.util.find_spec(module) for module in ("venv", "ensurepip")):
            return super()._create()
        status, output = capture([sys.executable, "-m", "pip", "--version"], timeout=120)
        if status != 0:
            sentence = (
                f"This Python ({sys.executable}) has neither the module 'venv' nor pip, so nothing can be installed."
            )
            raise SetupError(sentence, tail_of(output))
        print("This Python makes no virtual environments, so the packages get a folder of their own.", flush=True)
        self.packages.mkdir(parents=True)
        self._write_stamp({"ready": False})
        return {"plain": True}

    def make(self, again: bool) -> None:
        """Makes it, or with `again` has a closer look at a complete one and makes it anew where something is wrong."""
        if again and self.fits():
            try:
                self._check(self.lists(self.stamp().get("lists", [])), serve=False)
                return
            except SetupError as problem:
                print(f"{problem.tail}\nThe environment is damaged ({problem.sentence}) and is made anew.", flush=True)
                self._remove()
        if not self.fits():
            self._make(tests=False, serve=False)
        self._remove_left_over()

    def _remove_left_over(self) -> None:
        """Takes away the environments of Pythons that are gone (a WebUI that was moved or deleted)."""
        for stamp in self.folder.parent.glob("*/athanor-setup.json"):
            prefix = (read_json(stamp) or {}).get("prefix")
            if stamp.parent != self.folder and prefix and not Path(prefix).exists():
                shutil.rmtree(stamp.parent, ignore_errors=True)
                for ending in (".status.json", ".log", ".lock"):
                    stamp.parent.with_name(stamp.parent.name + ending).unlink(missing_ok=True)


class Progress:
    """Writes how far the build is to the status file, which the tab reads."""

    def __init__(self, place: Place, steps: int) -> None:
        self._place = place
        me = Identity.of(os.getpid())
        self._status: dict[str, Any] = {
            "state": "building",
            "why": place.why,
            "began": time.time(),
            "step": 0,
            "steps": steps,
            "process": {"pid": me.pid, "started": me.started} if me else {},
        }
        self._written = 0.0
        self._write()

    def _write(self, **changes: Any) -> None:
        self._status.update(changes)
        self._written = time.monotonic()
        with contextlib.suppress(OSError):  # a reader on Windows, a full disk: the build itself goes on
            write_json(self._place.status, self._status)

    def begin(self, what: str) -> None:
        """A step begins."""
        step = self._status["step"] + 1
        self._write(doing=what, line="", step=step, steps=max(step, self._status["steps"]))

    def line(self, text: str) -> None:
        """The step's program printed a line, which goes to the log too."""
        print(f"  {text.rstrip()}", flush=True)
        if time.monotonic() - self._written > _SECONDS_BETWEEN_LINES:
            self._write(line=text.strip()[:200])

    def ready(self, environment: HostEnvironment) -> None:
        """It is complete."""
        words = [str(word) for word in environment.command()]
        self._write(state="ready", interpreter=words, versions=environment.stamp().get("versions", {}), line="")

    def failed(self, sentence: str) -> None:
        """It could not be made."""
        self._write(state="failed", sentence=sentence)


def set_up(data: Path | None, again: bool) -> int:
    """Makes the environment of the Python that runs this: the process that a start, or the tab, begins."""
    place = places.choose(ROOT, data)
    if place is None:
        print("No folder can be written for the trainers' environment.", file=sys.stderr)
        return 1
    with contextlib.ExitStack() as held:
        held.enter_context(only_one(place.lock, wait=0.0))  # one that is at work already does the same
        log = held.enter_context(open(place.log, "w", encoding="utf-8", errors="replace", buffering=1))
        log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {sys.executable} -> {place.folder}\n")
        held.enter_context(contextlib.redirect_stdout(log))
        held.enter_context(contextlib.redirect_stderr(log))
        return _set_up(HostEnvironment(ROOT, place), again)


def _set_up(environment: HostEnvironment, again: bool) -> int:
    progress = Progress(environment.place, steps=4)
    environment.watch = progress
    environment.log_path = environment.place.log
    try:
        compile_all(environment.root)
        _check_room(environment.place)
        environment.make(again)
        progress.ready(environment)
        return 0
    except SetupError as problem:
        print(problem.tail, problem.sentence, sep="\n")
        progress.failed(problem.sentence)
    except Exception as error:
        traceback.print_exc()
        progress.failed(f"Making the trainers' environment failed ({type(error).__name__}: {error}); see its log.")
    return 1


def _check_room(place: Place) -> None:
    free = shutil.disk_usage(place.folder.parent).free // 2**20
    if free < _NEEDED_MIB and not place.folder.exists():
        raise SetupError(f"{place.folder.parent}: {free} MiB are free; the trainers' environment needs {_NEEDED_MIB}.")
