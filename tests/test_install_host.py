"""What a WebUI's start does: the trainers' environment is made beside it, and its own Python stays as it is."""

from __future__ import annotations

# ruff: noqa: F811  (pytest takes fixtures by the name of an argument)
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path, PureWindowsPath

import pytest
from install_helpers import copy_installer, listing, outside, python_with, wheels  # noqa: F401

from extension.jobs import places
from extension.jobs.copies import second_copies
from extension.jobs.environment import Environment
from extension.jobs.processes import Identity
from extension.jobs.setup import Setup
from trainers.errors import InputError


@pytest.fixture(scope="module")
def _index(wheels, tmp_path_factory) -> dict[str, str]:
    """The variables of `outside`, for the whole module."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    return {**kept, "PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels)}


@pytest.fixture(scope="module")
def host_python(wheels, _index, tmp_path_factory) -> Path:
    """The Python of a WebUI, with a torch."""
    return python_with(wheels, tmp_path_factory.mktemp("host") / "venv", "torch==2.3.1", _index)


@pytest.fixture
def webui(tmp_path) -> Path:
    """A folder like a WebUI's, whose extensions folder holds a link to ours."""
    folder = tmp_path / "stable diffusion 中文"
    for name in ("modules", "models", "extensions"):
        (folder / name).mkdir(parents=True)
    (folder / "webui.py").write_text("")
    ours = tmp_path / "cloned elsewhere"
    ours.mkdir()
    copy_installer(ours)
    (folder / "extensions" / "athanor").symlink_to(ours, target_is_directory=True)
    return folder


def _start(webui: Path, python: Path, env: dict[str, str]) -> str:
    """What AUTOMATIC1111 does with an extension's install.py at its start; gives what was printed."""
    done = subprocess.run(
        [str(python), str(webui / "extensions" / "athanor" / "install.py")],
        cwd=webui, env={**env, "PYTHONPATH": str(webui)}, capture_output=True, text=True, encoding="utf-8",
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def _setup(webui: Path, monkeypatch, python: Path) -> Setup:
    """What the WebUI's process asks for the environment's state."""
    monkeypatch.setattr(sys, "prefix", str(python.parent.parent))
    return Setup(webui / "athanor", (webui / "extensions" / "athanor").resolve())


def _wait(setup: Setup, since: float = 0.0):
    ends = time.monotonic() + 120
    while time.monotonic() < ends:
        view = setup.view()
        if view.state in ("ready", "failed") and view.began >= since:
            return view
        time.sleep(0.1)
    raise AssertionError(f"{setup.view()}\n" + "\n".join(setup.log()))


def _ask(setup: Setup, env: dict[str, str]) -> list[str]:
    """Where a trainer finds its packages."""
    environment = Environment(program="trainers.demo", paths=(setup.root,), setup=setup)
    done = subprocess.run(
        environment.command("trainers.demo"), env={**env, **environment.process_variables()},
        cwd=setup.root, capture_output=True, text=True, encoding="utf-8",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_a_start_has_it_made_and_leaves_the_webuis_python_alone(webui, host_python, outside, wheels, monkeypatch):
    frozen = [str(host_python), "-m", "pip", "freeze", "--all"]
    before = listing(host_python.parent.parent), subprocess.check_output(frozen)
    setup = _setup(webui, monkeypatch, host_python)
    assert setup.view().state == "missing" and "Set up" in setup.problem

    # no index, no wheels: said on the page, and the start goes on
    said = _start(webui, host_python, {**outside, "PIP_FIND_LINKS": ""})
    assert "is being made" in said and said.count("\n") == 1
    failed = _wait(setup)
    assert failed.state == "failed" and "the package index has no" in failed.sentence
    assert any("No matching distribution" in line for line in setup.log())
    assert Environment(setup=setup).problem == failed.sentence

    # the wheels lie in a folder beside install.py: the button mends it without a network
    shutil.copytree(wheels, setup.root / "wheels")
    for name, value in {**outside, "PIP_FIND_LINKS": ""}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "executable", str(host_python))
    setup.repair()
    if setup.view().state == "building":
        with pytest.raises(InputError, match="being made already"):
            setup.repair()
    made = _wait(setup, failed.began + 0.001)
    assert made.state == "ready", setup.log()
    assert made.versions["transformers"] == "4.49.0" and made.versions["torch"] == "2.3.1"
    torch, _, torch_file, transformers_file = _ask(setup, outside)
    assert torch == "2.3.1" and Path(torch_file).is_relative_to(host_python.parent.parent)
    assert Path(transformers_file).is_relative_to(setup.root / ".venvs")

    # nothing is left to do, until a pin changes: then only that is installed, runs are left alone
    assert _start(webui, host_python, outside) == ""
    run = webui / "athanor" / "runs" / "anna" / "anna.safetensors"
    run.parent.mkdir(parents=True)
    run.write_text("learned")
    kept = Path(made.place) / "kept"
    kept.write_text("")
    pins = setup.root / "requirements" / "trainers-torch21.txt"
    pins.write_text(pins.read_text() + "gradio==5.50.0\n")
    assert "is being made" in _start(webui, host_python, outside)
    assert _wait(setup, made.began + 0.001).state == "ready" and kept.exists()
    assert "  Successfully installed gradio-5.50.0" in setup.log()

    assert (listing(host_python.parent.parent), subprocess.check_output(frozen)) == before
    shutil.rmtree(setup.root)
    assert run.read_text() == "learned"


@pytest.mark.slow
def test_a_python_without_venv_in_a_folder_that_cannot_be_written(webui, host_python, outside, wheels, monkeypatch):
    """As in Windows packages with an embedded Python, in a WebUI folder that is not the person's to write to."""
    site = next((host_python.parent.parent / "lib").glob("python*/site-packages"), None)
    site = site or host_python.parent.parent / "Lib" / "site-packages"
    hide = site / "hidden.pth"
    hide.write_text("import sys; sys.modules['venv'] = None; sys.modules['ensurepip'] = None\n")
    setup = _setup(webui, monkeypatch, host_python)
    (setup.root / ".venvs").write_text("no folder can be made here")
    try:
        said = _start(webui, host_python, outside)
        assert str(webui / "athanor" / "environments") in said
        made = _wait(setup)
        assert made.state == "ready", setup.log()
        assert str(setup.root) in made.why and Path(made.place).parent == webui / "athanor" / "environments"
        assert setup.interpreter()[0] == str(host_python) and len(setup.interpreter()) == 3
        torch, transformers, torch_file, transformers_file = _ask(setup, outside)
        assert (torch, transformers) == ("2.3.1", "4.49.0")
        assert Path(torch_file).is_relative_to(host_python.parent.parent)
        assert Path(transformers_file).is_relative_to(made.place)
        assert _start(webui, host_python, outside) == ""
    finally:
        hide.unlink()


def test_a_set_up_that_was_killed_is_said(webui, monkeypatch):
    setup = Setup(webui / "athanor", (webui / "extensions" / "athanor").resolve())
    place = places.choose(setup.root, setup.data)
    ended = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    known = Identity.of(ended.pid)
    status = {"state": "building", "process": {"pid": known.pid, "started": known.started}, "step": 2, "steps": 4}
    place.status.write_text(json.dumps({**status, "doing": "Installing"}))
    assert setup.view().state == "building" and "step 2 of 4" in setup.problem
    ended.communicate(b"\n")
    assert setup.view().state == "failed" and "interrupted" in setup.problem


def test_the_environment_of_the_commands_does_until_there_is_one(webui):
    setup = Setup(webui / "athanor", (webui / "extensions" / "athanor").resolve())
    python = setup.root / ".venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    python.parent.mkdir(parents=True)
    python.write_text("")
    stamp = setup.root / ".venv" / "athanor-setup.json"
    stamp.write_text('{"ready": false}')
    assert setup.interpreter() is None and setup.problem
    stamp.write_text('{"ready": true}')
    assert setup.interpreter() == [str(python)] and not setup.problem and setup.view().state == "ready"


def test_a_status_file_that_cannot_be_read_is_none(webui):
    setup = Setup(webui / "athanor", (webui / "extensions" / "athanor").resolve())
    for text in (
        "",
        "[1]",
        '{"state": "ready", "interpreter": "python"}',
        '{"state": "ready", "interpreter": ["/gone"]}',
    ):
        places.choose(setup.root, setup.data).status.write_text(text)
        assert setup.view().state == "missing" and setup.problem and setup.interpreter() is None


# --- where it is made


def test_webuis_that_share_our_folder_get_an_environment_each():
    assert places.key_of("/a/venv", (3, 10)) != places.key_of("/b/venv", (3, 10))
    assert places.key_of("/a/venv", (3, 10)) != places.key_of("/a/venv", (3, 11))
    assert places.key_of("/a/venv", (3, 10)) == places.key_of("/a/x/../venv", (3, 10))


@pytest.mark.parametrize(
    ("folder", "deep"),
    [
        (r"C:\Programme (x86)\Anna Müller\stable-diffusion-webui\extensions\athanor\.venvs\py310-0a1b2c3d", False),
        (r"D:\绘画\sd-webui-aki-v4.9\extensions\athanor\.venvs\py310-0a1b2c3d", False),
        ("E:\\" + "a long folder name\\" * 4 + r"webui\extensions\athanor\.venvs\py310-0a1b2c3d", True),
    ],
)
def test_windows_paths_have_a_limit(monkeypatch, folder, deep):
    monkeypatch.setattr(places, "_long_paths", lambda: False)
    assert places.too_deep(PureWindowsPath(folder), windows=True) is deep
    monkeypatch.setattr(places, "_long_paths", lambda: True)
    assert not places.too_deep(PureWindowsPath(folder), windows=True)


def test_a_place_that_is_too_deep_is_passed_over(monkeypatch, tmp_path):
    monkeypatch.setattr(places, "too_deep", lambda folder: ".venvs" in str(folder))
    place = places.choose(tmp_path / "ours", tmp_path / "data")
    assert place.folder.parent == tmp_path / "data" / "environments" and "too long" in place.why


def test_nothing_that_can_be_written(monkeypatch, tmp_path):
    monkeypatch.setattr(places, "not_writable", lambda folder: "it cannot be written (Read-only file system)")
    assert places.choose(tmp_path, tmp_path) is None


@pytest.mark.parametrize(("started_in", "data_dir"), [("webui", False), ("webui", True), ("extension", False)])
def test_the_webui_that_runs_it_is_found(monkeypatch, tmp_path, started_in, data_dir):
    from installer import host

    webui = tmp_path / "webui"
    for name in ("modules", "models", "extensions"):
        (webui / name).mkdir(parents=True)
    data = tmp_path / "my data" if data_dir else webui
    ours = data / "extensions" / "athanor"
    ours.mkdir(parents=True)
    monkeypatch.chdir(webui if started_in == "webui" else ours)
    monkeypatch.setattr(sys, "argv", [str(ours / "install.py")])
    assert host.webui_of_this_start() == (webui, data / "athanor")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "somewhere" / "else" / "install.py")])
    assert host.webui_of_this_start() == (None, None)


def test_an_exception_never_stops_a_start(monkeypatch, capsys):
    from installer import host

    monkeypatch.setattr(host, "_look", lambda: 1 / 0)
    assert host.at_start() == 0
    assert "ZeroDivisionError" in capsys.readouterr().out


def test_two_copies_are_noticed(tmp_path):
    for name in ("athanor", "sd-webui-athanor", "another"):
        (tmp_path / "extensions" / name / "scripts").mkdir(parents=True)
    for name in ("athanor", "sd-webui-athanor"):
        (tmp_path / "extensions" / name / "scripts" / "athanor.py").write_text("")
    (said,) = second_copies(tmp_path / "extensions")
    assert '"athanor" and "sd-webui-athanor"' in said
    assert second_copies(tmp_path / "extensions", ["athanor"]) == []
    assert second_copies(tmp_path / "nowhere") == []
