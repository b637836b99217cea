"""The page of the embedded host."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI

from extension.hosts.embedded import page_job
from extension.hosts.embedded.engine import Studio
from extension.hosts.embedded.page_form import Form, build_form
from extension.ui import assets, compat
from extension.ui.tab import build_tab

CSS = """
.gradio-container { width: 100% !important; max-width: 1280px !important; margin: 0 auto !important; }
.gradio-container > main { width: 100%; max-width: 100%; }
.athanor-title { min-width: 140px !important; }
.athanor-title h1 { margin: 0; font-size: 1.5rem; }
.athanor-title p { margin: 0; opacity: .75; }
.athanor-insert button { align-self: center; }
.athanor-bar { height: 8px; border-radius: 4px; background: var(--border-color-primary); overflow: hidden; }
.athanor-bar div { height: 100%; background: var(--primary-500); transition: width .2s; }
.athanor-progress p, .athanor-done { margin: 6px 0; opacity: .8; }
.athanor-progress img { display: block; border-radius: 6px; }
.athanor-note, .athanor-problem { margin: 0; padding: 8px 12px 8px 28px; border-radius: 6px; list-style: disc;
  background: var(--background-fill-secondary); border: 1px solid var(--border-color-primary); }
.athanor-problem { border-color: #dc2626; }
"""

TAGS = """
| in the prompt | what it does |
|---|---|
| `(word:1.3)` | gives a word more weight |
| `[word]` | gives it less |
| `<lora:name:0.8>` | uses a trained file at strength 0.8 |
| `<lora:name:1:start=0.5>` | only from the middle of the run on |
| `<lora:name:0@0,1@1>` | growing over the run |
| `<lora:name:1:mask=left>` | only in the left half of the picture |
| `<ti:name:0.8>` | a trained word at strength 0.8; its plain name means full strength |
| `[cat:dog:0.5]` | a cat first, from the middle of the run on a dog |
| `a cat AND a dog` | both at once, each with its own say |

A tag in the negative prompt acts on the negative side only. All tags are explained in docs/tags.md.
"""


WORDS = Path(__file__).with_name("page_words.js")
MAJOR = int(gr.__version__.split(".")[0])
# Older WebUIs' torch goes with an older gradio, which takes the looks of the page elsewhere.
PRIVATE = {"api_visibility": "private"} if MAJOR >= 6 else {"api_name": False}
# Nothing is sent anywhere from here, so there is no button to share.
BUTTONS = {"buttons": ["download", "fullscreen"]} if MAJOR >= 6 else {"show_share_button": False}


def _theme() -> gr.Theme:
    # Fonts by name only: others would be fetched from the network.
    plain = ["system-ui", "-apple-system", "Segoe UI", "sans-serif"]
    return gr.themes.Default(primary_hue="orange", font=plain, font_mono=["ui-monospace", "Consolas", "monospace"])


def _header(studio: Studio) -> tuple[Any, Any]:
    """The title and the choice of the base model; gives the dropdown and the place for sentences."""
    with gr.Row(equal_height=True):
        gr.Markdown("# Athanor\nDraw with what you trained.", elem_classes="athanor-title")
        titles = [path.name if path != studio.model.path else studio.model.title for path in studio.bases()]
        base = gr.Dropdown(
            titles,
            value=studio.model.title,
            label="Base model",
            info=f"The models in {studio.places.models}",
            scale=2,
            min_width=260,
        )
    return base, gr.HTML()


def _results(studio: Studio) -> dict[str, Any]:
    """The right side: buttons, progress, pictures and what is said about them."""
    with gr.Row():
        start = gr.Button("Draw", variant="primary", scale=3)
        stop = gr.Button("Stop", scale=1)
    status = gr.HTML()
    gallery = gr.Gallery(label="Pictures", columns=2, height=460, object_fit="contain", format="png", **BUTTONS)
    notes = gr.HTML()
    strip = gr.Image(
        label="From noise to picture", show_label=False, visible=False, format="png", interactive=False, **BUTTONS
    )
    infotext = gr.Textbox(
        label="Settings of this picture", lines=3, interactive=False, info="Also written into the PNG file"
    )
    stop.click(studio.progress.stop, queue=False, show_progress="hidden")
    return {
        "start": start,
        "outputs": [status, gallery, strip, infotext, notes, gr.State([])],
    }


def _tab(studio: Studio, from_picture: bool) -> Form:
    """One tab: the form on the left, the results on the right."""

    def trained() -> tuple[list[str], list[str]]:
        studio.rescan()
        fitting = [one.name for one in studio.library.embeddings.all() if one.problem(studio.model.widths) is None]
        return studio.library.adapters.names(), fitting

    with gr.Row():
        with gr.Column(scale=6):
            form = build_form(from_picture, studio.model.native_size, trained)
        with gr.Column(scale=5):
            results = _results(studio)
    _status, gallery, strip, infotext, _notes, kept = outputs = results["outputs"]
    go = partial(page_job.generate, studio, form)
    for trigger in (results["start"].click, form.fields["prompt"].submit):
        trigger(go, form.inputs, outputs, show_progress="hidden", concurrency_limit=None, **PRIVATE)
    gallery.select(page_job.select, kept, [infotext, strip], show_progress="hidden", queue=False)
    return form


def _read_tab(forms: dict[str, Form]) -> None:
    """The tab that reads the settings out of a picture."""
    with gr.Row():
        with gr.Column():
            picture = gr.Image(
                label="A picture that was drawn here or in AUTOMATIC1111",
                type="filepath",
                image_mode=None,
                sources=["upload"],
                height=320,
            )
        with gr.Column():
            text = gr.Textbox(label="Its settings", lines=8, info="They can be changed or pasted here before use")
            notes = gr.HTML()
            with gr.Row():
                buttons = {name: gr.Button(f"Use in “{name}”") for name in forms}
    picture.change(page_job.read_settings, picture, [text, notes], show_progress="hidden")
    for name, form in forms.items():
        buttons[name].click(
            partial(page_job.use_settings, form), text, [*form.inputs, notes], show_progress="hidden", queue=False
        )


def build_page(studio: Studio) -> gr.Blocks:
    """The whole page."""
    looks = {} if MAJOR >= 6 else {"theme": _theme(), "css": CSS}
    with gr.Blocks(title="Athanor", analytics_enabled=False, **looks) as page:
        base, said = _header(studio)
        forms = {}
        with gr.Tabs():
            for name, from_picture in (("Text to picture", False), ("Picture to picture", True)):
                with gr.Tab(name, elem_id=f"tab_{'img' if from_picture else 'txt'}2img"):  # as elsewhere
                    forms[name] = _tab(studio, from_picture)
            with gr.Tab("Athanor"):
                build_tab()
            with gr.Tab("Read settings from a picture"):
                _read_tab(forms)
            with gr.Tab("Tags"):
                gr.Markdown(TAGS)
        loaded = base.input(partial(page_job.load_base, studio), base, [base, said], concurrency_limit=None)
        for form in forms.values():
            sides = [form.fields["width"], form.fields["height"]]
            loaded = loaded.then(lambda: studio.model.native_size, None, sides, show_progress="hidden")
    return page


def add_page(app: FastAPI, studio: Studio, language: str = "auto") -> FastAPI:
    """Puts the page at `/` of an application; `language` is the page's, see `assets.head`."""
    looks = {"theme": _theme(), "css": CSS, "footer_links": []} if MAJOR >= 6 else {"show_api": False}
    outputs = [str(studio.places.outputs)]
    head = assets.head(language) + f"<script>{WORDS.read_text(encoding='utf-8')}</script>"
    return compat.mount(app, build_page(studio), head, allowed_paths=outputs, ssr_mode=False, **looks)
