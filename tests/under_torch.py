"""The trainers' tests under the torch of a WebUI, in an environment that install.py itself makes for it.

    python tests/under_torch.py PYTHON [PYTHON …] [--tests "tests/test_training_run.py -k resume"]

PYTHON is a WebUI's (with its torch). As at that WebUI's start the environment is made with the versions that belong to
its Python and torch; pytest is put into a folder of its own beside it, so that the environment is tested as it is.
Outside the checks, because it needs such Pythons and, the first time, a package index. What was seen with which
versions stands in docs/install.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TESTS = (
    "tests/test_training_run.py tests/test_textual_inversion.py tests/test_dreambooth.py tests/test_hypernetwork.py "
    "tests/test_adapter_kinds.py tests/test_training_inputs.py tests/test_bases_names.py tests/test_bases_text.py"
)
_PLACE = "import sys; sys.path.insert(0, sys.argv[1]); from extension.jobs import places; print(places.known().status)"


def made_for(python: str) -> dict:
    """The status of the environment that install.py makes for a Python; made where it is missing."""
    subprocess.run([python, str(ROOT / "install.py"), "setup"], check=True)
    place = subprocess.run([python, "-c", _PLACE, str(ROOT)], capture_output=True, text=True, check=True)
    return json.loads(Path(place.stdout.strip()).read_text(encoding="utf-8"))


def run_tests(status: dict, tests: list[str]) -> int:
    """Runs tests in an environment; pytest's exit status."""
    command = status["interpreter"]
    with tempfile.TemporaryDirectory() as folder:
        lists = ["-r", str(ROOT / "requirements" / "tests.txt")]
        pip = [*command, "-m", "pip", "install", "-q", "--no-deps", "--target", folder, *lists]
        subprocess.run(pip, check=True)
        kept = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
        variables = {**kept, "PYTHONPATH": os.pathsep.join([folder, str(ROOT)]), "HF_HUB_OFFLINE": "1"}
        return subprocess.run([*command, "-m", "pytest", "-q", *tests], cwd=ROOT, env=variables).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pythons", nargs="+", metavar="PYTHON")
    parser.add_argument("--tests", default=TESTS)
    options = parser.parse_args()
    failed = 0
    for python in options.pythons:
        status = made_for(python)
        print(f"== {python}: {status['versions']}", flush=True)
        failed |= run_tests(status, shlex.split(options.tests))
    return failed


if __name__ == "__main__":
    sys.exit(main())
