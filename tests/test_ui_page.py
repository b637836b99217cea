"""The tab: its files, its frame in gradio, and, where a browser is at hand, from the form to the finished run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import threading
import time

import pytest
from jobs_helpers import fake_environment
from training_helpers import make_pictures

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
    for view in made.jobs.all():
        made.jobs.supervisor.kill(made.jobs.runs / view.id)


@pytest.fixture(scope="module")
def app(workshop):
    return make_app(workshop)


def test_the_page_links_to_scripts_that_are_served(workshop):
    # An application of its own: gradio's does not serve a browser after it has served a test client.
    client = TestClient(make_app(workshop))
    page = client.get("/").text
    links = re.findall(r"/athanor/v1/assets/[\w.]+", assets.head())
    assert len(links) == len(assets.asset_files())
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
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        made = browser.new_page()
        made.errors = []
        made.on("pageerror", lambda error: made.errors.append(str(error)))
        made.on("console", lambda said: made.errors.append(said.text) if said.type == "error" else None)
        made.set_default_timeout(90_000)
        made.goto(address, wait_until="domcontentloaded")
        made.wait_for_selector(".athanor-choice")
        yield made
        browser.close()


@pytest.mark.slow
def test_from_the_form_to_the_finished_run_by_keyboard_and_labels(page, workshop, tmp_path):
    data = make_pictures(workshop.pictures / "balls", 3)
    page.get_by_label("Pictures", exact=True).fill(str(data))
    page.get_by_label("Trigger word", exact=True).fill("sks ball")
    assert page.get_by_label("Name of the result", exact=True).input_value() == "sks-ball"
    page.get_by_text("Expert: every option").press("Enter")
    page.get_by_label("steps", exact=True).fill("7")
    page.get_by_label("steps", exact=True).press("Tab")
    page.get_by_role("button", name="Train", exact=True).press("Enter")
    page.get_by_text("done · step 7 of 7").first.wait_for()
    page.get_by_role("button", name="Use in prompt").press("Enter")
    page.get_by_role("tab", name="Text to picture").click()
    prompt = page.get_by_label("Prompt", exact=True)
    page.wait_for_function("document.querySelector('#txt2img_prompt textarea').value != ''")
    assert prompt.input_value() == "sks ball <lora:sks-ball:1>"
    page.get_by_role("tab", name="Athanor").click()
    assert page.errors == []


@pytest.mark.slow
def test_what_is_wrong_is_said_beside_the_button(page):
    page.get_by_role("tab", name="Train", exact=True).click()
    page.get_by_label("Pictures", exact=True).fill("/nowhere")
    page.get_by_role("button", name="Train", exact=True).click()
    page.get_by_role("complementary").get_by_text("is not in a folder that this page may use").wait_for()
