"""Registering callbacks with AUTOMATIC1111 and its relatives."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from modules import script_callbacks


def register(file: str, **callbacks: Callable[..., Any]) -> None:
    """Registers callbacks by their kinds, as the host's `on_KIND` functions do.

    Those find out which file calls by looking at every module there is, a tenth of a second each time; the function
    that they call takes the file from whoever knows it.

    Args:
        file: whose callbacks they are.
    """
    add = getattr(script_callbacks, "add_callback", None)
    takes_file = add is not None and "filename" in inspect.signature(add).parameters
    for kind, callback in callbacks.items():
        if takes_file:
            add(script_callbacks.callback_map[f"callbacks_{kind}"], callback, category=kind, filename=file)
        else:
            getattr(script_callbacks, f"on_{kind}")(callback)
