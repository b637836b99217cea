"""`install.py link` and `doctor`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml

from extension.jobs import places
from installer import doctor, host, link
from installer.lock import only_one
from installer.problems import SetupError


@pytest.fixture
def webui(tmp_path) -> Path:
    folder = tmp_path / "stable diffusion 中文"
    for name in ("modules", "models/Stable-diffusion", "extensions"):
        (folder / name).mkdir(parents=True)
    for name in ("webui.py", "launch.py"):
        (folder / name).write_text("")
    return folder


@pytest.fixture
def project(tmp_path) -> Path:
    """Something shaped like this repository, with a base model."""
    folder = tmp_path / "athanor"
    encoder = folder / "assets" / "base" / "text_encoder"
    encoder.mkdir(parents=True)
    (encoder / "config.json").write_text('{"model_type": "clip_text_model"}')
    (folder / "assets" / "base" / "athanor-base.safetensors").write_bytes(b"weights")
    (folder / "assets" / "base" / "athanor-base.yaml").write_text("version: ATHANOR_TEXT_ENCODER\n")
    (folder / "install.py").write_text("")
    (folder / "scripts").mkdir()
    (folder / "scripts" / "athanor.py").write_text("")
    return folder


@pytest.fixture
def vocabulary(monkeypatch):
    """The vocabulary is written by the interpreter that runs the tests, from this checkout."""
    monkeypatch.setattr(link.Environment, "ensure", lambda self: Path(sys.executable))
    monkeypatch.chdir(Path(__file__).resolve().parent.parent)


def test_links_and_says_when_it_is_linked(webui, project, capsys):
    assert link.link(webui, root=project) == 0
    target = webui / "extensions" / "athanor"
    assert target.resolve() == project.resolve() and (target / "install.py").exists()
    assert link.link(webui, root=project) == 0
    assert "already this folder" in capsys.readouterr().out


def test_copies_where_no_link_can_be_made(webui, project, monkeypatch, capsys):
    def refuse(*_arguments, **_named):
        raise OSError("a required privilege is not held by the client")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    (project / ".venv").mkdir()
    link.link(webui, root=project)
    target = webui / "extensions" / "athanor"
    assert (target / "install.py").exists() and not target.is_symlink() and not (target / ".venv").exists()
    assert "copied" in capsys.readouterr().out


def test_something_else_of_that_name_is_left_alone(webui, project):
    (webui / "extensions" / "athanor").mkdir()
    (webui / "extensions" / "athanor" / "mine").write_text("mine")
    with pytest.raises(SetupError, match="something else"):
        link.link(webui, root=project)
    assert (webui / "extensions" / "athanor" / "mine").read_text() == "mine"


def test_what_is_not_a_webui_is_named(tmp_path, webui, project):
    with pytest.raises(SetupError, match="does not exist"):
        link.link(tmp_path / "nowhere", root=project)
    with pytest.raises(SetupError, match=r"not the folder of a Stable Diffusion WebUI"):
        link.link(tmp_path, root=project)
    outer = tmp_path / "package"
    outer.mkdir()
    webui.rename(outer / "webui")
    with pytest.raises(SetupError, match="Did you mean"):
        link.link(outer, root=project)


def test_the_base_comes_with_its_settings_and_vocabulary(webui, project, vocabulary):
    link.link(webui, with_base=True, root=project)
    folder = webui / "models" / "Stable-diffusion"
    encoder = folder / "athanor-base-text-encoder"
    assert (folder / "athanor-base.safetensors").read_bytes() == b"weights"
    settings = yaml.safe_load((folder / "athanor-base.yaml").read_text(encoding="utf-8"))
    assert settings == {"version": encoder.as_posix()}
    assert json.loads((encoder / "vocab.json").read_text(encoding="utf-8"))["cat</w>"] == 2368
    assert (encoder / "merges.txt").exists() and (encoder / "config.json").exists()
    assert link.link(webui, with_base=True, root=project) == 0


def test_another_file_of_the_same_name_is_not_overwritten(webui, project, vocabulary):
    mine = webui / "models" / "Stable-diffusion" / "athanor-base.safetensors"
    mine.write_bytes(b"my own")
    with pytest.raises(SetupError, match="other contents"):
        link.link(webui, with_base=True, root=project)
    assert mine.read_bytes() == b"my own"


def test_a_missing_base_is_named(webui, project):
    (project / "assets" / "base" / "athanor-base.safetensors").unlink()
    with pytest.raises(SetupError, match="is missing"):
        link.link(webui, with_base=True, root=project)


def test_doctor_says_what_is_here_and_what_to_do(webui, project):
    (project / "pyproject.toml").write_text('version = "0.1.0"\n')
    text = "\n".join(doctor.report(webui, root=project))
    assert "Athanor 0.1.0" in text and "not made yet" in text
    assert f"write access: {project}: yes" in text
    assert 'To do: put Athanor into the WebUI with `python install.py link "' in text
    link.link(webui, root=project)
    text = "\n".join(doctor.report(webui, root=project))
    assert "Athanor: this folder" in text and "name the Python that runs the WebUI" in text
    (webui / "extensions" / "athanor").rename(webui / "extensions" / "Athanor-main")  # as an archive unpacks it
    text = "\n".join(doctor.report(webui, root=project))
    assert "Athanor: this folder" in text and "install.py link" not in text


def test_doctor_examines_a_webui_its_python_and_the_trainers_environment(webui, project, tmp_path):
    """The environment is this process's own, said to be the WebUI's: its packages have the wrong versions there."""
    (project / "pyproject.toml").write_text('version = "0.1.0"\n')
    (project / "requirements").mkdir()
    (project / "requirements" / "some.txt").write_text("packaging==1.0\npytest==0.1\nnot-there==1.0\n")
    (webui / "modules_forge").mkdir()
    (webui / "backend").mkdir()
    (webui / "modules_forge" / "forge_version.py").write_text("version = '2.0.1v1.10.1'\n")
    link.link(webui, root=project)
    place = places.Place(project / ".venvs" / places.key_of())
    place.folder.mkdir(parents=True)
    (place.folder / "athanor-setup.json").write_text(json.dumps({"ready": True, "lists": ["some.txt"]}))
    place.status.write_text(json.dumps({"state": "ready", "interpreter": [sys.executable]}))
    text = "\n".join(doctor.report(webui, root=project, python=Path(sys.executable)))
    assert "WebUI: Forge 2.0.1v1.10.1" in text and f"({sys.executable})" in text
    assert f"trainers' environment: ready, {place.folder}" in text
    assert "To do: not-there is missing. Press Repair" in text
    assert "but 1.0 is needed" in text and "but 0.1 is needed" in text

    (webui / "config.json").write_text('{"disabled_extensions": ["athanor"]}')
    place.status.write_text(json.dumps({"state": "failed", "sentence": "The disk is full.", "began": 1.0}))
    text = "\n".join(doctor.report(webui, root=project, python=Path(sys.executable)))
    assert "switched Athanor off" in text and "The disk is full." in text and str(place.log) in text


def test_sd_next_is_refused_in_a_sentence(webui, project, monkeypatch, capsys):
    """By `link`, by `doctor`, and at its start, where no environment is made for it."""
    (project / "pyproject.toml").write_text('version = "0.1.0"\n')
    (webui / "installer.py").write_text("")
    (webui / "modules" / "processing_diffusers.py").write_text("")
    with pytest.raises(SetupError, match=r"SD\.Next"):
        link.link(webui, root=project)
    assert not (webui / "extensions" / "athanor").exists()
    text = "\n".join(doctor.report(webui, root=project))
    assert "WebUI: SD.Next" in text and f"To do: {link.SD_NEXT}" in text
    ours = webui / "extensions" / "athanor"
    ours.mkdir()
    monkeypatch.chdir(ours)  # as SD.Next does
    monkeypatch.setattr(sys, "argv", [str(ours / "install.py")])
    monkeypatch.setattr(host, "start_build", None)
    assert host.at_start() == 0
    assert capsys.readouterr().out == f"{link.SD_NEXT}\n"


def test_doctor_does_not_look_into_an_environment_that_is_not_whole(project):
    (project / "pyproject.toml").write_text('version = "0.1.0"\n')
    (project / "requirements").mkdir()
    for name in ("torch", "torch-needs", "trainers", "trainers-torch21"):
        (project / "requirements" / f"{name}.txt").write_text("")
    environment = doctor.Environment(project)
    environment.python.parent.mkdir(parents=True)
    environment.python.write_text("no interpreter yet")
    said = doctor.report(root=project)
    assert "To do: the environment is outdated or unfinished; `python install.py demo` mends it." in said
    assert sum(line.startswith("To do:") for line in said) == 1
    with only_one(environment.lock_path):
        assert doctor.report(root=project)[-1] == "No problem found."


def test_doctor_takes_any_folder(tmp_path, project):
    (project / "pyproject.toml").write_text("")
    assert "To do: " in "\n".join(doctor.report(tmp_path / "nowhere", root=project))


def test_memory_is_read():
    total, available = doctor.memory()
    assert total >= available >= 0
    if sys.platform.startswith("linux"):
        assert available > 0
