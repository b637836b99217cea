"""A copy of the installer alone, stand-ins for every package that it installs, and Pythons to run it with."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "requirements"
SHARED = ("__init__", "bootstrap", "build", "copies", "files", "places", "processes")
"""What the installer takes from the extension."""
MODULE_NAMES = {"pillow": "PIL", "pyyaml": "yaml"}


def make_wheel(folder: Path, name: str, version: str) -> None:
    """A wheel of one module that knows its version."""
    module = MODULE_NAMES.get(name.lower(), name.replace("-", "_"))
    info = f"{name.replace('-', '_')}-{version}.dist-info"
    extra = (
        "class ones:\n    def __init__(self, n): pass\n    def sum(self): return self\n    def item(self): return 0\n"
    )
    files = {
        f"{module}/__init__.py": f"__version__ = {version!r}\n{extra}",
        f"{module}/version.py": f"__version__ = {version!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(
        f"{path},sha256={base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b'=').decode()},{len(text)}\n"
        for path, text in files.items()
    )
    with zipfile.ZipFile(folder / f"{name.replace('-', '_')}-{version}-py3-none-any.whl", "w") as wheel:
        for path, text in {**files, f"{info}/RECORD": record + f"{info}/RECORD,,\n"}.items():
            wheel.writestr(path, text)


@pytest.fixture(scope="module")
def wheels(tmp_path_factory) -> Path:
    """A folder with a stand-in wheel for every pin."""
    folder = tmp_path_factory.mktemp("wheels")
    pins = {
        pin for file in REQUIREMENTS.glob("*.txt") for pin in re.findall(r"^([\w-]+)==([\w.]+)", file.read_text(), re.M)
    }
    for name, version in pins:
        make_wheel(folder, name, version)
    make_wheel(folder, "torch", "2.3.1")
    return folder


def copy_installer(target: Path) -> Path:
    """The installer alone, with a demo that says where its packages come from."""
    shutil.copytree(ROOT / "installer", target / "installer", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(REQUIREMENTS, target / "requirements")
    for name in ("install.py", "pyproject.toml"):
        shutil.copy(ROOT / name, target / name)
    for name in ("__init__", "loading", *(f"jobs/{one}" for one in SHARED)):
        (target / "extension" / "jobs").mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "extension" / f"{name}.py", target / "extension" / f"{name}.py")
    (target / "trainers").mkdir()
    (target / "trainers" / "__init__.py").write_text("")
    (target / "trainers" / "demo.py").write_text(
        "import json, torch, transformers\n"
        "print(json.dumps([m.__version__ for m in (torch, transformers)] + [torch.__file__, transformers.__file__]))\n"
    )
    return target


@pytest.fixture
def here(tmp_path) -> Path:
    folder = tmp_path / "it is 中文"
    folder.mkdir()
    return copy_installer(folder)


@pytest.fixture
def outside(wheels, tmp_path) -> dict[str, str]:
    """Environment variables of a machine whose only index is the folder of stand-ins."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    # A proxy that refuses at once stands for a network that is not there.
    return {
        **kept,
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(wheels),
        "https_proxy": "http://127.0.0.1:9",
        "HTTPS_PROXY": "http://127.0.0.1:9",
        "PYTHONPATH": str(tmp_path / "somewhere else"),
        "PATH": str(tmp_path),
    }


def run_install(
    folder: Path, *words: str, env: dict[str, str], python: str | Path | None = None, cwd: Path | None = None
):
    return subprocess.run(
        [str(python or base_python()), str(folder / "install.py"), *words],
        env=env, cwd=cwd or folder, capture_output=True, text=True, encoding="utf-8", stdin=subprocess.DEVNULL,
    )  # fmt: skip


def base_python() -> str:
    """The interpreter under the environment that runs these tests: it has no torch of its own."""
    return getattr(sys, "_base_executable", None) or sys.executable


def python_with(wheels: Path, folder: Path, requirement: str, env: dict[str, str]) -> Path:
    """An interpreter that can import one of the stand-ins."""
    subprocess.run([base_python(), "-m", "venv", str(folder)], check=True)
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    subprocess.run([str(python), "-m", "pip", "install", "-q", requirement], check=True, env=env)
    return python


def listing(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and "__pycache__" not in path.parts)
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
