"""The tab in Chinese by the WebUI's own setting `localization`, in its own page: every screen, to the last label.

pytest tests/real_host/test_page_language.py --webui DIR --python PY --pictures docs/images
"""

from __future__ import annotations

import json
import os

import pytest
import torch
from data_steps import pictures_with_troubles
from english_texts import english_texts
from jobs_helpers import fake_jobs, look_until, values
from page_fixtures import NAME
from page_steps import open_tab, our_errors
from safetensors.torch import save_file

from extension.ui import texts

LANGUAGE = "zh_CN"
CHOSEN = os.environ.get("ATHANOR_LOCALIZATION", LANGUAGE)
"""The name that is chosen in the WebUI's settings: ours, or "zh-Hans (Stable)", as others name their Chinese."""
THEIRS = {"txt2img": "文生图", "Train": "炼"}
"""What another file of this language says: the WebUI puts all of them together, extensions' after its own. Where the
name that is chosen is only theirs, ours come first."""
FOLDER = "我的球"
OPEN_ALL = "document.querySelectorAll('#athanor details').forEach((each) => { each.open = true; })"
NAMES = (
    NAME,
    f"{NAME}-file",
    "zwx",
    "athanor-base",
    "athanor-random-sd15",
    FOLDER,
    "basketball",
    "football",
    "unrelated",
    "held-out",
)


@pytest.fixture(scope="module")
def page_settings(webui):
    """Chinese, beside another file of the same language; runs that are done and that failed, and a file for cards."""
    other = webui / "localizations" / f"{CHOSEN}.json"
    before = other.read_bytes() if other.exists() else None
    other.write_text(json.dumps(THEIRS), encoding="utf-8")
    jobs = fake_jobs(webui / "athanor" / "runs")
    for name, wish in ((f"{NAME}-1", ""), (f"{NAME}-2", "do=oom; at=2")):
        run = jobs.submit(values(name, comment=wish)).id
        look_until(jobs, run, "done", "failed", "interrupted")
    site = "lora_unet_mid_block_attentions_0_proj_in"
    tensors = {f"{site}.lora_down.weight": torch.ones(2, 64), f"{site}.lora_up.weight": torch.ones(64, 2)}
    (webui / "models" / "Lora").mkdir(exist_ok=True)
    save_file(tensors, webui / "models" / "Lora" / f"{NAME}-file.safetensors")
    jobs.close()
    yield {"localization": CHOSEN}
    other.unlink() if before is None else other.write_bytes(before)


@pytest.fixture(scope="module")
def pictures(page_server, webui):
    """Pictures in the tab's own place; one is tagged with a word that the language has a translation of."""
    folder = pictures_with_troubles(webui / "athanor" / "pictures" / f"{NAME}-{FOLDER}")
    (folder / "01.txt").write_text("zwx, red, data", encoding="utf-8")
    return folder


def said(text):
    return texts.localization(LANGUAGE)[text]


def check(page, where):
    """Nothing of the page is English; what the server said is only told."""
    ours, server = english_texts(page, NAMES)
    ours = [text for text in ours if texts.localization(LANGUAGE).get(text) != text]  # alpha is alpha
    print(f"{where}: English on the page: {ours}; sentences of the server: {server}")
    assert ours == [], where
    return server


def hide(field):
    """Folders of this machine are not for pictures of the page."""
    field.evaluate("(field) => { field.value = ''; }")


def test_train_is_chinese(page, pictures, shot):
    open_tab(page, "Athanor")
    tab = page.locator("#athanor")
    page.wait_for_selector(".athanor-time:not(:empty)")
    words = said("Train") if CHOSEN == LANGUAGE else THEIRS["Train"]
    assert page.locator("#athanor-to-train").text_content() == words
    tab.get_by_label(said("Trigger word"), exact=True).fill("zwx")
    tab.get_by_label(said("Pictures"), exact=True).fill(str(pictures))
    tab.get_by_label(said("Pictures"), exact=True).press("Tab")
    page.wait_for_selector(".athanor-strip img")
    check(page, "Train")
    tab.get_by_role("button", name=said("Look before starting"), exact=True).press("Enter")
    page.wait_for_selector(".athanor-ready")
    hide(tab.get_by_label(said("Pictures"), exact=True))
    shot("zh")
    page.evaluate(OPEN_ALL)
    tab.get_by_role("button", name=said("Which method should I use?")).press("Enter")
    page.locator(".athanor-badge").first.wait_for()
    check(page, "Train, with everything open")
    for name in ("textual_inversion", "pivotal", "dreambooth", "hypernetwork", "aesthetic_gradient"):
        with page.expect_response(lambda answer: "recipes/compose" in answer.url):
            tab.get_by_label(said("Method"), exact=True).select_option(name)
        page.wait_for_timeout(500)
        check(page, f"Train, {name}")
    tab.get_by_label(said("Method"), exact=True).select_option("lora")
    assert our_errors(page) == []


def test_data_is_chinese_and_tags_stay_as_they_are(page, pictures, shot):
    page.locator("#athanor-to-data").press("Enter")
    place = page.get_by_label(said("Folder with pictures"))
    place.fill(str(pictures))
    place.press("Enter")
    page.wait_for_selector(".athanor-chip.athanor-trouble")
    page.wait_for_function("document.querySelectorAll('.athanor-chip.athanor-trouble').length >= 4")
    check(page, "Data")
    page.wait_for_timeout(1000)  # hosts translate what came into the page a moment later
    tags = page.locator(".athanor-tag span").all_text_contents()
    assert "red" in tags and "data" in tags
    assert "red" in page.locator(".athanor-picture").first.locator(".athanor-pieces i").all_text_contents()
    page.get_by_label(said("Select {0}").format("01.png")).check()
    page.get_by_role("combobox", name=said("Tag"), exact=True).fill("red")
    page.get_by_label(said("Replace by"), exact=True).fill("blue")
    check(page, "Data, with a selection")
    hide(place)
    page.evaluate("document.querySelector('.athanor-setup-more').open = false")
    shot("zh-data")
    for file in pictures.glob("*.txt"):
        file.unlink()
    place.fill(str(pictures))
    place.press("Enter")
    page.wait_for_selector(".athanor-offer")
    check(page, "Data, without captions")
    assert our_errors(page) == []


def test_runs_are_chinese(page):
    page.locator("#athanor-to-runs").press("Enter")
    page.evaluate(OPEN_ALL)
    for run in (f"{NAME}-1", f"{NAME}-2"):
        page.locator(f".athanor-card[data-id='{run}'] .athanor-open").press("Enter")
        page.wait_for_selector(f".athanor-detail:has(h3:text-is('{run}'))")
        check(page, f"Runs, {run}")
    assert our_errors(page) == []


def test_the_library_is_chinese(page):
    page.locator("#athanor-to-library").press("Enter")
    card = page.get_by_role("article", name=f"{NAME}-file")
    card.wait_for()
    check(page, "Library")
    for button in ("Rename", "Delete"):
        card.get_by_role("button", name=said(button)).press("Enter")
        page.get_by_role("dialog").wait_for()
        check(page, f"Library, {button}")
        page.get_by_role("dialog").get_by_role("button", name=said("Cancel")).press("Enter")
    assert our_errors(page) == []


def test_the_other_file_is_still_there(page):
    known = page.evaluate("window.localization")
    assert known["txt2img"] == THEIRS["txt2img"] and known["Train on these"] == said("Train on these")
