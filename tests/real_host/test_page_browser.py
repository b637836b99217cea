"""A real WebUI's page in a real browser: pictures are chosen, a LoRA is trained and watched, and drawn with by its tag.

    pytest tests/real_host/test_page_browser.py --webui DIR --python PY --pictures docs/images

Works for AUTOMATIC1111, Forge and reForge. The trainers run in this process's own environment.
"""

from __future__ import annotations

import re
from pathlib import Path

from data_steps import PICTURES
from page_fixtures import NAME
from page_steps import PROMPT, open_tab, our_errors, set_option, train_from_the_form, use_in_prompt, wait_until_done

STEPS = {"a1111": 20, "forge": 2}


def test_from_chosen_pictures_to_a_picture_drawn_by_its_tag(page, kind_of_webui, shot):
    kind, steps = kind_of_webui, STEPS[kind_of_webui]
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
    train_from_the_form(page, Path(folder), NAME, steps, look=lambda: shot("train"))
    tab.locator(".athanor-detail").get_by_text(re.compile(r"training · step")).wait_for()
    wait_until_done(page, steps)
    shot("runs")
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
    shot("drawn")
    open_tab(page, "Athanor")
    tab.get_by_role("tab", name="Library", exact=True).click()
    page.locator("#athanor-screen-library").get_by_role("article", name=NAME).first.wait_for()
    shot("library")
    assert our_errors(page) == []
