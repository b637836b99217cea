"""What happens behind the page's buttons."""

from __future__ import annotations

import base64
import html
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import gradio as gr
from PIL import Image

from extension.hosts.embedded.engine import Drawn, Studio
from extension.hosts.embedded.infotext import from_picture, read_infotext
from extension.hosts.embedded.page_form import Form
from extension.hosts.embedded.pasted import fields_of
from extension.hosts.embedded.progress import Progress
from trainers.errors import InputError

TICK = 0.25
_SHOWN_WIDTH = 256


@dataclass
class Outcome:
    """What the thread that draws left behind: a result or sentences about what was wrong."""

    drawn: Drawn | None = None
    problems: Sequence[str] = ()


def sentences(lines: Sequence[str], kind: str = "note") -> str:
    """Sentences as HTML; what a person typed into a prompt is shown, never interpreted."""
    items = "".join(f"<li>{html.escape(line)}</li>" for line in dict.fromkeys(lines))
    return f'<ul class="athanor-{kind}">{items}</ul>' if items else ""


def _data_url(picture: Image.Image) -> str:
    out = BytesIO()
    picture.save(out, format="PNG")
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode("ascii")


def bar(progress: Progress) -> str:
    """The progress of the job as HTML: a bar, a sentence and the newest preview."""
    percent = round(progress.fraction * 100)
    left = progress.seconds_left
    words = [f"Step {progress.step} of {progress.steps}" if progress.steps else "Starting"]
    if progress.job_count > 1:
        words.append(f"pass {progress.job_no + 1} of {progress.job_count}")
    if left >= 1:
        words.append(f"about {left:.0f} s left")
    said = ", ".join(f"<span>{each}</span>" for each in words)  # each may be said in another language
    picture = progress.picture
    shown = f'<img alt="preview" src="{_data_url(picture)}" width="{_SHOWN_WIDTH}">' if picture else ""
    return (
        f'<div class="athanor-progress"><div class="athanor-bar"><div style="width:{percent}%"></div></div>'
        f"<p>{said}</p>{shown}</div>"
    )


def _work(studio: Studio, form: Form, values: Sequence[Any], outcome: Outcome) -> None:
    try:
        kind = "img2img" if form.from_picture else "txt2img"
        outcome.drawn = studio.draw(form.request(values), kind)
    except InputError as problem:
        outcome.problems = problem.problems
    except Exception as error:
        traceback.print_exc()
        outcome.problems = [
            f"Something went wrong inside ({type(error).__name__}: {error}); the details are on the console."
        ]


def _finished(outcome: Outcome) -> tuple[Any, ...]:
    """(status, gallery, strip, infotext, notes, kept) when the thread is done."""
    drawn = outcome.drawn
    if drawn is None:
        return (
            "",
            gr.update(visible=True),
            gr.update(),
            gr.update(),
            sentences(outcome.problems, "problem"),
            gr.update(),
        )
    kept = [{"infotext": one.infotext, "strip": one.strip} for one in drawn.pictures]
    first = kept[0] if kept else {"infotext": "", "strip": None}
    lines = [*drawn.reports, *(["Stopped; what was there by then is shown."] if drawn.stopped else [])]
    counted = "1 picture" if len(kept) == 1 else f"{len(kept)} pictures"
    done = f'<p class="athanor-done"><span>{counted}</span>, <span>{drawn.seconds:.1f} s</span></p>'
    paths = [str(one.path) for one in drawn.pictures]
    return (
        done,
        gr.update(value=paths, visible=True, selected_index=0 if paths else None),
        gr.update(value=first["strip"], visible=first["strip"] is not None),
        first["infotext"],
        sentences(lines),
        kept,
    )


def generate(studio: Studio, form: Form, *values: Any) -> Iterator[tuple[Any, ...]]:
    """Draws in a thread of its own and shows how far it is; the job goes on when the page is closed."""
    outcome = Outcome()
    thread = threading.Thread(target=_work, args=(studio, form, values, outcome), daemon=True)
    thread.start()
    still = (gr.update(),) * 4
    began = time.monotonic()
    while thread.is_alive():
        thread.join(TICK)
        if thread.is_alive() and time.monotonic() - began > TICK:
            yield (bar(studio.progress), gr.update(visible=studio.progress.picture is None), *still)
    yield _finished(outcome)


def select(kept: list[dict[str, Any]], event: gr.SelectData) -> tuple[Any, Any]:
    """(infotext, strip) of the picture that was clicked."""
    number = event.index if isinstance(event.index, int) else 0
    if not 0 <= number < len(kept):
        return gr.update(), gr.update()
    return kept[number]["infotext"], gr.update(value=kept[number]["strip"], visible=kept[number]["strip"] is not None)


def read_settings(path: str | None) -> tuple[str, str]:
    """(infotext, sentence) of a picture that was dropped in."""
    if not path:
        return "", ""
    try:
        with Image.open(path) as picture:
            text, _ = from_picture(picture)
    except (OSError, SyntaxError, Image.DecompressionBombError):
        return "", sentences(["This is not a picture that can be read."], "problem")
    if not text:
        return "", sentences(["No settings are written in this picture."])
    return text, ""


def use_settings(form: Form, text: str) -> list[Any]:
    """Puts an infotext's settings into a form; the last value is a sentence about what was not understood."""
    if not text.strip():
        return [*form.updates({}), sentences(["There are no settings to use."], "problem")]
    fields, unread = fields_of(read_infotext(text))
    known = {name: value for name, value in fields.items() if name in form.fields}
    notes = [f"{name} could not be read and was left as it is." for name in unread]
    return [*form.updates(known), sentences(notes or ["The settings are in the form."])]


def load_base(studio: Studio, title: str) -> tuple[Any, str]:
    """Loads another base model; (the dropdown, a sentence)."""
    try:
        studio.load(studio.find_base(title))
    except InputError as problem:
        return gr.update(value=studio.model.title), sentences(problem.problems, "problem")
    width, height = studio.model.native_size
    return gr.update(value=studio.model.title), sentences(
        [f"{studio.model.name} is loaded; it draws {width}x{height}."]
    )
