"""What belongs to a person's first minutes: a WebUI started as people start it, its files and its packages."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

_FOLDERS = "import sysconfig; print(sysconfig.get_path('purelib')); print(sysconfig.get_path('scripts'))"


def packages(python: str) -> dict[str, str]:
    """Every file of a Python's packages and programs with its SHA-256, and what `pip freeze` says.

    Byte code is left out: Python itself writes it whenever a module is imported for the first time. So is the file in
    which gradio counts how often it was started.
    """
    folders = subprocess.run([python, "-c", _FOLDERS], capture_output=True, text=True, check=True).stdout.split("\n")
    found = {}
    for folder in filter(None, folders):
        found.update(_files(Path(folder), lambda path: path.name == "launches.json"))
    frozen = subprocess.run([python, "-m", "pip", "freeze", "--all"], capture_output=True, text=True, check=True)
    return {**found, "pip freeze": frozen.stdout}


OF_ITS_USE = ("athanor", "cache", "config_states", "output", "outputs", "tmp", "log", "__pycache__", ".git")
"""Folders of a WebUI that change whenever it is used; `athanor` holds the runs, which stay."""
SETTINGS = ("config.json", "ui-config.json")
_REWRITTEN = (*SETTINGS, "params.txt", "styles.csv", "launches.json")


def files_of(webui: Path) -> dict[str, str]:
    """Every file of a WebUI that using it leaves alone, with its SHA-256."""

    def left_out(path: Path) -> bool:
        return path.name in _REWRITTEN or any(part in OF_ITS_USE for part in path.relative_to(webui).parts)

    return _files(webui, left_out)


def _files(folder: Path, left_out: Callable[[Path], bool]) -> dict[str, str]:
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix != ".pyc" and not left_out(path):
            with open(path, "rb") as file:
                found[str(path)] = _digest(file)
    return found


def _digest(file) -> str:
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def changed(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """What is another file now, came, or went."""
    return sorted(name for name in {*before, *after} if before.get(name) != after.get(name))


def settings_of(webui: Path) -> dict[str, str | None]:
    """The texts of the files that the WebUI keeps its settings in; None for one that is not there."""
    files = {name: webui / name for name in SETTINGS}
    return {name: file.read_text(encoding="utf-8") if file.exists() else None for name, file in files.items()}


def put_back(webui: Path, settings: dict[str, str | None]) -> None:
    """Gives a WebUI the settings that it had."""
    for name, text in settings.items():
        if text is None:
            (webui / name).unlink(missing_ok=True)
        else:
            (webui / name).write_text(text, encoding="utf-8")


def free_port() -> int:
    """A port that nobody uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Started:
    """A WebUI run by its own `launch.py`, prepare step included, and started again when it asks for it.

    `webui.sh` and `webui.bat` do the same around `launch.py`.
    """

    def __init__(self, python: str, webui: Path, log: Path, flags: Sequence[str]) -> None:
        self.webui, self.log, self.port = webui, log, free_port()
        self._command = [python, "-u", "launch.py", "--port", str(self.port), *flags]
        self._environment = {
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "GRADIO_ANALYTICS_ENABLED": "False",
            "SD_WEBUI_RESTART": "tmp/restart",
        }
        self._environment.pop("PYTHONPATH", None)
        self._output = log.open("wb")
        self._process = self._start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def _start(self) -> subprocess.Popen:
        return subprocess.Popen(
            self._command, cwd=self.webui, env=self._environment, stdout=self._output, stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip

    def said(self) -> str:
        """What it printed so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def wait(self, starts: int = 1, limit: float = 900) -> None:
        """Until it has started for the `starts`-th time; starts it again where it asked for that."""
        ends = time.monotonic() + limit
        while time.monotonic() < ends:
            if self._process.poll() is not None:
                if not (self.webui / "tmp" / "restart").exists():
                    raise RuntimeError(f"the WebUI ended:\n{self.said()[-3000:]}")
                self._process = self._start()
            if self.said().count("Startup time:") >= starts and self._answers():
                return
            time.sleep(0.5)
        raise RuntimeError(f"the WebUI did not start:\n{self.said()[-3000:]}")

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(self.address, timeout=10):
                return True
        except (OSError, urllib.error.URLError):
            return False

    def draw(self, **wishes) -> dict:
        """A picture by the WebUI's own API (it must have been started with `--api`), with what is written into it."""
        body = {"prompt": "a red circle", "seed": 7, "steps": 3, "width": 64, "height": 64, "sampler_name": "Euler"}
        body |= {"save_images": False, "override_settings": {"live_previews_enable": False}, **wishes}
        request = urllib.request.Request(
            f"{self.address}/sdapi/v1/txt2img", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=600) as answer:
            drawn = json.load(answer)
        return {"pictures": drawn["images"], "texts": json.loads(drawn["info"])["infotexts"]}

    def stop(self) -> None:
        """Ends it; the trainers' environment and what was trained stay."""
        if self._process.poll() is None:
            if os.name == "posix":
                os.killpg(self._process.pid, signal.SIGTERM)
            else:
                self._process.terminate()
            self._process.wait(60)
        self._output.close()
