"""A WebUI that asks for a password asks for it at every route of ours too; whoever logged in has the tab."""

from __future__ import annotations

import base64
import re
import urllib.error
import urllib.parse
import urllib.request

import pytest
from page_fixtures import BROWSER, flags_with_page
from page_steps import open_tab, opened, our_errors
from server import Server

MACHINE, PERSON = "robot:iron", ("anna", "rose")
ROUTES = "/athanor/v1/"


@pytest.fixture(scope="module")
def guarded(webui, host_python, which_webui, tmp_path_factory):
    frozen = webui / "ui-config.json"  # the WebUI writes every default of its page into it
    before = frozen.read_bytes() if frozen.exists() else None
    flags = flags_with_page(webui, host_python, which_webui)
    flags += ["--api-auth", MACHINE, "--gradio-auth", ":".join(PERSON)]
    made = Server(host_python, webui, tmp_path_factory.mktemp("auth") / "host.log", flags, MACHINE)
    try:
        yield made.wait()
    finally:
        made.stop()
        frozen.unlink(missing_ok=True) if before is None else frozen.write_bytes(before)


def _status(server: Server, path: str, method: str = "GET", **headers: str) -> int:
    address = f"http://127.0.0.1:{server.port}{path}"
    body = b"{}" if method != "GET" else None
    request = urllib.request.Request(address, body, {"Content-Type": "application/json", **headers}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def _basic(login: str) -> dict[str, str]:
    return {"Authorization": f"Basic {base64.b64encode(login.encode()).decode()}"}


def test_every_route_asks_for_the_webuis_password(guarded):
    known = guarded.get("/openapi.json")["paths"]
    asked = [(path, way.upper()) for path, ways in known.items() if path.startswith(ROUTES) for way in ways]
    assert len(asked) >= 40
    for path, method in asked:
        path = re.sub(r"{\w+}", "x", path) + "?folder=f&file=f&name=n"
        assert _status(guarded, path, method) == 401, (method, path)
        assert _status(guarded, path, method, **_basic("robot:copper")) == 401, (method, path)
        assert _status(guarded, path, method, Cookie="access-token=x; access-token-unsecure=x") == 401, (method, path)
    assert _status(guarded, f"{ROUTES}schema", **_basic(MACHINE)) == 200


def test_whoever_logged_in_to_the_page_may_use_them(guarded):
    playwright = pytest.importorskip("playwright.sync_api")
    if not BROWSER:
        pytest.skip("needs Chromium")
    address = f"http://127.0.0.1:{guarded.port}/"
    form = urllib.parse.urlencode(dict(zip(("username", "password"), PERSON, strict=True))).encode()
    with urllib.request.urlopen(urllib.request.Request(f"{address}login", form), timeout=60) as answer:
        cookies = [each.partition(";")[0] for each in answer.headers.get_all("Set-Cookie")]
    assert _status(guarded, f"{ROUTES}schema", Cookie="; ".join(cookies)) == 200
    with opened(playwright, BROWSER, address, viewport={"width": 1280, "height": 1000}) as page:
        page.set_default_timeout(120_000)
        for field, word in zip(("username", "password"), PERSON, strict=True):
            page.get_by_label(field).fill(word)
        page.errors.clear()  # before that it may not even load the WebUI's own scripts
        page.get_by_role("button", name="Login").click()
        open_tab(page, "Athanor")
        page.get_by_text("What do you want to teach?").wait_for()
        assert not our_errors(page)
