"""install.py as a person and a host run it. Real virtual environments, with tiny stand-ins for the packages."""

# ruff: noqa: F811  (pytest takes fixtures by the name of an argument)

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from install_helpers import (  # noqa: F401
    REQUIREMENTS,
    ROOT,
    here,
    listing,
    outside,
    python_with,
    run_install,
    wheels,
)

# --- without setting anything up


def test_an_old_python_gets_a_sentence(monkeypatch, capsys):
    source = (ROOT / "install.py").read_text(encoding="utf-8")
    ast.parse(source, feature_version=(3, 4))
    names: dict = {"__name__": "install", "__file__": "install.py"}
    exec(compile(source, "install.py", "exec"), names)
    monkeypatch.setattr(sys, "version_info", (3, 9, 18))
    assert names["main"]() == 1
    said = capsys.readouterr().err
    assert "3.10 or newer" in said and "3.9.18" in said and said.count("\n") == 1


def test_started_by_nobody_in_particular_it_does_nothing(here, outside):
    done = run_install(here, env=outside)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not (here / ".venv").exists() and not (here / ".venvs").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["dmo"], "Did you mean \"demo\""),
        (["demo", "--colour", "red"], "unrecognized arguments"),
        (["link"], "WEBUI_DIR"),
        (["draw"], "not a command"),
    ],
)  # fmt: skip
def test_wrong_words_are_answered_with_a_sentence(here, outside, words, said):
    done = run_install(here, *words, env=outside)
    assert done.returncode == 2
    assert said in done.stderr and done.stderr.count("\n") == 1


# --- setting up


@pytest.mark.slow
def test_a_set_up_that_fails_is_repaired_then_used_offline_and_updated(here, outside, wheels, tmp_path):
    failed = run_install(here, "demo", env={**outside, "PIP_FIND_LINKS": str(tmp_path)})
    assert failed.returncode == 1
    last = failed.stderr.strip().splitlines()[-1]
    assert "the package index has no torch" in last and "athanor-setup.log" in last
    assert "No matching distribution" in failed.stderr and "Traceback" not in failed.stderr
    (here / ".venv" / "left over").write_text("")

    # a set-up that did not end is done again from the start
    first = run_install(here, "demo", env=outside)
    assert first.returncode == 0, first.stderr
    torch, _, torch_file, _ = json.loads(first.stdout.splitlines()[-1])
    assert torch == "2.13.0" and Path(torch_file).is_relative_to(here / ".venv")
    assert "interrupted" in first.stdout and "cannot be reached" in first.stdout
    assert not (here / ".venv" / "left over").exists()

    # everything is there: no index, no wheel is needed, and nothing is said
    offline = {**outside, "PIP_FIND_LINKS": ""}
    began = time.monotonic()
    again = run_install(here, "demo", env=offline, cwd=here.parent)
    assert again.returncode == 0 and len(again.stdout.splitlines()) == 1
    assert time.monotonic() - began < 5

    # a changed pin is installed into the same environment
    pins = here / "requirements" / "trainers.txt"
    pins.write_text(pins.read_text() + "einops==0.8.2\n")
    updated = run_install(here, "demo", env=outside)
    assert updated.returncode == 0 and "anew" not in updated.stdout and "ready" in updated.stdout


@pytest.mark.slow
def test_a_torch_that_is_there_is_used_and_its_python_is_left_alone(here, outside, wheels, tmp_path):
    python = python_with(wheels, tmp_path / "host", "torch==2.3.1", outside)
    before = listing(tmp_path / "host")
    done = run_install(here, "demo", env=outside, python=python)
    assert done.returncode == 0, done.stderr
    torch, transformers, torch_file, transformers_file = json.loads(done.stdout.splitlines()[-1])
    assert torch == "2.3.1" and Path(torch_file).is_relative_to(tmp_path / "host")
    assert transformers == "4.49.0" and Path(transformers_file).is_relative_to(here / ".venv")
    assert listing(tmp_path / "host") == before


def test_a_torch_that_is_too_old_is_not_used(here, monkeypatch):
    from installer import environment

    monkeypatch.setattr(environment.machine, "nearby_torch_version", lambda: "1.13.1+cu117")
    assert environment.Environment(here)._wanted(tests=False)["torch_nearby"] is None
    monkeypatch.setattr(environment.machine, "nearby_torch_version", lambda: "2.1.2+cu121")
    assert environment.Environment(here)._wanted(tests=False)["torch_nearby"] == "2.1.2+cu121"


def test_someone_elses_environment_is_not_deleted(here, outside):
    (here / ".venv").mkdir()
    (here / ".venv" / "mine").write_text("important")
    done = run_install(here, "demo", env=outside)
    assert done.returncode == 1 and "was not made by Athanor" in done.stderr
    assert (here / ".venv" / "mine").read_text() == "important"


def test_two_set_ups_at_once_wait_for_each_other(tmp_path):
    hold = (
        "import sys, time; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path; from installer.lock import only_one\n"
        "with only_one(Path(sys.argv[2])): print('held', flush=True); time.sleep(float(sys.argv[3]))\n"
    )
    arguments = [sys.executable, "-c", hold, str(ROOT), str(tmp_path / "lock")]
    first = subprocess.Popen([*arguments, "60"], stdout=subprocess.PIPE, text=True)
    assert first.stdout.readline() == "held\n"
    second = subprocess.Popen([*arguments, "0"], stdout=subprocess.PIPE, text=True)
    assert "waiting" in second.stdout.readline()
    assert second.poll() is None
    first.kill()  # a holder that dies lets go
    first.wait()
    assert second.communicate(timeout=20)[0] == "held\n"
    first.stdout.close()


def test_a_set_up_that_hangs_is_not_waited_for_for_ever(tmp_path):
    from installer.lock import only_one
    from installer.problems import SetupError

    with (
        only_one(tmp_path / "lock"),
        pytest.raises(SetupError, match="still running"),
        only_one(tmp_path / "lock", 0.3),
    ):
        pass


def test_a_python_without_venv_gets_a_sentence(here, monkeypatch):
    from installer import environment
    from installer.problems import SetupError

    monkeypatch.setattr(environment.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(environment.machine, "nearby_torch_version", lambda: None)
    with pytest.raises(SetupError, match="without the module 'venv'"):
        environment.Environment(here).ensure()


def test_a_folder_that_cannot_be_written_gets_a_sentence(here, monkeypatch):
    from installer import environment
    from installer.problems import SetupError

    monkeypatch.setattr(environment.os, "access", lambda path, mode: False)
    with pytest.raises(SetupError, match="cannot be written"):
        environment.Environment(here).ensure()


# --- what suits the machine


@pytest.mark.parametrize(
    ("output", "cause"),
    [
        ("OSError: [Errno 28] No space left on device", "the disk is full"),
        ("NewConnectionError('Failed to establish a new connection')\nNo matching distribution found for x", "reached"),
        ("ERROR: No matching distribution found for torch==2.13.0", "no torch==2.13.0 for this Python"),
        ("ProxyError('Cannot connect to proxy.')", "the proxy"),
        ("something new", "below"),
    ],
)
def test_pips_output_is_read(output, cause):
    from installer.problems import explain

    assert cause in explain(output)


@pytest.mark.parametrize(
    ("system", "gpus", "index"),
    [
        ("Linux", [], "/cpu"),
        ("Windows", [], None),
        ("Darwin", [], None),
        ("Linux", [("RTX 4090", 590, 8.9)], None),
        ("Windows", [("RTX 4090", 590, 8.9)], "/cu130"),
        ("Windows", [("GTX 1080", 590, 6.1)], "/cu126"),
        ("Linux", [("RTX 3060", 535, 8.6)], "/cu126"),
    ],
)
def test_the_build_of_torch_suits_the_machine(monkeypatch, system, gpus, index):
    from installer import machine

    monkeypatch.setattr(machine.platform, "system", lambda: system)
    monkeypatch.setattr(machine, "nvidia_gpus", lambda: [machine.Gpu(*gpu, 8192) for gpu in gpus])
    build = machine.suitable_builds()[0]
    assert build.index is None if index is None else build.index.endswith(index)


@pytest.mark.skipif(os.name == "nt", reason="the stand-in for nvidia-smi is a shell script")
def test_gpus_are_read_from_nvidia_smi(tmp_path, monkeypatch):
    from installer import machine

    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA GeForce RTX 3060, 535.183.01, 8.6, 12288'\necho 'broken line'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.nvidia_gpus() == [machine.Gpu("NVIDIA GeForce RTX 3060", 535, 8.6, 12288)]


def test_serve_starts_the_embedded_host_from_wherever_the_person_is(here, outside, tmp_path):
    host = here / "extension" / "hosts" / "embedded"
    host.mkdir(parents=True)
    (host / "server.py").write_text(
        "import json, os, sys, gradio\n"
        "print(json.dumps([sys.argv[1:], os.getcwd(), os.environ['ATHANOR_STARTED_IN'], gradio.__version__]))\n"
    )
    done = run_install(here, "serve", "--port", "8000", "--help", env=outside, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    arguments, folder, started_in, gradio = json.loads(done.stdout.splitlines()[-1])
    assert arguments == ["--port", "8000", "--help"] and gradio
    assert Path(folder) == here and Path(started_in) == tmp_path
    again = run_install(here, "demo", "--out", str(tmp_path / "out"), env=outside)
    assert "Installing" not in again.stdout  # what serve needs does no harm to the others


def test_the_lists_are_complete():
    """Installed with --no-deps: whatever a listed package needs must be listed too, at a version that will do."""
    from importlib.metadata import PackageNotFoundError, distribution

    from packaging.requirements import Requirement

    listed = {}
    for name in ("torch.txt", "torch-needs.txt", "trainers.txt", "serve.txt", "tests.txt"):
        for line in (REQUIREMENTS / name).read_text(encoding="utf-8").splitlines():
            if line and not line.startswith("#"):
                pin = Requirement(line)
                if pin.marker is None or pin.marker.evaluate():
                    listed[pin.name.lower().replace("_", "-")] = next(iter(pin.specifier)).version
    # open_clip_torch is there for its vocabulary file alone.
    missing = []
    for name in sorted(set(listed) - {"open-clip-torch", "torch"}):
        try:
            needs = distribution(name).requires or []
        except PackageNotFoundError:
            pytest.skip("not running in the environment that install.py makes")
        for need in map(Requirement, needs):
            if need.marker is not None and not need.marker.evaluate({"extra": ""}):
                continue
            if (name, need.name) == ("gradio", "pillow"):
                continue  # it states an upper limit out of caution; the tests of the page draw with ours
            have = listed.get(need.name.lower().replace("_", "-"))
            if have is None or not need.specifier.contains(have, prereleases=True):
                missing.append(f"{name} needs {need}, listed: {have}")
    assert not missing
