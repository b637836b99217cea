"""Training in the embedded host: what the tab and its routes work on."""

from __future__ import annotations

from functools import partial

from fastapi import FastAPI

from extension.api import add_routes
from extension.grids import Drawing, Drawn
from extension.hosts.embedded.engine import Studio
from extension.hosts.embedded.host import EmbeddedHost
from extension.hosts.embedded.lease import EmbeddedLender
from extension.hosts.embedded.places import ROOT
from extension.hosts.embedded.request import Request
from extension.hosts.workshops import live_files_of, workshop_for
from extension.ui.assets import add_asset_routes
from extension.workshop import Workshop
from trainers.errors import InputError


def add_training(app: FastAPI, studio: Studio) -> Workshop:
    """Adds the routes and the tab's scripts; what waits is trained once the workshop is started."""
    places, shipped = studio.places, [ROOT / "assets" / "pictures"]
    folders = {
        "lora": places.adapters,
        "textual_inversion": places.embeddings,
        "hypernetwork": places.hypernetworks,
        "aesthetic_gradient": places.aesthetics,
        "dreambooth": places.models,
    }
    host = EmbeddedHost(studio)
    studio.library.live = live_files_of(host)
    workshop = workshop_for(
        host, studio.bases, folders.get, lambda method: studio.rescan(),
        lambda: studio.option("CLIP_stop_at_last_layers", 1), lambda: shipped,
    )  # fmt: skip
    workshop.draw = partial(_draw, studio)
    workshop.jobs.borrow_from(EmbeddedLender(studio, workshop.jobs.environment))
    studio.turn = workshop.jobs.turns.drawing
    add_routes(app, workshop)
    add_asset_routes(app)
    return workshop


def _draw(studio: Studio, drawing: Drawing) -> Drawn:
    """One picture of a grid, which is not saved among the person's own."""
    studio.library.shown.update(drawing.files)  # names made for one grid
    try:
        drawn = studio.draw(Request(prompt=drawing.prompt, seed=drawing.seed, steps=drawing.steps))
    finally:
        studio.library.shown.clear()
    if not drawn.pictures:
        raise InputError("The drawing was stopped.")
    return Drawn(drawn.pictures[0].image, drawn.reports)
