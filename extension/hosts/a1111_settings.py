"""Our settings on AUTOMATIC1111's page."""

from __future__ import annotations

from collections.abc import Callable

SECTION = ("athanor", "Athanor")
SCOPES = {"All pictures, as the WebUI does": "all", "Its own picture": "picture", "Its own AND part": "part"}
MERGED = ("Automatic", "Never")


def add_settings(changed: Callable[[], None]) -> None:
    """Adds our section; `changed` runs when the person gives tags to us or takes them back."""
    import gradio as gr
    from modules import shared

    def add(key: str, default: object, label: str, component: object = None, arguments: object = None) -> None:
        info = shared.OptionInfo(default, label, component, arguments, section=SECTION)
        shared.opts.add_option(key, info)

    add("athanor_lora", True, "Athanor handles <lora:> tags")
    add("athanor_scope", next(iter(SCOPES)), "A tag without for= acts on", gr.Radio, {"choices": list(SCOPES)})
    add("athanor_merged", MERGED[0], "Merged copies of layers, faster on a GPU", gr.Radio, {"choices": list(MERGED)})
    shared.opts.onchange("athanor_lora", changed, call=False)
