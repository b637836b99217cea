"""A real WebUI's page in a real browser: pictures are chosen, a LoRA is trained and watched, and drawn with by its tag.

    pytest tests/real_host/test_page_browser.py --webui DIR --python PY --pictures docs/images

Works for AUTOMATIC1111, Forge and reForge. The trainers run in this process's own environment.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from a1111_fixtures import FLAGS as A1111_FLAGS
from page_steps import PROMPT, open_tab, opened, set_option, train_from_the_form, use_in_prompt, wait_until_done
from patcher_fixtures import BASE as FORGE_BASE
from patcher_fixtures import FLAGS as FORGE_FLAGS
from server import Server

BROWSER = os.environ.get("ATHANOR_BROWSER") or shutil.which("chromium") or shutil.which("google-chrome")
PICTURES = Path(__file__).resolve().parents[2] / "assets" / "pictures" / "basketball" / "train"
STEPS = {"a1111": 20, "forge": 2}
NAME = "zwx-ball"


def _forge_base(webui, host_python) -> Path:
    path = webui / "models" / "Stable-diffusion" / FORGE_BASE
    if not path.exists():
        script = Path(__file__).with_name("forge_checkpoint.py")
        subprocess.run(
            [host_python, str(script), str(path)], cwd=webui, env={**os.environ, "HF_HUB_OFFLINE": "1"}, check=True
        )
    return path


@pytest.fixture(scope="module")
def server(webui, host_python, kind_of_webui, tmp_path_factory):
    flags = [flag for flag in A1111_FLAGS if flag != "--nowebui"]
    if kind_of_webui == "forge":
        flags = [*FORGE_FLAGS, "--no-download-sd-model"]
        if (webui / "backend").is_dir():
            flags = [*FORGE_FLAGS, "--ckpt", str(_forge_base(webui, host_python))]
    frozen = webui / "ui-config.json"  # the WebUI writes every default of its page into it
    before = frozen.read_bytes() if frozen.exists() else None
    os.environ["ATHANOR_PYTHON"] = sys.executable
    made = Server(host_python, webui, tmp_path_factory.mktemp("page") / "host.log", flags)
    try:
        yield made.wait()
    finally:
        made.stop()
        del os.environ["ATHANOR_PYTHON"]
        frozen.unlink(missing_ok=True) if before is None else frozen.write_bytes(before)
        for place in ("runs", "pictures"):
            for folder in (webui / "athanor" / place).glob(f"{NAME}*"):
                shutil.rmtree(folder)
        for file in (webui / "models" / "Lora").glob(f"{NAME}*"):
            file.unlink()


@pytest.fixture(scope="module")
def page(server, request):
    playwright = pytest.importorskip("playwright.sync_api")
    if not BROWSER:
        pytest.skip("needs Chromium")
    address = f"http://127.0.0.1:{server.port}/?__theme={os.environ.get('ATHANOR_THEME', 'light')}"
    with opened(playwright, BROWSER, address, viewport={"width": 1280, "height": 1000}) as made:
        made.set_default_timeout(240_000)
        yield made


def _shot(request, page, kind, name) -> None:
    folder = request.config.getoption("--pictures", None)
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
        page.wait_for_timeout(1000)
        page.screenshot(path=str(Path(folder) / f"tab-{kind}-{name}.png"))


def test_from_chosen_pictures_to_a_picture_drawn_by_its_tag(page, server, webui, kind_of_webui, request):
    kind, steps = kind_of_webui, STEPS[kind_of_webui]
    shown = "reforge" if kind == "forge" and not (webui / "backend").is_dir() else kind
    open_tab(page, "Athanor")
    tab = page.locator("#athanor")
    page.wait_for_selector(".athanor-time:not(:empty)")
    tab.get_by_label("Name of the result", exact=True).fill(NAME)
    place = page.locator("#athanor-screen-train").get_by_label("Choose pictures")
    place.set_input_files(sorted(PICTURES.glob("*.png"))[:6])
    tab.get_by_text("6, without captions").or_(tab.get_by_text("6, all with captions")).first.wait_for()
    if tab.get_by_role("button", name="Give every picture this caption").is_visible():
        tab.get_by_role("button", name="Give every picture this caption").press("Enter")
        tab.get_by_text("6, all with captions").wait_for()
    folder = tab.get_by_label("Pictures", exact=True).input_value()
    tab.get_by_text("Expert: every option").press("Enter")
    set_option(page, "state every", "50")
    if kind == "forge":  # a model of SD1.5's size on the processor
        tab.get_by_label("Recipe", exact=True).select_option("demo")
        page.wait_for_timeout(1500)
        few = {"batch size": "1", "sample steps": "1", "rank": "4", "verdict": False, "find best": False}
        for option, value in few.items():
            set_option(page, option, value)
    train_from_the_form(page, Path(folder), NAME, steps, look=lambda: _shot(request, page, shown, "train"))
    tab.locator(".athanor-detail").get_by_text(re.compile(r"training · step")).wait_for()
    wait_until_done(page, steps)
    _shot(request, page, shown, "runs")
    said = use_in_prompt(page)
    assert f"<lora:{NAME}" in said
    open_tab(page, "txt2img")
    page.locator(PROMPT).first.wait_for()
    for name, value in (("width", "64"), ("height", "64"), ("steps", "2" if kind == "forge" else "12")):
        field = page.locator(f"#txt2img_{name} input[type=number]")
        field.fill(value)
        field.press("Tab")
    page.locator("#txt2img_generate").click()
    page.locator("#html_info_txt2img", has_text="Lora hashes").first.wait_for()
    _shot(request, page, shown, "drawn")
    open_tab(page, "Athanor")
    tab.get_by_role("tab", name="Library", exact=True).click()
    page.locator("#athanor-screen-library").get_by_role("article", name=NAME).first.wait_for()
    _shot(request, page, shown, "library")
    assert [error for error in page.errors if "athanor" in error] == []
