"""The one file that a WebUI loads: it hands the host's callbacks to `extension.plugin` and does nothing else."""

import importlib.util
import os
import sys
from pathlib import Path


def _loading():
    """`extension/loading.py` by its path; kept over "Reload UI", when this file runs again."""
    if "athanor_loading" not in sys.modules:
        path = Path(__file__).resolve().parent.parent / "extension" / "loading.py"
        spec = importlib.util.spec_from_file_location("athanor_loading", path)
        sys.modules["athanor_loading"] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules["athanor_loading"]


def _start():
    """The host's script class, from the copy of us that comes first; a second one among the extensions does nothing."""
    loading, here = _loading(), os.path.abspath(__file__)
    first = loading.__dict__.setdefault("started_as", here)
    if first == here:
        return loading.load("extension.plugin").start()
    print(f"Athanor is loaded from {first}, so the second copy, {here}, does nothing; delete one of them.")
    return None


# The host looks for a class of its own kind among the names of this module.
AthanorScript = _start()
