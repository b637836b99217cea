"""Wires the extension to the WebUI that loaded it."""

from __future__ import annotations

import importlib
import importlib.util

HOSTS = ("forge", "reforge", "a1111")
"""Modules of `extension.hosts`, each with `detect()` and `make()`; the more special ones first."""


def _host_modules():
    for name in HOSTS:
        # Relative to this package, whose name inside a host is another one.
        module = f"{__package__}.hosts.{name}"
        if importlib.util.find_spec(module) is not None:
            yield importlib.import_module(module)


def start() -> type | None:
    """Registers the callbacks with the WebUI that this process is.

    Returns:
        The class that the host makes its script objects from, None where nothing of ours fits the host.
    """
    for module in _host_modules():
        if module.detect():
            return module.make().register()
    print("Athanor does not know this WebUI, so it does nothing here.")
    return None
