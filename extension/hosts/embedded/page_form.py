"""The form of the page: its fields, from them to a request, and from a picture's settings back into them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import gradio as gr
from PIL import Image

from extension.hosts.embedded.pictures import LATENT_MODES, PIXEL_MODES
from extension.hosts.embedded.request import Request
from extension.hosts.embedded.samplers import SAMPLERS, SCHEDULES
from trainers.errors import InputError

UPSCALERS = [*LATENT_MODES, *(name for name in PIXEL_MODES if name != "None")]
RESIZE_MODES = ["Stretch", "Cut the edges off", "Extend the edges"]


@dataclass
class Form:
    """The fields of one tab, by the names of a request's fields.

    Attributes:
        from_picture: it starts from a picture.
        fields: components whose values make the request.
    """

    from_picture: bool
    fields: dict[str, Any] = field(default_factory=dict)

    @property
    def inputs(self) -> list[Any]:
        return list(self.fields.values())

    def request(self, values: Sequence[Any]) -> Request:
        """The request that the values of `inputs` ask for.

        Raises InputError.
        """
        given = dict(zip(self.fields, values, strict=True))
        start: Image.Image | None = given.pop("init_images", None)
        if "resize_mode" in given:
            given["resize_mode"] = RESIZE_MODES.index(given["resize_mode"])
        request = Request(**{name: value for name, value in given.items() if value is not None})
        if self.from_picture:
            if start is None:
                raise InputError("Choose the picture to start from.")
            request.init_images = [start]
        return request

    def updates(self, fields: Mapping[str, Any]) -> list[Any]:
        """New values for `inputs`; what is not mentioned stays."""
        return [gr.update(value=fields[name]) if name in fields else gr.update() for name in self.fields]


def build_form(from_picture: bool, native: tuple[int, int], trained: Callable[[], tuple[list[str], list[str]]]) -> Form:
    """The fields of one tab.

    Args:
        native: (width, height) of the loaded model.
        trained: names of LoRA files and of embeddings.
    """
    form = Form(from_picture)
    fields = form.fields
    if from_picture:
        _picture_fields(fields)
    fields["prompt"] = gr.Textbox(
        label="Prompt",
        lines=3,
        elem_id=f"{'img' if from_picture else 'txt'}2img_prompt",
        placeholder="What the picture shows, e.g.: a red circle on a blue background",
    )
    fields["negative_prompt"] = gr.Textbox(label="Negative prompt", lines=1, placeholder="What it should not show")
    _insert_row(form, trained)
    with gr.Row(equal_height=True):
        fields["width"] = _side("Width", native[0])
        fields["height"] = _side("Height", native[1])
        fields["seed"] = gr.Number(label="Seed", value=-1, info="-1 takes a new one")
    with gr.Row(equal_height=True):
        fields["steps"] = gr.Slider(1, 100, value=20, step=1, label="Steps", info="More are slower and finer")
        fields["cfg_scale"] = gr.Slider(
            1, 20, value=5.0, step=0.5, label="Guidance (CFG)", info="Higher follows it closer"
        )
    with gr.Accordion("More settings", open=False):
        _more_fields(fields)
    if not from_picture:
        _hires_fields(fields)
    return form


def _side(label: str, value: int) -> gr.Number:
    return gr.Number(label=label, value=value, minimum=8, step=8, info="A multiple of 8")


def _picture_fields(fields: dict[str, Any]) -> None:
    with gr.Row():
        fields["init_images"] = gr.Image(label="Picture to start from", type="pil", height=220, sources=["upload"])
        fields["mask"] = gr.Image(
            label="Mask (optional): white is drawn anew", type="pil", height=220, sources=["upload"]
        )
    with gr.Row(equal_height=True):
        fields["denoising_strength"] = gr.Slider(
            0, 1, value=0.6, step=0.05, label="How much may change", info="0: nothing, 1: all"
        )
        fields["resize_mode"] = gr.Radio(
            RESIZE_MODES,
            value=RESIZE_MODES[1],
            label="If its shape differs",
            info="How it is brought to the size below",
        )


def _more_fields(fields: dict[str, Any]) -> None:
    with gr.Row(equal_height=True):
        fields["sampler_name"] = gr.Dropdown(
            [one.name for one in SAMPLERS], value="DPM++ 2M", label="Sampler", info="From noise to picture"
        )
        fields["scheduler"] = gr.Dropdown(
            [one.label for one in SCHEDULES],
            value="Automatic",
            label="Schedule",
            info="How the noise falls",
        )
        fields["clip_skip"] = gr.Slider(1, 4, value=1, step=1, label="Clip skip", info="2: a layer earlier")
    with gr.Row(equal_height=True):
        fields["batch_size"] = gr.Slider(1, 8, value=1, step=1, label="Pictures at once", info="Takes more memory")
        fields["n_iter"] = gr.Slider(1, 16, value=1, step=1, label="Times", info="Repeats that")
    fields["strip"] = gr.Checkbox(
        label="Show the way from noise to picture", info="A strip of the steps below the result"
    )


def _hires_fields(fields: dict[str, Any]) -> None:
    with gr.Accordion("Draw larger in a second pass (hires)", open=False):
        fields["enable_hr"] = gr.Checkbox(label="Draw larger", info="The picture is enlarged and drawn over once more")
        with gr.Row(equal_height=True):
            fields["hr_scale"] = gr.Slider(1, 4, value=2, step=0.25, label="Times larger")
            fields["denoising_strength"] = gr.Slider(0, 1, value=0.6, step=0.05, label="How much may change")
        with gr.Row(equal_height=True):
            fields["hr_upscaler"] = gr.Dropdown(UPSCALERS, value="Latent", label="Enlarged by")
            fields["hr_second_pass_steps"] = gr.Slider(
                0, 100, value=0, step=1, label="Steps of the second pass", info="0: as many as the first"
            )


def _insert_row(form: Form, trained: Callable[[], tuple[list[str], list[str]]]) -> None:
    """Pickers that put a tag or a name at the end of the prompt."""
    loras, embeddings = trained()
    with gr.Row(equal_height=True, elem_classes="athanor-insert"):
        lora = gr.Dropdown(loras, value=None, label="LoRA", info="A file you trained", scale=5, min_width=120)
        strength = gr.Number(label="Strength", value=1, step=0.1, info="0 does nothing", scale=2, min_width=90)
        put_lora = gr.Button("Put into prompt", size="sm", scale=2, min_width=120, interactive=False)
    with gr.Row(equal_height=True, elem_classes="athanor-insert"):
        embedding = gr.Dropdown(
            embeddings, value=None, label="Embedding", info="A word you trained", scale=7, min_width=120
        )
        put_embedding = gr.Button("Put into prompt", size="sm", scale=2, min_width=120, interactive=False)
    prompt = form.fields["prompt"]
    for chosen, button in ((lora, put_lora), (embedding, put_embedding)):
        chosen.change(_usable_with, chosen, button, show_progress="hidden", queue=False)
    put_lora.click(_with_lora, [prompt, lora, strength], prompt, show_progress="hidden", queue=False)
    put_embedding.click(_with_word, [prompt, embedding], prompt, show_progress="hidden", queue=False)
    lora.focus(lambda: gr.update(choices=trained()[0]), None, lora, show_progress="hidden", queue=False)
    embedding.focus(lambda: gr.update(choices=trained()[1]), None, embedding, show_progress="hidden", queue=False)


def _usable_with(name: str | None) -> dict[str, Any]:
    return gr.update(interactive=bool(name))


def _with_lora(prompt: str, name: str | None, strength: float | None) -> str:
    return f"{prompt} <lora:{name}:{1 if strength is None else strength:g}>".lstrip() if name else prompt


def _with_word(prompt: str, name: str | None) -> str:
    if not name:
        return prompt
    return f"{prompt.rstrip().rstrip(',')}, {name}" if prompt.strip() else name
