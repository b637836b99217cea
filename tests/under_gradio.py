"""The page's tests under the gradio of older WebUIs, in folders that are put before this environment's packages.

    python tests/under_gradio.py [--folder DIR] [3.41.2] [4.40.0]

A1111 and reForge have gradio 3.41.2, Forge has 4.40.0. Outside the checks, because each takes some 400 MB and minutes
to install; DIR keeps them for the next time. What splits words into tokens does not work beside those packages, so the
tests of it are left out; the tests against real WebUIs have them.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# With what the WebUIs pin beside it: newer ones lack names that these import.
PINS = {
    "3.41.2": ("fastapi==0.94.0", "pydantic==1.10.13", "starlette==0.26.1", "httpx==0.24.1", "jinja2==3.1.2"),
    "4.40.0": ("fastapi==0.104.1", "pydantic==2.8.2", "httpx==0.27.2"),
}
SHARED = "huggingface-hub==0.26.2"


def installed(version: str, folder: Path) -> Path:
    """A folder with this gradio."""
    place = folder / f"gradio-{version}"
    if not (place / "gradio").is_dir():
        command = [sys.executable, "-m", "pip", "install", "-q", "--target", str(place), f"gradio=={version}"]
        subprocess.run([*command, *PINS[version], SHARED], check=True)
    return place


def run_tests(place: Path) -> int:
    """pytest's exit status."""
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join([str(place), str(ROOT)])}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "tests/test_ui_page.py",
        "-k",
        "not tokens",
    ]
    return subprocess.run(command, cwd=ROOT, env=variables).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("versions", nargs="*", default=list(PINS), metavar="VERSION", help=", ".join(PINS))
    parser.add_argument("--folder", type=Path, help="where they are kept (a temporary folder)")
    options = parser.parse_args()
    unknown = [version for version in options.versions if version not in PINS]
    if unknown:
        parser.error(f"{unknown[0]} is not one of {', '.join(PINS)}")
    failed = 0
    with tempfile.TemporaryDirectory() as temporary:
        for version in options.versions:
            print(f"== gradio {version}", flush=True)
            failed |= run_tests(installed(version, options.folder or Path(temporary)))
    return failed


if __name__ == "__main__":
    sys.exit(main())
