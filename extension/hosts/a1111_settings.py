"""Our settings on AUTOMATIC1111's page."""

from __future__ import annotations

from collections.abc import Callable

SECTION = ("athanor", "Athanor")
SCOPES = {"All pictures, as the WebUI does": "all", "Its own picture": "picture", "Its own AND part": "part"}
MERGED = ("Automatic", "Never")
LABELS = {
    "athanor_lora": "Athanor handles <lora:> tags",
    "athanor_scope": "A tag without for= acts on",
    "athanor_merged": "Merged copies of layers, faster on a GPU",
}
TEXTS = (*LABELS.values(), *SCOPES, *MERGED)
"""What the host's page shows of them; it finds their translations by itself."""


def add_settings(changed: Callable[[], None]) -> None:
    """Adds our section; `changed` runs when the person gives tags to us or takes them back."""
    import gradio as gr
    from modules import shared

    def add(key: str, default: object, component: object = None, arguments: object = None) -> None:
        info = shared.OptionInfo(default, LABELS[key], component, arguments, section=SECTION)
        shared.opts.add_option(key, info)

    add("athanor_lora", True)
    add("athanor_scope", next(iter(SCOPES)), gr.Radio, {"choices": list(SCOPES)})
    add("athanor_merged", MERGED[0], gr.Radio, {"choices": list(MERGED)})
    shared.opts.onchange("athanor_lora", changed, call=False)
