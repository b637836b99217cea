"""Draws a picture in AUTOMATIC1111 and its relatives, as a person's click on Generate would, and saves none."""

from __future__ import annotations

from contextlib import closing
from functools import lru_cache
from typing import Any

from modules import processing, scripts, shared
from modules.api.api import Api
from modules.call_queue import queue_lock

from extension.grids import Drawing, Drawn
from extension.hosts.base import Host
from extension.recipes import describe_base
from extension.wanted import Library
from trainers.errors import InputError
from trainers.formats.families import FAMILIES


def draw(host: Host, library: Library, held: bool, drawing: Drawing) -> Drawn:
    """The picture.

    Args:
        held: whether `<lora:…>` comes to us; the host's own loader cannot be given a file by its path.

    Raises:
        InputError: the tags are not ours to act on.
    """
    if drawing.files and not held:
        raise InputError("For this, turn on “Athanor handles <lora:> tags” in the WebUI's settings.")
    with queue_lock:
        library.shown = dict(drawing.files)
        try:
            return _picture(host, drawing)
        finally:
            library.shown = {}


def _picture(host: Host, drawing: Drawing) -> Drawn:
    side = _side(host)
    p = processing.StableDiffusionProcessingTxt2Img(
        sd_model=shared.sd_model, prompt=drawing.prompt, negative_prompt="", seed=drawing.seed, steps=drawing.steps,
        cfg_scale=7.0, width=side, height=side, sampler_name="Euler a", batch_size=1, n_iter=1,
        do_not_save_samples=True, do_not_save_grid=True,
    )  # fmt: skip
    p.is_api = True  # else the page's own seed, steps and sampler take the place of these
    with closing(p):
        runner = scripts.scripts_txt2img
        if not runner.scripts:
            runner.initialize_scripts(False)
        p.scripts, p.script_args = runner, _arguments(runner)
        shared.state.begin(job="athanor-grid")
        try:
            image = processing.process_images(p).images[0]
            return Drawn(image, getattr(p, "athanor_notes", ()))
        finally:
            shared.state.end()
            shared.total_tqdm.clear()


@lru_cache(1)
def _arguments(runner: Any) -> tuple[Any, ...]:
    """What every script gets where a person has changed nothing."""
    return tuple(Api.init_default_script_args(None, runner))


def _side(host: Host) -> int:
    """The side of the square that the loaded model was made for, as its file says, else its family."""
    model: Any = host.model()
    stated = describe_base(model.checkpoint).side if model and model.checkpoint else None
    if stated:
        return stated
    family = FAMILIES.get(model.family if model else None)
    return family.resolution_for(model.prediction or "epsilon") if family else 512
