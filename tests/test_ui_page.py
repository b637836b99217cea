"""The tab: its files, its frame in gradio, and, where a browser is at hand, from the form to the finished run."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import subprocess
import threading
import time
from io import BytesIO

import pytest
import torch
from data_steps import Data
from jobs_helpers import fake_environment, kill_all, until
from page_steps import PROMPT, drop, open_tab, opened, set_option, train_from_the_form, wait_until_done
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import save_file
from training_helpers import make_pictures

from trainers import spec
from trainers.formats.recipe_png import KEYWORD, shareable

pytest.importorskip("gradio")
pytest.importorskip("fastapi")
from fastapi.testclient import TestClient

from extension.ui import assets
from extension.ui.preview import make_app, make_workshop

BROWSER = os.environ.get("ATHANOR_BROWSER") or shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    made = make_workshop(tmp_path_factory.mktemp("page"), fake_environment())
    yield made
    made.jobs.close()
    kill_all(made.jobs)


@pytest.fixture(scope="module")
def app(workshop):
    return make_app(workshop)


def test_the_page_links_to_scripts_that_are_served(workshop):
    # An application of its own: gradio's does not serve a browser after it has served a test client.
    client = TestClient(make_app(workshop), base_url="http://127.0.0.1")
    page = client.get("/").text
    links = re.findall(r"/athanor/v1/assets/[\w.]+", assets.head())
    assert len(links) == len(assets.asset_files()) + 1  # and the texts of the person's language
    for link in links:
        assert link in page and client.get(link).status_code == 200
    assert client.get("/athanor/v1/assets/..%2fREADME.md").status_code == 404


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
@pytest.mark.parametrize("name", sorted(name for name in assets.asset_files() if name.endswith(".js")))
def test_scripts_can_be_parsed(name):
    subprocess.run(["node", "--check", str(assets.asset_files()[name])], check=True)


def test_nothing_from_a_person_is_read_as_html():
    for name, path in assets.asset_files().items():
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", path.read_text()), name


# --- in a real browser


@pytest.fixture(scope="module")
def address(app, workshop):
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    workshop.jobs.start()
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(timeout=10)


@pytest.fixture(scope="module")
def page(address):
    playwright = pytest.importorskip("playwright.sync_api")
    if not BROWSER:
        pytest.skip("needs Chromium")
    with opened(playwright, BROWSER, address) as made:
        made.wait_for_selector(".athanor-choice")
        yield made


@pytest.fixture
def tab(page):
    """The form as it is at first."""
    page.reload(wait_until="domcontentloaded")
    page.wait_for_selector(".athanor-time:not(:empty)")
    return page.locator("#athanor")


@pytest.mark.slow
def test_from_the_form_to_the_finished_run_by_keyboard_and_labels(page, workshop):
    train_from_the_form(page, make_pictures(workshop.pictures / "balls", 3), "sks ball", 7)
    wait_until_done(page, 7)
    page.locator("#athanor").get_by_role("button", name="Use in prompt").press("Enter")
    open_tab(page, "Text to picture")
    page.wait_for_function(f"document.querySelector('{PROMPT}').value != ''")
    assert page.locator(PROMPT).input_value() == "sks ball <lora:sks-ball:1>"
    # A word within a tag is no word, and another strength takes the place of the first.
    page.locator(PROMPT).fill("a dog <lora:sks ball:0.3> <lora:sks-ball:0.8:live=1>")
    page.eval_on_selector(PROMPT, "el => el.parentElement.classList.add('tabitem')")  # a tab within, as WebUIs may have
    open_tab(page, "Athanor")
    page.evaluate("document.getElementById('athanor-toast').replaceChildren()")  # what was said the first time
    page.locator("#athanor").get_by_role("button", name="Use in prompt").press("Enter")
    page.get_by_text("In the prompt of “Text to picture”: sks ball <lora:sks-ball:1>").wait_for()
    assert page.locator(PROMPT).input_value() == "a dog <lora:sks ball:0.3> <lora:sks-ball:1> sks ball"
    assert page.errors == []


@pytest.mark.slow
def test_what_is_wrong_is_said_beside_the_button_and_marked(page, tab, workshop):
    place = tab.get_by_label("Pictures", exact=True)
    place.fill(' "/nowhere"')  # as Windows copies a path
    tab.get_by_role("button", name="Train", exact=True).click()
    side = tab.get_by_role("complementary")
    side.get_by_text("Pictures: '/nowhere' is not in a folder that this page may use").wait_for()
    assert place.input_value() == "/nowhere" and tab.locator(".athanor-wrong").count() == 1
    tab.get_by_text("Expert: every option").press("Enter")
    set_option(page, "rank", "many")
    assert tab.locator(".athanor-wrong").count() == 0
    tab.get_by_text("Expert: every option").press("Enter")
    place.fill(str(make_pictures(workshop.pictures / "some", 2)))
    tab.get_by_role("button", name="Train", exact=True).click()
    side.get_by_text("Rank: 'many' will not do; it takes a whole number from 1 to 1024.").wait_for()
    assert tab.get_by_label("rank", exact=True).is_visible()
    page.errors.clear()  # the browser's own word for a refusal


@pytest.mark.slow
def test_a_red_finding_holds_the_run_back_until_it_is_ticked(page, tab, workshop):
    tab.get_by_label("Pictures", exact=True).fill(str(make_pictures(workshop.pictures / "few", 2)))
    tab.get_by_label("Trigger word", exact=True).fill("zwx")
    tab.get_by_text("Expert: every option").press("Enter")
    tab.get_by_label("Search", exact=True).fill("comment")
    tab.get_by_label("comment", exact=True).fill("do=stop")
    tab.get_by_label("comment", exact=True).press("Tab")
    tab.get_by_role("button", name="Train", exact=True).press("Enter")
    tab.get_by_text("1 red finding(s) hold it back").wait_for()
    tab.get_by_role("button", name="Train", exact=True).press("Enter")
    assert [view.id for view in workshop.jobs.all() if view.id.startswith("zwx")] == []
    tab.get_by_label("Train all the same").press("Space")
    tab.get_by_text("Ready to train.").wait_for()
    tab.get_by_role("button", name="Train", exact=True).press("Enter")
    until(lambda: any(view.id == "zwx" for view in workshop.jobs.all()))
    assert workshop.jobs.raw_job("zwx")["override_checks"] == ["amount"]
    assert page.errors == []


@pytest.mark.slow
def test_forms_are_kept_as_presets_and_as_files(page, tab, tmp_path, workshop):
    tab.get_by_label("A person").check()
    with page.expect_response(lambda answer: "recipes/compose" in answer.url):
        tab.get_by_label("Quick").check()
    page.wait_for_timeout(500)  # the options are drawn anew
    tab.get_by_text("Expert: every option").press("Enter")
    tab.get_by_label("rank", exact=True).fill("5")
    tab.get_by_label("rank", exact=True).press("Tab")
    page.wait_for_function("document.querySelector('.athanor-changed')")
    assert tab.locator(".athanor-changed label").all_text_contents() == ["rank"]
    tab.get_by_label("Keep these options as").fill("my faces 脸")
    tab.get_by_role("button", name="Save", exact=True).press("Enter")
    tab.get_by_text("Kept as “my faces 脸”.").wait_for()
    tab.get_by_label("Trigger word", exact=True).fill("zwx")
    tab.get_by_label("Pictures", exact=True).fill(str(workshop.pictures))
    with page.expect_download() as download:
        tab.get_by_role("button", name="Download job file").press("Enter")
    file = tmp_path / "job.yaml"
    download.value.save_as(file)
    assert "rank: 5" in file.read_text(encoding="utf-8")

    page.reload(wait_until="domcontentloaded")
    page.wait_for_selector(".athanor-time:not(:empty)")
    tab.get_by_text("Expert: every option").press("Enter")
    tab.get_by_label("Recipe", exact=True).select_option("my faces 脸")
    page.wait_for_function("document.querySelector('.athanor-purpose input[value=person]').checked")
    page.wait_for_function("document.querySelector('.athanor-changed')")
    assert tab.get_by_label("rank", exact=True).input_value() == "5" and tab.get_by_label("Quick").is_checked()
    tab.get_by_role("button", name="undo").press("Enter")
    page.wait_for_function("!document.querySelector('.athanor-changed')")
    tab.get_by_role("button", name="Delete", exact=True).press("Enter")
    tab.get_by_text("lies in the trash folder of your presets").wait_for()
    tab.get_by_label("Choose a job file or a verdict sheet").set_input_files(file)
    page.wait_for_function("document.querySelector('.athanor-changed')")
    assert tab.get_by_label("rank", exact=True).input_value() == "5"
    assert tab.get_by_label("Trigger word", exact=True).input_value() == "zwx"
    file.write_text(file.read_text(encoding="utf-8").replace("trigger: zwx", "trigger: ''"), encoding="utf-8")
    tab.get_by_label("Choose a job file or a verdict sheet").set_input_files(file)
    page.wait_for_function("athanor.form.job().trigger === undefined || athanor.form.job().trigger === ''")
    assert tab.get_by_label("Trigger word", exact=True).input_value() == ""
    assert page.errors == []


@pytest.mark.slow
def test_a_method_is_chosen_from_the_table_and_words_are_shown_as_tokens(page, tab):
    tab.get_by_label("Trigger word", exact=True).fill("sks basketball")
    tab.get_by_text("2 of 75 tokens").wait_for()
    tab.get_by_role("button", name="Which method should I use?").press("Enter")
    tab.get_by_text("Advised").wait_for()
    tab.get_by_label("Number of pictures").fill("3")
    tab.get_by_label("Number of pictures").press("Tab")
    row = tab.get_by_role("row").filter(has_text="Textual Inversion")
    row.get_by_text("Advised").wait_for()
    row.get_by_role("button", name="Use").press("Enter")
    assert tab.get_by_label("Method", exact=True).input_value() == "textual_inversion"
    tab.get_by_text("Expert: every option").press("Enter")
    recipe = tab.get_by_label("Recipe", exact=True)
    recipe.select_option("sd1-object-pivotal")  # a recipe brings its method
    tab.get_by_text("Recipe: sd1-object-pivotal.").wait_for()
    assert tab.get_by_label("Method", exact=True).input_value() == "pivotal"
    tab.get_by_label("Method", exact=True).select_option("lora")  # and is not followed under another
    assert recipe.input_value() == ""
    tab.get_by_text("Recipe: demo.").wait_for()
    assert page.errors == []


@pytest.mark.slow
def test_a_method_asks_what_means_something_to_it(page, tab, workshop):
    folder = make_pictures(workshop.pictures / "plain", 3)
    for file in folder.glob("*.txt"):
        file.unlink()
    tab.get_by_label("Pictures", exact=True).fill(str(folder))
    tab.get_by_label("Trigger word", exact=True).fill("sks")
    caption = tab.get_by_label("Caption for all pictures")
    caption.wait_for()
    tab.get_by_label("Trigger word", exact=True).fill("sks ball")
    assert caption.input_value() == "photo of sks ball toy"
    questions = ("Trigger word", "Quick", "Graphics memory", "Start from", "Caption for all pictures")
    asked = {}
    for method in ("textual_inversion", "aesthetic_gradient", "dreambooth", "lora"):
        with page.expect_response(lambda answer: "recipes/compose" in answer.url):
            tab.get_by_label("Method", exact=True).select_option(method)
        asked[method] = {one for one in questions if tab.get_by_label(one, exact=one != "Quick").is_visible()}
        assert tab.get_by_label("Base model", exact=True).is_enabled()
        assert page.evaluate("athanor.form.job().trigger || ''") == (
            "sks ball" if "Trigger word" in asked[method] else ""
        )
    every = set(questions)
    assert asked == {"textual_inversion": every - {"Trigger word"}, "aesthetic_gradient": set(),
                     "dreambooth": every - {"Start from"}, "lora": every}  # fmt: skip
    assert page.errors == []


@pytest.mark.slow
def test_the_form_follows_the_model_that_is_loaded_until_one_is_chosen(page, tab, workshop, monkeypatch):
    (first,) = workshop.bases()
    second = dataclasses.replace(first, path=first.path.with_name("second.safetensors"), title="second")
    base, loaded = tab.get_by_label("Base model", exact=True), "el => el.options[el.selectedIndex].text"

    def load(*bases):
        monkeypatch.setattr(workshop, "bases", lambda: list(bases))
        open_tab(page, "Text to picture")
        with page.expect_response(lambda answer: answer.url.endswith("/bases")):
            open_tab(page, "Athanor")

    load(second, dataclasses.replace(first, loaded=False))
    page.wait_for_function(f"({loaded})(document.querySelector('.athanor-field select')) === 'second (loaded now)'")
    base.select_option(str(first.path))
    load(dataclasses.replace(second, title="renamed"), dataclasses.replace(first, loaded=False))
    tab.locator("option", has_text="renamed (loaded now)").wait_for(state="attached")
    assert base.input_value() == str(first.path) and page.errors == []


@pytest.mark.slow
def test_captions_are_changed_together_taken_back_and_handed_to_the_form(page, tab, workshop):
    folder = make_pictures(workshop.pictures / "toys 玩具", 4)
    for number in range(4):
        (folder / f"picture {number}.txt").unlink()
    tab.get_by_text("Expert: every option").press("Enter")
    set_option(page, "resolution", "128")
    data = Data(page).open()
    data.show(folder)
    assert data.screen.get_by_label("Resolution that pictures are cut for").input_value() == "128"
    offer = data.screen.locator(".athanor-offer")
    offer.get_by_label("Trigger word").fill("sks")
    offer.get_by_label("Kind of thing").fill("robot")
    offer.get_by_role("button", name="Write “photo of sks robot”").press("Enter")
    data.screen.get_by_role("button", name="photo of sks robot 4").press("Enter")  # it is in the box of tags now
    data.screen.get_by_label("Replace by").fill("a drawing")
    data.screen.get_by_role("button", name="Replace (4)").press("Enter")
    data.screen.get_by_role("button", name="Undo: “photo of sks robot” replaced by “a drawing”").wait_for()
    assert data.caption("picture 2.png").input_value() == "a drawing"
    data.write("picture 2.png", "written by hand")
    data.undo("caption of picture 2.png")
    assert (folder / "picture 2.txt").read_text(encoding="utf-8") == "a drawing\n"
    data.select("picture 3.png")
    data.screen.get_by_role("button", name="Set aside").press("Enter")
    data.screen.get_by_role("button", name="Undo: 1 picture set aside").wait_for()
    assert not (folder / "picture 3.png").exists() and len(list((folder / ".set-aside").iterdir())) == 2
    data.screen.get_by_role("button", name="Train on these").press("Enter")
    assert tab.get_by_label("Pictures", exact=True).input_value() == str(folder)
    assert tab.get_by_label("Trigger word", exact=True).first.input_value() == "sks"
    assert page.errors == []


@pytest.mark.slow
def test_a_sheet_that_is_dropped_anywhere_fills_the_form_and_a_picture_does_not(page, tab, workshop):
    job = spec.parse({"name": "from-afar", "base": "b", "data": "d", "steps": 77, "trigger": "zkw", "rank": 5})
    picture, chunk = Image.new("RGB", (64, 64), "red"), PngInfo()
    chunk.add_text(KEYWORD, shareable(job, "another.safetensors", None))
    for name, place, texts in (("sheet", "#athanor-screen-runs", chunk), ("plain", ".athanor-hold-paces", None)):
        out = BytesIO()
        picture.save(out, "PNG", pnginfo=texts)
        drop(page, place, {"sheet.png": out.getvalue()})
        if name == "sheet":
            tab.get_by_text("It was trained on another.safetensors, which is not here.").wait_for()
    assert tab.get_by_label("Trigger word", exact=True).input_value() == "zkw"
    tab.get_by_text("Expert: every option").press("Enter")
    assert tab.get_by_label("rank", exact=True).input_value() == "5"
    assert tab.get_by_label("steps", exact=True).input_value() == "77"
    assert page.errors == []


@pytest.mark.slow
def test_files_are_renamed_and_thrown_away_in_the_library(page, tab, workshop):
    folder = workshop.results("lora")
    folder.mkdir(parents=True, exist_ok=True)
    site = "lora_unet_mid_block_attentions_0_proj_in"
    save_file({f"{site}.lora_down.weight": torch.ones(2, 64), f"{site}.lora_up.weight": torch.ones(64, 2)},
              folder / "old name.safetensors")  # fmt: skip
    tab.get_by_role("tab", name="Library").click()
    card = tab.get_by_role("article", name="old name")
    card.get_by_role("button", name="Rename").press("Enter")
    page.get_by_role("textbox", name="Rename “old name”").fill("new name")
    page.keyboard.press("Enter")
    card = tab.get_by_role("article", name="new name")
    card.get_by_role("button", name="Delete").press("Enter")
    page.get_by_role("dialog").get_by_role("button", name="Cancel").press("Enter")
    assert (folder / "new name.safetensors").is_file()
    card.get_by_role("button", name="Delete").press("Enter")
    page.get_by_role("dialog").get_by_role("button", name="Delete").press("Enter")
    card.wait_for(state="detached")
    assert not list(folder.glob("*name*")) and page.errors == []


@pytest.mark.slow
def test_a_webui_that_was_away_for_a_while_is_not_said_to_be_gone(page, tab, workshop):
    folder = str(make_pictures(workshop.pictures / "away", 2))
    workshop.jobs.submit({"method": "lora", "name": "away", "base": folder, "data": folder, "steps": 2}, "away")
    until(lambda: workshop.jobs.one("away").state == "done")
    tab.get_by_role("tab", name="Runs").click()
    tab.locator(".athanor-detail .athanor-status").get_by_text("done").wait_for()
    gone = tab.locator(".athanor-detail").get_by_text("The WebUI does not answer.")
    page.context.set_offline(True)
    gone.wait_for()
    page.context.set_offline(False)
    gone.wait_for(state="detached")
    assert all("Failed to load resource" in error or "ERR_" in error for error in page.errors)
    page.errors.clear()
