"""A WebUI with its page, in a browser."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from a1111_fixtures import FLAGS as A1111_FLAGS
from page_steps import opened
from patcher_fixtures import BASE as FORGE_BASE
from patcher_fixtures import FLAGS as FORGE_FLAGS
from server import Server

BROWSER = os.environ.get("ATHANOR_BROWSER") or shutil.which("chromium") or shutil.which("google-chrome")
NAME = "zwx-ball"
"""What the tests of the page call what they make; runs, pictures and files of this name are taken away again."""


def _forge_base(webui, host_python) -> Path:
    path = webui / "models" / "Stable-diffusion" / FORGE_BASE
    if not path.exists():
        script = Path(__file__).with_name("forge_checkpoint.py")
        subprocess.run(
            [host_python, str(script), str(path)], cwd=webui, env={**os.environ, "HF_HUB_OFFLINE": "1"}, check=True
        )
    return path


def flags_with_page(webui: Path, host_python: str, which: str) -> list[str]:
    """How a WebUI is started that shows its page; a model is there for it to load."""
    if which == "a1111":
        return [flag for flag in A1111_FLAGS if flag != "--nowebui"]
    more = ["--ckpt", str(_forge_base(webui, host_python))] if which == "forge" else []
    return [*FORGE_FLAGS, "--no-download-sd-model", *more]


def _settings(webui: Path, which: str) -> dict:
    """reForge draws its previews of SD1 by a small network; without its file it wants to download that."""
    lacks = which == "reforge" and not (webui / "models" / "VAE-approx" / "model.pt").is_file()
    return {"live_previews_enable": False} if lacks else {}


@pytest.fixture(scope="module")
def page_settings() -> dict:
    """Settings of the WebUI; a file of tests may have its own."""
    return {}


@pytest.fixture(scope="module")
def page_server(webui, host_python, which_webui, page_settings, tmp_path_factory):
    """The WebUI with its page; what the page's tests made there is taken away at the end."""
    frozen = webui / "ui-config.json"  # the WebUI writes every default of its page into it
    added = webui / "athanor" / "runs" / ".folders.json"  # folders that a page was allowed to use
    before = {file: file.read_bytes() if file.exists() else None for file in (frozen, added)}
    settings = webui / "config.json"
    known = json.loads(settings.read_text(encoding="utf-8")) if settings.exists() else {}
    known |= {**_settings(webui, which_webui), **page_settings}
    settings.write_text(json.dumps(known, indent=4), encoding="utf-8")  # `webui` puts back what there was
    os.environ["ATHANOR_PYTHON"] = sys.executable
    flags = flags_with_page(webui, host_python, which_webui)
    made = Server(host_python, webui, tmp_path_factory.mktemp("page") / "host.log", flags)
    try:
        yield made.wait()
    finally:
        made.stop()
        del os.environ["ATHANOR_PYTHON"]
        for file, content in before.items():
            file.unlink(missing_ok=True) if content is None else file.write_bytes(content)
        for place in ("runs", "pictures"):
            for folder in (webui / "athanor" / place).glob(f"{NAME}*"):
                shutil.rmtree(folder)
        for file in (webui / "models" / "Lora").glob(f"{NAME}*"):
            file.unlink()


@pytest.fixture(scope="module")
def page(page_server):
    """That page in Chromium; `page.errors` holds what went wrong in it."""
    playwright = pytest.importorskip("playwright.sync_api")
    if not BROWSER:
        pytest.skip("needs Chromium")
    address = f"http://127.0.0.1:{page_server.port}/?__theme={os.environ.get('ATHANOR_THEME', 'light')}"
    with opened(playwright, BROWSER, address, viewport={"width": 1280, "height": 1000}) as made:
        made.set_default_timeout(240_000)
        yield made


@pytest.fixture
def shot(request, page, which_webui):
    """Takes a picture of the page into the folder behind --pictures: `shot("data")`, `shot("data-dark", dark=True)`."""

    def take(name: str, dark: bool | None = None) -> None:
        folder = request.config.getoption("--pictures", None)
        if not folder:
            return
        Path(folder).mkdir(parents=True, exist_ok=True)
        was = page.evaluate("document.body.classList.contains('dark')")
        page.evaluate("(dark) => document.body.classList.toggle('dark', dark)", was if dark is None else dark)
        page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
        page.wait_for_timeout(1000)
        page.screenshot(path=str(Path(folder) / f"tab-{which_webui}-{name}.png"))
        page.evaluate("(dark) => document.body.classList.toggle('dark', dark)", was)

    return take
