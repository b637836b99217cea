"""The Data screen in a real WebUI's page: a folder is added, looked at, and its captions are changed and taken back.

pytest tests/real_host/test_page_data.py --webui DIR --python PY --pictures docs/images
"""

from __future__ import annotations

import pytest
from data_steps import SIDE, Data, pictures_with_troubles
from page_fixtures import NAME
from page_steps import open_tab, our_errors


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return pictures_with_troubles(tmp_path_factory.mktemp("data") / "photos" / "my balls 球")


@pytest.fixture(scope="module")
def data(page, folder):
    open_tab(page, "Athanor")
    page.wait_for_selector(".athanor-time:not(:empty)")
    data = Data(page).open()
    data.show(folder)
    data.cut_for(SIDE)
    page.errors.clear()  # the browser's own word for the refusal of a folder that was not allowed yet
    return data


def _text(folder, name):
    return (folder / f"{name}.txt").read_text(encoding="utf-8")


def test_troubles_and_buckets_are_shown(data, page, shot):
    chips = data.counted(".athanor-chip")
    assert chips.pop("All") == 10
    troubles = {name: chips.pop(name) for name in list(chips) if "×" not in name}
    assert troubles == {"Cannot be read": 1, "No caption": 1, "Copies": 1, "Too small": 1}
    assert chips.pop("256 × 256") == 8 and list(chips.values()) == [1]
    assert data.thumbnails() == 9
    for chip, file in (("Cannot be read", "damaged.png"), ("Copies", "copy of 01.png"), ("Too small", "tiny 小.png")):
        data.chip(chip)
        assert data.files() == [file]
        data.chip(chip)
    assert len(data.files()) == 10
    page.locator(".athanor-pieces i").first.wait_for()  # captions as tokens, before any model is loaded
    data.screen.get_by_label("Folder with pictures").fill("")  # a folder of this machine
    page.set_viewport_size({"width": 1280, "height": 1400})
    shot("data", dark=False)
    shot("data-dark", dark=True)
    page.set_viewport_size({"width": 640, "height": 1000})
    shot("data-narrow")
    page.set_viewport_size({"width": 1280, "height": 1000})
    assert our_errors(page) == []


def test_a_caption_is_edited_in_place_and_taken_back(data, page, folder):
    before = _text(folder, "02")
    data.write("02.png", "zwx, a checked 绿色 lawn")
    assert _text(folder, "02") == "zwx, a checked 绿色 lawn\n"
    assert data.counted(".athanor-tag")["a checked 绿色 lawn"] == 1
    data.undo("caption of 02.png")
    assert _text(folder, "02") == before and data.caption("02.png").input_value() == before.strip()
    assert our_errors(page) == []


def test_a_tag_is_added_removed_and_replaced_over_the_selection(data, page, folder):
    assert data.counted(".athanor-tag")["ball"] == 9  # of the damaged one too
    data.select("01.png", "04.png")
    data.change("Add at the end", "toy")
    assert (_text(folder, "01"), _text(folder, "04")) == ("zwx, ball, blue, toy\n", "zwx, ball, yellow, toy\n")
    assert "toy" not in _text(folder, "02") and data.counted(".athanor-tag")["toy"] == 2
    data.change("Replace", "toy", "round thing")
    assert _text(folder, "04") == "zwx, ball, yellow, round thing\n"
    data.select("01.png")
    data.change("Remove", "round thing")
    assert _text(folder, "01") == "zwx, ball, blue\n" and data.counted(".athanor-tag")["round thing"] == 1
    data.undo("“round thing” removed")
    data.undo("“toy” replaced by “round thing”")
    data.undo("“toy” added")
    assert _text(folder, "04") == "zwx, ball, yellow\n" and "toy" not in data.counted(".athanor-tag")
    assert our_errors(page) == []


def test_dropped_files_are_copied_with_their_captions(data, page, folder, webui):
    files = [folder / f"{number:02}{ending}" for number in (1, 2, 3) for ending in (".png", ".txt")]
    data.drop(files, NAME)
    assert data.files() == ["01.png", "02.png", "03.png"] and data.thumbnails() == 3
    copied = webui / "athanor" / "pictures" / NAME
    assert _text(copied, "03") == _text(folder, "03")
    data.write("03.png", "another")
    assert _text(copied, "03") == "another\n" and _text(folder, "03") == "zwx, ball, white\n"
    data.screen.get_by_role("button", name="Train on these").press("Enter")
    assert page.locator("#athanor-screen-train").get_by_label("Pictures", exact=True).input_value() == str(copied)
    assert our_errors(page) == []
