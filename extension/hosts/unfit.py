"""WebUIs that Athanor cannot work in: its tab says so in a sentence, and everything else is left alone.

Any WebUI that hands out AUTOMATIC1111's callbacks comes here when no adapter of ours takes it, and any at all when its
adapter cannot start (a fork that lacks what the adapter needs, an older version).
"""

from __future__ import annotations

import importlib.util
from html import escape
from pathlib import Path
from typing import Any

UNKNOWN = "Athanor does not know this WebUI, so it does nothing here."
SD_NEXT = (
    "Athanor does not work in SD.Next yet, so it does nothing here. "
    "It trains without a WebUI too (python install.py serve), and the files that it makes are ordinary ones."
)
SENTENCES = (UNKNOWN, SD_NEXT)
TAB_ID = "athanor_page"
_ROOT = Path(__file__).resolve().parents[2]


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def is_sd_next() -> bool:
    """Whether this process is SD.Next, which keeps AUTOMATIC1111's names over a backend of another kind."""
    return _is_there("modules.processing_diffusers")


def detect() -> bool:
    """Whether this process is a WebUI in which a tab can be made at all."""
    return _is_there("modules.script_callbacks")


class Unfit:
    """A WebUI that we cannot work in."""

    name = "another WebUI"

    def register(self) -> None:
        """Has the tab say so."""
        refuse(SD_NEXT if is_sd_next() else UNKNOWN)


HOST = Unfit


def failed(error: Exception) -> str:
    """What is said where the adapter for a WebUI could not start."""
    return (
        f"Athanor could not start in this WebUI, so it does nothing here ({type(error).__name__}: {error}). It is made "
        "for AUTOMATIC1111 1.10, Forge and reForge; the WebUI's console says more."
    )


def refuse(sentence: str) -> None:
    """Takes back every callback of ours, and registers a tab that says why."""
    print(sentence)
    try:
        from modules import script_callbacks
    except ImportError:
        return
    for callbacks in script_callbacks.callback_map.values():
        callbacks[:] = [one for one in callbacks if not _is_ours(one)]
    script_callbacks.on_ui_tabs(lambda: _tab(sentence))


def _is_ours(callback: Any) -> bool:
    return Path(str(getattr(callback, "script", ""))).is_relative_to(_ROOT)


def _tab(sentence: str) -> list[tuple[Any, str, str]]:
    import gradio as gr

    with gr.Blocks(analytics_enabled=False) as page:
        gr.HTML(f'<p id="athanor-refusal" role="alert">{escape(sentence)}</p>')
    return [(page, "Athanor", TAB_ID)]
