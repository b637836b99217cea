"""AUTOMATIC1111 with `--data-dir`, in a folder with a space and Chinese characters: everything of ours follows it.

    pytest tests/real_host/test_data_dir.py --webui DIR --python PY

As for `test_installed.py` the WebUI is started with its prepare step, so that it runs our `install.py`. This folder is
linked into the data folder's extensions, and the environment it makes stays with it. Nothing may be written to the
WebUI's own folder.
"""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from installed import Started, changed, files_of
from test_lease import CHECKS
from training_helpers import make_pictures

from installer.link import BASE, give_base

ROOT = Path(__file__).resolve().parents[2]
FLAGS = ("--use-cpu", "all", "--no-half", "--skip-torch-cuda-test", "--no-download-sd-model", "--api")
NAME = "athanor-data-dir"


def _ask(started: Started, path: str, body: dict | None = None) -> dict:
    """What a route of ours answers."""
    content = json.dumps(body).encode() if body is not None else None
    request = urllib.request.Request(f"{started.address}{path}", content, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        raise AssertionError(error.read().decode(errors="replace")) from None


def _until(started: Started, path: str, states: tuple[str, ...], seconds: float = 240) -> dict:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        view = _ask(started, path)
        if view["state"] in states:
            return view
        time.sleep(0.5)
    raise AssertionError(view)


def test_everything_is_kept_in_the_data_folder(request, host_python, tmp_path):
    folder = request.config.getoption("--webui")
    if not folder:
        pytest.skip("needs an installed WebUI: --webui DIR --python PY")
    webui, data = Path(folder).expanduser().absolute(), tmp_path / "my data 数据"
    if (webui / "modules_forge").exists():
        pytest.skip("the tiny base needs AUTOMATIC1111")
    assert not os.path.lexists(webui / "extensions" / "athanor"), "this WebUI has Athanor itself"
    (data / "extensions").mkdir(parents=True)
    (data / "extensions" / "athanor").symlink_to(ROOT, target_is_directory=True)
    give_base(ROOT, data)
    before = files_of(webui), sorted((webui / "athanor").rglob("*"))
    started = Started(host_python, webui, tmp_path / "host.log", [*FLAGS, "--data-dir", str(data)])
    try:
        started.wait()
        assert _until(started, "/athanor/v1/setup", ("ready", "failed"))["state"] == "ready"
        base = data / "models" / "Stable-diffusion" / f"{BASE}.safetensors"
        pictures = make_pictures(data / "athanor" / "pictures" / NAME, 3)
        job = {
            "method": "lora", "name": NAME, "base": str(base), "data": str(pictures),
            "trigger": "ball", "resolution": 64, "steps": 3, "rank": 2, "device": "cpu", "verdict": False,
            "override_checks": CHECKS,
        }  # fmt: skip
        run = _ask(started, "/athanor/v1/jobs", {"job": job})["id"]
        view = _until(started, f"/athanor/v1/jobs/{run}", ("done", "failed", "interrupted"))
        assert view["state"] == "done", view["log"]
        _ask(started, f"/athanor/v1/jobs/{run}/publish", {})
        plain, drawn = started.draw(), started.draw(prompt=f"a red circle <lora:{NAME}:1>")
        assert drawn["pictures"] != plain["pictures"] and f"{NAME}: " in drawn["texts"][0]
    finally:
        started.stop()
    assert (data / "athanor" / "runs" / run / f"{NAME}.safetensors").is_file()
    assert (data / "models" / "Lora" / f"{NAME}.safetensors").is_file()
    assert changed(before[0], files_of(webui)) == []
    assert sorted((webui / "athanor").rglob("*")) == before[1]
