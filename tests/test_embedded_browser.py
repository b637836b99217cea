"""The embedded host's page in a real browser, with the real trainer: a word is taught, used and drawn with."""

from __future__ import annotations

import os
import re
import shutil
import sys

import pytest
from embedded_helpers import make_studio, served
from page_steps import open_tab, opened, set_option, train_from_the_form, use_in_prompt, wait_until_done

from extension.hosts.embedded.server import make_app
from extension.ui.preview import ROOT

playwright = pytest.importorskip("playwright.sync_api")
BROWSER = os.environ.get("ATHANOR_BROWSER") or shutil.which("chromium") or shutil.which("google-chrome")
PICTURES = ROOT / "assets" / "pictures" / "basketball" / "train"
STEPS = 6


@pytest.mark.slow
@pytest.mark.skipif(not BROWSER, reason="needs Chromium")
def test_a_word_is_taught_by_the_real_trainer_and_drawn_with(tmp_path, monkeypatch):
    monkeypatch.setenv("ATHANOR_PYTHON", sys.executable)
    studio = make_studio(tmp_path / "data 数据")
    app = make_app(studio)
    workshop = app.state.athanor_workshop
    with served(app) as port, opened(playwright, BROWSER, f"http://127.0.0.1:{port}") as page:
        workshop.start()
        try:
            _teach_and_draw(page, studio)
        finally:
            workshop.jobs.close()
            for view in workshop.jobs.all():
                workshop.jobs.supervisor.kill(workshop.jobs.runs / view.id)


@pytest.mark.slow
@pytest.mark.skipif(not BROWSER, reason="needs Chromium")
def test_the_whole_page_speaks_the_chosen_language_and_leaves_what_persons_wrote(tmp_path):
    studio = make_studio(tmp_path / "data")
    app = make_app(studio, language="zh_CN")
    with served(app) as port, opened(playwright, BROWSER, f"http://127.0.0.1:{port}") as page:
        prompt = page.get_by_label("提示词", exact=True).first
        prompt.fill("Draw")  # a word of the page's own
        assert page.get_by_label("负面提示词").first.get_attribute("placeholder") == "不要出现什么"
        page.get_by_role("tab", name="图片生图").click()
        page.get_by_label("裁掉边缘").check()
        page.get_by_role("button", name="绘图", exact=True).locator("visible=true").click()
        page.get_by_text("请选择起始图片。").wait_for()  # what the server said
        page.get_by_role("tab", name="标签").click()
        page.get_by_text("强度随步数增长").wait_for()
        assert page.get_by_text("<lora:name:0@0,1@1>").is_visible()
        page.get_by_role("tab", name="Athanor").click()
        page.locator("#athanor").get_by_role("tab", name="训练").wait_for()
        assert prompt.input_value() == "Draw" and page.errors == []


def _teach_and_draw(page, studio):
    open_tab(page, "Athanor")
    page.wait_for_selector(".athanor-time:not(:empty)")
    page.locator("#athanor").get_by_text("Expert: every option").press("Enter")
    for option, value in (("sample steps", "2"), ("batch size", "4")):
        set_option(page, option, value)
    train_from_the_form(page, PICTURES, "zwx-ball", STEPS)
    wait_until_done(page, STEPS)
    assert page.locator(".athanor-samples img").count() > 0
    prompt = use_in_prompt(page)
    assert prompt == "zwx-ball <lora:zwx-ball:1>"
    assert (studio.places.adapters / "zwx-ball.safetensors").is_file()
    open_tab(page, "Text to picture")
    page.get_by_role("button", name="Draw", exact=True).first.click()
    page.get_by_text(re.compile("1 picture")).first.wait_for()
    assert page.errors == []
