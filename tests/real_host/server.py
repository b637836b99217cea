"""A WebUI as a process, and its API."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import numpy as np
from PIL import Image

PROMPT = "a red circle on a blue background"
DEFAULTS = {
    "seed": 5,
    "steps": 4,
    "width": 64,
    "height": 64,
    "cfg_scale": 5,
    "sampler_name": "Euler",
    "save_images": False,
}
# The host puts back only settings that stand in its configuration file, so each request says all that tests change.
SETTINGS = {
    "batch_cond_uncond": True,
    "skip_early_cond": 0.0,
    "pad_cond_uncond": False,
    "token_merging_ratio": 0.0,
    "live_previews_enable": False,  # those of an SDXL would need a download
    "sd_lora": "None",
}
_START_LIMIT = 900


@dataclass
class Drawn:
    """The pictures of one request, as numbers, and what is written into them.

    Attributes:
        encoded: the pictures as files, in base 64.
    """

    pictures: list[np.ndarray]
    infotext: str
    encoded: list[str] = field(default_factory=list, repr=False)

    def away_from(self, other: Drawn) -> int:
        """The largest difference between the first pictures, in 255ths."""
        return int(np.abs(self.pictures[0].astype(int) - other.pictures[0].astype(int)).max())


def _pixels(encoded: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB"))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """One running WebUI; `login` is sent with every request, as `name:password`; `variables` are its environment's."""

    def __init__(
        self,
        python: str,
        webui: Path,
        log: Path,
        flags: Sequence[str],
        login: str = "",
        variables: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.port = _free_port()
        self.log = log
        self._headers = {"Authorization": f"Basic {base64.b64encode(login.encode()).decode()}"} if login else {}
        self._drawn: dict[str, Drawn] = {}
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "GRADIO_ANALYTICS_ENABLED": "False"}
        environment.pop("PYTHONPATH", None)
        environment.update(variables)
        command = [python, "webui.py", "--api", "--port", str(self.port), *flags]
        self._output = log.open("wb")
        self._process = subprocess.Popen(
            command, cwd=webui, env=environment, stdout=self._output, stderr=subprocess.STDOUT, start_new_session=True
        )

    def wait(self) -> Server:
        """Until it answers."""
        end = time.monotonic() + _START_LIMIT
        while time.monotonic() < end:
            if self._process.poll() is not None:
                raise RuntimeError(f"the WebUI ended at its start:\n{self.said()[-3000:]}")
            # A1111 cannot finish its start when a request comes before it has.
            if "Startup time:" in self.said() and self._answers():
                return self
            time.sleep(1)
        raise RuntimeError(f"the WebUI did not answer:\n{self.said()[-3000:]}")

    def _answers(self) -> bool:
        try:
            self.get("/sdapi/v1/options")
        except (OSError, urllib.error.URLError):
            return False
        return True

    def said(self) -> str:
        """What it printed so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def stop(self) -> None:
        """Ends it."""
        if self._process.poll() is None:
            if os.name == "posix":
                os.killpg(self._process.pid, signal.SIGTERM)
            else:
                self._process.terminate()
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(30)
        self._output.close()

    def kill(self) -> None:
        """As a crash would end it, without a word; what it started stays."""
        self._process.kill()
        self._process.wait(30)
        self._output.close()

    def get(self, path: str):
        """The answer to a GET."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", headers=self._headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def post(self, path: str, body: dict | None = None):
        """The answer to a POST; an error with what the host said."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            json.dumps(body or {}).encode(),
            {"Content-Type": "application/json", **self._headers},
        )
        try:
            with urllib.request.urlopen(request, timeout=600) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"{path}: {error.read().decode(errors='replace')[:2000]}") from None

    def draw(self, prompt: str = PROMPT, negative: str = "blurry", settings: dict | None = None, **more) -> Drawn:
        """Pictures by txt2img; by img2img where `init_images` are given."""
        body = {**DEFAULTS, "prompt": prompt, "negative_prompt": negative, **more}
        body["override_settings"] = {**SETTINGS, **(settings or {})}
        answer = self.post(f"/sdapi/v1/{'img2img' if 'init_images' in more else 'txt2img'}", body)
        pictures = [_pixels(one) for one in answer["images"]]
        return Drawn(pictures, json.loads(answer["info"])["infotexts"][0], answer["images"])

    def drawn(self, *args, **more) -> Drawn:
        """As `draw`, but drawn once only: for a server whose files and settings stay as they are."""
        key = repr((args, sorted(more.items())))
        if key not in self._drawn:
            self._drawn[key] = self.draw(*args, **more)
        return self._drawn[key]
