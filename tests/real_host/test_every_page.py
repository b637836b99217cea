"""Every real WebUI with its page: what we add to it, "Reload UI", and the extension switched off and on again."""

from __future__ import annotations

import time

import pytest
from a1111_fixtures import BASE as A1111_BASE
from a1111_fixtures import FLAGS as A1111_FLAGS
from host_fixtures import tag
from kinds import write
from patcher_fixtures import BASE as FORGE_BASE
from patcher_fixtures import FLAGS as FORGE_FLAGS
from patcher_fixtures import Drawing
from server import PROMPT, Server

ROUTE = "/athanor/v1/jobs"


@pytest.fixture(scope="module")
def flags(which_webui, webui):
    if which_webui == "a1111":
        return [flag for flag in A1111_FLAGS if flag != "--nowebui"]
    return [*FORGE_FLAGS, "--ckpt", str(webui / "models" / "Stable-diffusion" / FORGE_BASE)]


@pytest.fixture(scope="module")
def page(request, webui, host_python, which_webui, flags, neighbours, tmp_path_factory):
    """The WebUI with its page, drawing small pictures; a LoRA called k_page is there."""
    names = ("a1111_folders", "state") if which_webui == "a1111" else ("patcher_folders", "patcher_state")
    folders, state = (request.getfixturevalue(name) for name in names)
    write(folders["lora"] / "k_page.safetensors", "lora", state)
    frozen = webui / "ui-config.json"  # the WebUI writes every default of its page into it
    before = frozen.read_bytes() if frozen.exists() else None
    made = Server(host_python, webui, tmp_path_factory.mktemp("page") / "host.log", flags)
    try:
        made.wait()
        if which_webui == "a1111":
            made.post("/sdapi/v1/options", {"sd_model_checkpoint": A1111_BASE})
        yield Drawing(made)
    finally:
        made.stop()
        frozen.unlink(missing_ok=True) if before is None else frozen.write_bytes(before)


def _reload(server, disabled=()):
    """What "Reload UI" does, with these extensions switched off."""
    ends = server.said().count("Startup time:")
    server.post("/neighbour/reload", {"disabled": list(disabled)})
    end = time.monotonic() + 200
    while server.said().count("Startup time:") == ends and time.monotonic() < end:
        time.sleep(0.5)
    time.sleep(1)  # the callbacks of its start run before the line, its routes answer soon after


def _arguments(server, label, values):
    """Of the plot's script: this axis with these values, single pictures too."""
    known = server.get("/sdapi/v1/script-info")
    found = next(one for one in known if one["name"] == "x/y/z plot" and not one["is_img2img"])
    given = {"X values": values, "Y type": 0, "Z type": 0, "Include Sub Images": True, "Draw legend": False}
    arguments = []
    for one in found["args"]:
        name, choices = one["label"], one.get("choices")
        if name == "X type":
            arguments.append(choices.index(label))
        elif name.endswith(" values") and choices is not None:
            arguments.append([])  # of axes that offer values to choose from
        else:
            arguments.append(given.get(name, one.get("value")))
    return arguments


def test_the_plots_axis(page):
    arguments = _arguments(page.server, "[Athanor] LoRA weight", "0,0.7")
    plot = page(f"{PROMPT} <lora:k_page:0.2>", script_name="x/y/z plot", script_args=arguments)
    without, tagged = plot.pictures[-2:]
    assert (without == page().pictures[0]).all()
    assert (tagged == page(tag("page")).pictures[0]).all() and not (tagged == without).all()


def test_reload_ui_keeps_everything_working(page):
    before, plain = page(tag("page")), page()
    _reload(page.server)
    assert page(tag("page"), fresh=True).away_from(before) == 0 and before.away_from(plain) > 2
    assert page(fresh=True).away_from(plain) == 0
    assert "Athanor handles <lora:> tags" in str(page.server.get("/config"))


def test_switched_off_everything_is_the_hosts_own_again(page, webui, host_python, flags, tmp_path_factory):
    ours, server = page(tag("page")), page.server
    before = server.get("/neighbour/model")
    assert server.get(ROUTE) is not None
    log = tmp_path_factory.mktemp("page") / "alone.log"
    other = Server(host_python, webui, log, [*flags, "--disable-extra-extensions"])
    try:
        _reload(server, ["athanor"])
        with pytest.raises(OSError):
            server.get(ROUTE)
        model = server.get("/neighbour/model")
        assert model["lora"] != before["lora"] and model == {**before, "lora": model["lora"]}
        off, alone = page(tag("page"), fresh=True), Drawing(other.wait())
        assert off.away_from(alone(tag("page"))) == 0 and off.away_from(ours) <= 1
        assert page(fresh=True).away_from(alone()) == 0
        _reload(server)
        assert page(tag("page"), fresh=True).away_from(ours) == 0
        assert server.get("/neighbour/model")["lora"].startswith("athanor_extension.")
    finally:
        other.stop()
