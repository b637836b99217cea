"""The first minutes, as a person has them: installed from the Extensions tab, a LoRA trained from the tab, drawn with.

    pytest tests/real_host/test_installed.py --webui DIR --python PY --pictures docs/images

The WebUI is started with its prepare step, so that it runs our `install.py` itself. Its folder must be without Athanor;
this checkout's last commit is what is installed. Every file of its Python's packages is compared before and after.
Slow: the trainers' environment is really made. Needs Chromium and playwright.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from installed import Started, packages

ROOT = Path(__file__).resolve().parents[2]
BROWSER = os.environ.get("ATHANOR_BROWSER") or shutil.which("chromium") or shutil.which("google-chrome")
A1111_FLAGS = [
    "--use-cpu",
    "all",
    "--no-half",
    "--precision",
    "full",
    "--skip-torch-cuda-test",
    "--no-download-sd-model",
]
FORGE_FLAGS = ["--always-cpu", "--all-in-fp32", "--skip-torch-cuda-test"]
PROMPT = "a football on a green background"


@pytest.fixture(scope="module")
def person(request, host_python, tmp_path_factory):
    """A WebUI without Athanor, started, and a browser's page on it."""
    folder = request.config.getoption("--webui")
    if not folder:
        pytest.skip("needs an installed WebUI: --webui DIR --python PY")
    playwright = pytest.importorskip("playwright.sync_api")
    webui = Path(folder).expanduser().absolute()
    assert not os.path.lexists(webui / "extensions" / "athanor"), "this WebUI has Athanor already"
    assert not list((webui / "models" / "Lora").glob("football*")), "this WebUI has a LoRA of that name already"
    forge = (webui / "modules_forge").exists()
    if not forge:
        from installer.link import give_base

        give_base(ROOT, webui)
    before = packages(host_python)
    log = tmp_path_factory.mktemp("first-minutes") / "host.log"
    started = Started(host_python, webui, log, FORGE_FLAGS if forge else A1111_FLAGS)
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        page.set_default_timeout(900_000)
        try:
            started.wait()
            page.goto(started.address, wait_until="domcontentloaded")
            yield Person(page, started, webui, forge, before, host_python, request.config.getoption("--pictures"))
        finally:
            browser.close()
            started.stop()


class Person:
    """Somebody at the page."""

    def __init__(self, page, started, webui, forge, before, python, pictures) -> None:
        self.page, self.started, self.webui, self.forge, self.before = page, started, webui, forge, before
        self.python, self.pictures = python, Path(pictures) if pictures else None

    def tab(self, name: str) -> None:
        """Chooses one of the WebUI's tabs."""
        self.page.locator("#tabs > .tab-nav > button, #tabs > div > button[role=tab]").get_by_text(
            name, exact=True
        ).click()

    def picture(self, name: str) -> None:
        """Keeps what can be seen."""
        if self.pictures:
            kind = "forge" if self.forge else "a1111"
            self.page.screenshot(path=self.pictures / f"install-{kind}-{name}.png")


def test_it_is_installed_from_the_extensions_tab(person):
    page = person.page
    person.tab("Extensions")
    page.get_by_role("tab", name="Install from URL").or_(
        page.get_by_role("button", name="Install from URL")
    ).first.click()
    page.get_by_label("URL for extension's git repository").fill(ROOT.as_uri())
    page.get_by_label("Local directory name").fill("athanor")
    page.get_by_role("button", name="Install", exact=True).click()
    page.get_by_text("Installed into").first.wait_for()
    person.picture("1-extensions")
    page.get_by_role("tab", name="Installed").or_(page.get_by_role("button", name="Installed")).first.click()
    page.get_by_role("button", name="Apply and restart UI").click()
    person.started.wait(starts=2)
    page.goto(person.started.address, wait_until="domcontentloaded")
    assert "the trainers' environment is being made" in person.started.said()


def test_the_environment_is_made_while_the_page_can_be_used(person):
    page = person.page
    person.tab("Athanor")
    page.wait_for_selector("#athanor-setup:not([data-state=unknown])")
    person.picture("2-setting-up")
    page.wait_for_selector("#athanor-setup[data-state=ready], #athanor-setup[data-state=failed]", state="attached")
    assert page.locator("#athanor-setup").get_attribute("data-state") == "ready", page.locator(
        "#athanor-setup"
    ).inner_text()


def test_a_lora_is_trained_and_drawn_with(person):
    page = person.page
    data = person.webui / "extensions" / "athanor" / "assets" / "pictures" / "football" / "train"
    page.get_by_label("Pictures", exact=True).fill(str(data))
    page.get_by_label("Trigger word", exact=True).fill("football")
    page.get_by_text("Expert: every option").click()
    page.get_by_label("Recipe", exact=True).select_option("demo")
    page.wait_for_timeout(2000)
    changes = {"steps": "6", "batch size": "1", "validation draws": "1"} if person.forge else {"steps": "60"}
    for name, value in changes.items():
        page.locator("#athanor").get_by_label("Search", exact=True).fill(name)
        page.get_by_label(name, exact=True).fill(value)
        page.get_by_label(name, exact=True).press("Tab")
    page.get_by_text("Expert: every option").click()
    person.picture("3-train")
    page.locator("#athanor-screen-train").get_by_role("button", name="Train", exact=True).click()
    page.locator(".athanor-detail[data-state=done], .athanor-detail[data-state=failed]").wait_for()
    person.picture("4-runs")
    assert page.locator(".athanor-detail").get_attribute("data-state") == "done", page.locator(
        ".athanor-detail"
    ).inner_text()
    page.get_by_role("button", name="Use in prompt").first.click()
    person.tab("Txt2img" if person.forge else "txt2img")
    prompt = page.locator("#txt2img_prompt textarea")
    page.wait_for_function("document.querySelector('#txt2img_prompt textarea').value.includes('<lora:')")
    prompt.fill(f"{PROMPT} {prompt.input_value().partition(' ')[2]}")
    for side in ("width", "height"):
        page.locator(f"#txt2img_{side} input[type=number]").fill("64")
        page.locator(f"#txt2img_{side} input[type=number]").press("Tab")
    page.locator("#txt2img_steps input[type=number]").fill("6" if person.forge else "20")
    page.locator("#txt2img_steps input[type=number]").press("Tab")
    page.locator("#txt2img_generate").click()
    page.locator("#txt2img_gallery img").first.wait_for()
    page.locator("#html_info_txt2img", has_text="Lora hashes").first.wait_for()
    page.wait_for_timeout(1500)
    person.picture("5-drawn")
    assert "<lora:football:1>" in page.locator("#html_info_txt2img").first.inner_text()


def test_the_webuis_packages_are_byte_identical(person):
    person.started.stop()
    after = packages(person.python)
    changed = sorted(name for name in {*person.before, *after} if person.before.get(name) != after.get(name))
    assert changed == []


def test_without_the_extension_the_webui_is_as_before_and_the_runs_stay(person):
    extension = person.webui / "extensions" / "athanor"
    left = subprocess.run(["git", "status", "--porcelain"], cwd=extension, capture_output=True, text=True, check=True)
    assert left.stdout == "", "files of ours that an update would trip over"
    shutil.rmtree(extension)
    assert (person.webui / "athanor" / "runs" / "football" / "football.safetensors").is_file()
    assert packages(person.python) == person.before
