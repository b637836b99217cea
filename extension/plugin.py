"""Wires the extension to the WebUI that loaded it."""

from __future__ import annotations

import importlib
import importlib.util
import traceback
from functools import cache

HOSTS = ("forge", "reforge", "a1111", "unfit")
"""Modules of `extension.hosts`, each with `detect()` and its class as `HOST`; the more special ones first."""


def _host_module(name: str):
    # Relative to this package, whose name inside a host is another one.
    return importlib.import_module(f"{__package__}.hosts.{name}")


@cache
def _host(name: str):
    """The host of this process; the same one after "Reload UI"."""
    return _host_module(name).HOST()


def start() -> type | None:
    """Registers the callbacks with the WebUI that this process is.

    Returns:
        The class that the host makes its script objects from, None where nothing of ours fits the host.
    """
    name = next((name for name in HOSTS if _host_module(name).detect()), None)
    if name is None:
        print("Athanor does not know this WebUI, so it does nothing here.")
        return None
    try:
        return _host(name).register()
    except Exception as error:
        traceback.print_exc()
        unfit = _host_module("unfit")
        unfit.refuse(unfit.failed(error))
        return None
