"""Runs a real WebUI that is installed elsewhere: `pytest tests/real_host --webui DIR --python PY`.

Two servers are started on the same folder, one with its extensions and one with only its own, so that their pictures
can be compared. Without --webui all of these tests are skipped.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent.parent)]

from a1111_fixtures import (  # noqa: E402, F401
    a1111_folders,
    adapters,
    alone,
    neighbours,
    ours,
    servers,
    state,
)
from host_fixtures import hosts  # noqa: E402, F401
from page_fixtures import page, page_server, page_settings, shot  # noqa: E402, F401
from patcher_fixtures import (  # noqa: E402, F401
    patcher_adapters,
    patcher_folders,
    patcher_servers,
    patcher_state,
)


@dataclass(frozen=True)
class Device:
    """Where a WebUI draws and its trainers train: "cpu" or "cuda", and the variables that its process needs for that.
    A card needs trainers over the WebUI's own torch: the Python that ATHANOR_PYTHON names."""

    name: str = "cpu"
    variables: dict[str, str] = field(default_factory=dict)

    def flags(self, given: Iterable[str]) -> list[str]:
        """A WebUI's flags, without those that keep it off the card."""
        kept = list(given)
        if self.name != "cpu":
            for one in ("--use-cpu", "all", "--always-cpu"):
                kept = [flag for flag in kept if flag != one]
        return kept


def pytest_addoption(parser):
    group = parser.getgroup("real WebUI")
    group.addoption("--webui", help="folder of an installed WebUI to run the tests in tests/real_host against")
    group.addoption("--pictures", help="folder that pictures of the page are written to")
    group.addoption("--files", help="folder that make_files.py made for the test checkpoint, to compare too")
    group.addoption("--device", default="cpu", choices=["cpu", "cuda", "stand-in"], help="for tests that say so")
    group.addoption("--python", help="the Python that runs that WebUI (that of this process)")


def _option(request, name):
    return request.config.getoption(name, None)


@pytest.fixture(scope="session")
def webui(request) -> Path:
    """The WebUI's folder, with this extension linked into it; its settings are put back at the end."""
    folder = _option(request, "--webui")
    if not folder:
        pytest.skip("needs an installed WebUI: pytest tests/real_host --webui DIR --python PY")
    folder = Path(folder).expanduser().absolute()
    from installer.link import check_webui, link

    check_webui(folder)
    present = os.path.lexists(folder / "extensions" / "athanor")
    settings = folder / "config.json"
    before = settings.read_bytes() if settings.exists() else None
    link(folder, with_base=not (folder / "modules_forge").exists())
    yield folder
    if before is not None:
        settings.write_bytes(before)
    else:
        settings.unlink(missing_ok=True)
    if not present:
        (folder / "extensions" / "athanor").unlink()


@pytest.fixture(scope="session")
def given_files(request) -> Path | None:
    """The folder behind --files."""
    folder = _option(request, "--files")
    return Path(folder) if folder else None


@pytest.fixture(scope="session")
def host_python(request) -> str:
    """The Python that runs the WebUI."""
    return _option(request, "--python") or sys.executable


@pytest.fixture(scope="session")
def device(request, tmp_path_factory) -> Device:
    """What --device says."""
    name = _option(request, "--device") or "cpu"
    if name != "stand-in":
        return Device(name)
    import stand_in_card

    if stand_in_card.problem():
        pytest.skip(stand_in_card.problem())
    folder = tmp_path_factory.mktemp("card")
    python = stand_in_card.wrapped(os.environ.get("ATHANOR_PYTHON") or sys.executable, folder)
    return Device("cuda", {**stand_in_card.build(folder), "ATHANOR_PYTHON": str(python)})


@pytest.fixture(scope="session")
def kind_of_webui(webui) -> str:
    """ "forge" for Forge and reForge, else "a1111"."""
    return "forge" if (webui / "modules_forge").exists() else "a1111"


@pytest.fixture(scope="session")
def which_webui(webui, kind_of_webui) -> str:
    """ "a1111", "forge" or "reforge"."""
    return "reforge" if kind_of_webui == "forge" and not (webui / "backend").is_dir() else kind_of_webui
