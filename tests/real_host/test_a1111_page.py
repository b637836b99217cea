"""The real AUTOMATIC1111 with its page: what we add to it, and "Reload UI"."""

from __future__ import annotations

import contextlib
import time

import pytest
from a1111_fixtures import BASE, FLAGS
from kinds import write
from server import PROMPT, Server

TAG = f"{PROMPT} <lora:k_page:0.7>"


@pytest.fixture(scope="module")
def server(webui, host_python, a1111_folders, state, tmp_path_factory):
    write(a1111_folders["lora"] / "k_page.safetensors", "lora", state)
    log = tmp_path_factory.mktemp("page") / "host.log"
    made = Server(host_python, webui, log, [flag for flag in FLAGS if flag != "--nowebui"])
    try:
        made.wait()
        made.post("/sdapi/v1/options", {"sd_model_checkpoint": BASE})
        yield made
    finally:
        made.stop()


def _reload(server):
    """Presses "Reload UI"."""
    ends = server.said().count("Startup time:")
    functions = server.get("/config")["dependencies"]
    buttons = {one["id"] for one in server.get("/config")["components"] if one["props"].get("value") == "Reload UI"}
    index = next(number for number, one in enumerate(functions) if buttons & set(one["targets"] or []))
    with contextlib.suppress(OSError):  # the page goes away while it answers
        server.post("/run/predict", {"fn_index": index, "data": [], "session_hash": "test"})
    end = time.monotonic() + 300
    while server.said().count("Startup time:") == ends and time.monotonic() < end:
        time.sleep(1)


def test_settings_and_the_plots_axis_are_on_the_page(server):
    page = str(server.get("/config"))
    assert "Athanor handles <lora:> tags" in page and "[Athanor] LoRA weight" in page


def test_the_plots_axis(server):
    config = server.get("/config")
    lists = [one["props"].get("choices") for one in config["components"] if one["props"].get("label") == "X type"]
    names = [choice[0] if isinstance(choice, list) else choice for choice in lists[0]]
    number = names.index("[Athanor] LoRA weight")
    # Axes, then: legend, single pictures too, sub-grids, seeds (4), margin, csv.
    arguments = [number, "0,0.7", [], 0, "", [], 0, "", [], False, True, False, False, False, False, False, 0, False]
    plot = server.draw(f"{PROMPT} <lora:k_page:0.2>", script_name="x/y/z plot", script_args=arguments)
    without, tagged = plot.pictures[-2:]
    assert (without == server.draw().pictures[0]).all()
    assert (tagged == server.draw(TAG).pictures[0]).all()


def test_reload_ui_keeps_everything_working(server):
    before, plain = server.draw(TAG), server.draw()
    _reload(server)
    assert server.draw(TAG).away_from(before) == 0
    assert server.draw().away_from(plain) == 0
    assert "Athanor handles <lora:> tags" in str(server.get("/config"))
