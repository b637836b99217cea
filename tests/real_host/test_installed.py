"""The first minutes, as a person has them: installed from the Extensions tab, a LoRA trained from the tab, drawn with.

    pytest tests/real_host/test_installed.py --webui DIR --python PY --pictures docs/images

The WebUI is started with its prepare step, so that it runs our `install.py` itself. Its folder must be without Athanor;
this checkout's last commit is what is installed. Every file of its Python's packages is compared before and after.
Slow: the trainers' environment is really made. Needs Chromium and playwright. The tests follow on one another and may
be run one by one (`-k environment`, `-k trained`, `-k drawn`, `-k switched`, `-k deleted`); what the first one saw
before is kept in the folder for temporary files until the last one has compared it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from installed import Started, changed, files_of, packages, put_back, settings_of
from page_steps import open_tab, opened

ROOT = Path(__file__).resolve().parents[2]
BROWSER = os.environ.get("ATHANOR_BROWSER") or shutil.which("chromium") or shutil.which("google-chrome")
A1111_FLAGS = ["--use-cpu", "all", "--no-half", "--precision", "full", "--no-download-sd-model"]
FORGE_FLAGS = ["--always-cpu", "--all-in-fp32"]
FLAGS = ["--skip-torch-cuda-test", "--api"]
PROMPT = "a football on a green background"
NAME = "football"
FEW = {"steps": "20", "verdict": "off"}
FEWER = {"steps": "2", "batch size": "1", "validation draws": "1", "sample steps": "2", "rank": "4", "verdict": "off"}
"""For a model of SD1.5's size, on the processor."""
ITS_OWN = ("disabled_extensions", "disable_all_extensions", "sd_model_checkpoint", "sd_checkpoint_hash")
"""Settings that a WebUI writes by itself: at "Apply and restart UI", and with the hash behind a model's name."""


@dataclass
class Visit:
    """Somebody at the page of a WebUI that runs."""

    page: Any
    started: Started
    place: Place

    def picture(self, name: str) -> None:
        """Keeps what can be seen."""
        if self.place.pictures:
            kind = "forge" if self.place.forge else "a1111"
            self.page.evaluate("scrollTo(0, 0)")
            self.page.wait_for_timeout(500)
            self.page.screenshot(path=self.place.pictures / f"install-{kind}-{name}.png")

    def extensions(self, name: str) -> None:
        """Chooses a part of the tab Extensions."""
        open_tab(self.page, "Extensions")
        part = self.page.get_by_role("tab", name=name).or_(self.page.get_by_role("button", name=name))
        part.first.click()

    def apply_and_restart(self) -> None:
        """Presses the button of that name, and comes back to the page."""
        self.page.get_by_role("button", name="Apply and restart UI").click()
        self.started.wait(starts=self.started.said().count("Startup time:") + 1)
        self.page.goto(self.started.address, wait_until="domcontentloaded")
        self.page.locator("#txt2img_generate").wait_for()


@dataclass
class Place:
    """A WebUI, and what is kept about it between the tests."""

    webui: Path
    python: str
    pictures: Path | None
    folder: Path

    @property
    def forge(self) -> bool:
        return (self.webui / "modules_forge").exists()

    @property
    def extension(self) -> Path:
        return self.webui / "extensions" / "athanor"

    @property
    def kept(self) -> Path:
        key = hashlib.sha256(str(self.webui).encode()).hexdigest()[:12]
        return Path(tempfile.gettempdir()) / f"athanor-first-minutes-{key}.json"

    @property
    def before(self) -> dict:
        """What the first test saw before Athanor was there."""
        if not self.kept.exists():
            pytest.fail("run the test that installs it first")
        return json.loads(self.kept.read_text(encoding="utf-8"))

    @contextlib.contextmanager
    def visit(self) -> Iterator[Visit]:
        """Starts the WebUI, and a browser on its page."""
        flags = [*(FORGE_FLAGS if self.forge else A1111_FLAGS), *FLAGS]
        started = Started(self.python, self.webui, self.folder / "host.log", flags)
        try:
            started.wait()
            with opened(pytest.importorskip("playwright.sync_api"), BROWSER, started.address) as page:
                page.set_viewport_size({"width": 1280, "height": 1000})
                page.set_default_timeout(400_000)
                yield Visit(page, started, self)
        finally:
            started.stop()


@pytest.fixture
def place(request, host_python, tmp_path) -> Place:
    """The WebUI that the tests are run with."""
    folder = request.config.getoption("--webui")
    if not folder:
        pytest.skip("needs an installed WebUI: --webui DIR --python PY")
    pictures = request.config.getoption("--pictures")
    return Place(Path(folder).expanduser().absolute(), host_python, Path(pictures) if pictures else None, tmp_path)


def _results(webui: Path) -> list[Path]:
    """What the tests leave in a WebUI."""
    return [*(webui / "models" / "Lora").glob(f"{NAME}*"), *(webui / "athanor").glob(f"*/{NAME}*")]


def test_it_is_installed_from_the_extensions_tab_and_makes_its_environment(place):
    assert not os.path.lexists(place.extension), "this WebUI has Athanor already"
    assert _results(place.webui) == [], "this WebUI has files of that name already"
    if not place.forge:
        from installer.link import give_base

        give_base(ROOT, place.webui)
    before = {"packages": packages(place.python), "files": files_of(place.webui), "settings": settings_of(place.webui)}
    with place.visit() as visit:
        before["drawn"] = visit.started.draw()
        place.kept.write_text(json.dumps(before), encoding="utf-8")
        page = visit.page
        visit.extensions("Install from URL")
        page.get_by_label("URL for extension's git repository").fill(ROOT.as_uri())
        page.get_by_label("Local directory name").fill("athanor")
        page.get_by_role("button", name="Install", exact=True).click()
        page.get_by_text("Installed into").first.wait_for()
        visit.picture("1-extensions")
        visit.extensions("Installed")
        visit.apply_and_restart()
        assert "the trainers' environment is being made" in visit.started.said()
        open_tab(page, "Athanor")
        page.wait_for_selector("#athanor-setup:not([data-state=unknown])")
        visit.picture("2-setting-up")
        ended = "#athanor-setup[data-state=ready], #athanor-setup[data-state=failed]"
        page.wait_for_selector(ended, state="attached")
        setup = page.locator("#athanor-setup")
        assert setup.get_attribute("data-state") == "ready", setup.inner_text()
    assert changed(before["packages"], packages(place.python)) == []


def _train(visit: Visit) -> None:
    """Fills the form of the screen Train and waits for the run's end."""
    page = visit.page
    tab, data = page.locator("#athanor"), visit.place.extension / "assets" / "pictures" / "football" / "train"
    tab.get_by_label("Pictures", exact=True).fill(str(data))
    tab.get_by_label("Trigger word", exact=True).fill(NAME)
    tab.get_by_text("Expert: every option").click()
    tab.get_by_label("Recipe", exact=True).select_option("demo")
    page.wait_for_timeout(2000)
    for name, value in (FEWER if visit.place.forge else FEW).items():
        tab.get_by_label("Search", exact=True).fill(name)
        field = tab.get_by_label(re.compile(rf"^{name}( \(.*\))?$")).first  # some have a unit behind
        if value == "off":
            field.uncheck()
        else:
            field.fill(value)
            field.press("Tab")
    tab.get_by_text("Expert: every option").click()
    visit.picture("3-train")
    page.locator("#athanor-screen-train").get_by_role("button", name="Train", exact=True).click()
    page.locator(".athanor-detail[data-state=done], .athanor-detail[data-state=failed]").wait_for()
    visit.picture("4-runs")
    detail = page.locator(".athanor-detail")
    assert detail.get_attribute("data-state") == "done", detail.inner_text()


def test_a_lora_is_trained_from_the_tab(place):
    drawn_before = place.before["drawn"]
    with place.visit() as visit:
        assert "being made" not in visit.started.said()
        assert visit.started.draw() == drawn_before
        open_tab(visit.page, "Athanor")
        _train(visit)


def _draw(visit: Visit) -> str:
    """Draws with what was trained, by its button and the page's; gives what is written below the picture."""
    page, forge = visit.page, visit.place.forge
    page.locator("#athanor").get_by_role("button", name=re.compile("^Use (in prompt|this)")).first.click()
    open_tab(page, "Txt2img" if forge else "txt2img")
    prompt = page.locator("#txt2img_prompt textarea")
    page.wait_for_function("document.querySelector('#txt2img_prompt textarea').value.includes('<lora:')")
    prompt.fill(f"{PROMPT} {prompt.input_value().partition(' ')[2]}")
    for name, value in {"width": "64", "height": "64", "steps": "2" if forge else "20"}.items():
        page.locator(f"#txt2img_{name} input[type=number]").fill(value)
        page.locator(f"#txt2img_{name} input[type=number]").press("Tab")
    page.locator("#txt2img_generate").click()
    page.locator("#txt2img_gallery img").first.wait_for()
    page.locator("#html_info_txt2img", has_text="Lora hashes").first.wait_for()
    page.wait_for_timeout(1500)
    visit.picture("5-drawn")
    return page.locator("#html_info_txt2img").first.inner_text()


def test_the_run_is_there_after_a_restart_and_is_drawn_with(place):
    with place.visit() as visit:
        open_tab(visit.page, "Athanor")
        visit.page.locator("#athanor").get_by_role("tab", name="Runs", exact=True).click()
        visit.page.locator("#athanor-screen-runs").get_by_text(NAME, exact=True).first.click()
        visit.page.locator(".athanor-detail[data-state=done]").wait_for()
        assert f"<lora:{NAME}:1>" in _draw(visit)
    assert (place.webui / "models" / "Lora" / f"{NAME}.safetensors").is_file()


def test_switched_off_nothing_of_it_acts(place):
    with place.visit() as visit:
        visit.extensions("Installed")
        visit.page.locator("input[name=enable_athanor]").uncheck()
        visit.apply_and_restart()
        assert visit.page.locator("#athanor").count() == 0
        assert visit.started.draw() == place.before["drawn"]
    left = subprocess.run(
        ["git", "status", "--porcelain"], cwd=place.extension, capture_output=True, text=True, check=True
    )
    assert left.stdout == "", "files of ours that an update would trip over"


def test_deleted_it_leaves_the_webui_as_it_was_and_the_runs_stay(place):
    before = place.before
    shutil.rmtree(place.extension)
    with place.visit() as visit:
        assert visit.started.draw() == before["drawn"]
    run = place.webui / "athanor" / "runs" / NAME / f"{NAME}.safetensors"
    assert run.is_file()
    for path in _results(place.webui):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    after = settings_of(place.webui)
    put_back(place.webui, before["settings"])
    assert "athanor" not in (after["ui-config.json"] or "").lower()
    chosen = json.loads(before["settings"]["config.json"] or "{}")
    now = json.loads(after["config.json"] or "{}")
    assert {name: now.get(name) for name in chosen if name not in ITS_OWN} == {
        name: value for name, value in chosen.items() if name not in ITS_OWN
    }
    assert changed(before["files"], files_of(place.webui)) == []
    assert changed(before["packages"], packages(place.python)) == []
    place.kept.unlink()
