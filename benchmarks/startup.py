"""What Athanor adds to the start of an AUTOMATIC1111 or a Forge, beside the same WebUI without it.

    python benchmarks/startup.py WEBUI_DIR --python PY [--rounds 3] [--flags "--use-cpu all --skip-torch-cuda-test"]

The extension must be among the WebUI's extensions, and the trainers' environment made (see the tab). Each round starts
the WebUI once with its extensions and once with none (`--disable-extra-extensions`), so a busy machine is busy for
both; other extensions should be switched off. Seconds come from the WebUI's own clock (`/internal/profile-startup`):

  installer      `install.py`, at the WebUI's start
  scripts        importing `scripts/athanor.py` with all that it needs
  tab            making the page: the difference between the two starts
  app            adding the routes, starting the queue
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
import urllib.request
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "real_host"))

from installed import Started  # noqa: E402

OURS = ("athanor", "a1111_tab", "a1111_wiring")
"""What the WebUI's clock calls us: the extension and its script, and the files that registered a callback."""
FLAGS = "--use-cpu all --no-half --skip-torch-cuda-test --no-download-sd-model --skip-load-model-at-start"


def seconds_of_a_start(python: str, webui: Path, flags: list[str]) -> dict[str, float]:
    """The WebUI's own records of one start, by what was done."""
    with tempfile.TemporaryDirectory() as folder:
        started = Started(python, webui, Path(folder) / "host.log", flags)
        try:
            started.wait()
            with urllib.request.urlopen(f"{started.address}/internal/profile-startup", timeout=60) as answer:
                return json.load(answer)["records"]
        finally:
            started.stop()


def ours(records: dict[str, float]) -> dict[str, float]:
    """The records that bear our name, by the step they belong to."""
    steps = {"run extensions installers": "installer", "load scripts": "scripts", "app_started_callback": "app"}
    found = dict.fromkeys(steps.values(), 0.0)
    for name, seconds in records.items():
        *above, last = name.split("/")
        if above and above[-1] in steps and Path(last).stem in OURS:
            found[steps[above[-1]]] += seconds
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures what Athanor adds to a WebUI's start.")
    parser.add_argument("webui", type=Path)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--flags", default=FLAGS)
    options = parser.parse_args()
    flags, rows = shlex.split(options.flags), []
    for number in range(options.rounds):
        turns = [False, True] if number % 2 else [True, False]
        records = {
            with_ours: seconds_of_a_start(
                options.python, options.webui.absolute(), flags + ["--disable-extra-extensions"] * (not with_ours)
            )
            for with_ours in turns
        }
        page = {with_ours: records[with_ours].get("create ui", 0.0) for with_ours in turns}
        rows.append({**ours(records[True]), "tab": page[True] - page[False]})
        print(json.dumps({name: round(seconds, 3) for name, seconds in rows[-1].items()}), flush=True)
    print("medians:", json.dumps({name: round(median(row[name] for row in rows), 3) for name in rows[0]}))


if __name__ == "__main__":
    main()
