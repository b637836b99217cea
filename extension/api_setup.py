"""Routes of the trainers' environment: how it stands, and having it made or mended."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from extension.jobs.setup import READY, SetupView
from extension.workshop import Workshop
from trainers.errors import InputError


def add_setup_routes(router: APIRouter, workshop: Workshop) -> None:
    """Adds them to a router; a host that runs in the trainers' environment itself is always ready."""

    @router.get("/setup")
    def setup(log: bool = False) -> dict[str, Any]:
        """How the trainers' environment stands; with `log` the last lines of its making."""
        made = workshop.jobs.environment.setup
        view = made.view() if made else SetupView(READY, can_repair=False)
        return {**view.as_dict(), "notes": workshop.notes(), "log": made.log() if made and log else []}

    @router.post("/setup/repair")
    def repair() -> dict[str, Any]:
        """Makes it, or checks one that is there and mends it; goes on by itself."""
        made = workshop.jobs.environment.setup
        if made is None:
            raise InputError("This WebUI runs in the trainers' environment; mend it with: python install.py demo")
        made.repair()
        return made.view().as_dict()
