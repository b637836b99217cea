"""The scripts and styles of the tab. A WebUI loads them by itself; other hosts link to them."""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import FileResponse, Response

from extension.api import PREFIX

ROOT = Path(__file__).resolve().parents[2]


def asset_files() -> dict[str, Path]:
    """By the name they are served under."""
    scripts = {path.name: path for path in sorted((ROOT / "javascript").glob("athanor*.js"))}
    return {**scripts, "style.css": ROOT / "style.css"}


def head() -> str:
    """Links to scripts and styles, for a page's <head>; each with its age, so that no old one is kept."""
    links = []
    for name, path in asset_files().items():
        address = f"{PREFIX}/assets/{name}?{int(path.stat().st_mtime)}"
        if name.endswith(".css"):
            links.append(f'<link rel="stylesheet" href="{address}">')
        else:
            links.append(f'<script defer src="{address}"></script>')
    return "".join(links)


def add_asset_routes(app: FastAPI) -> None:
    """Serves the scripts and styles; they hold nothing that is anybody's."""

    @app.get(f"{PREFIX}/assets/{{name}}", include_in_schema=False)
    def asset(name: str) -> Response:
        path = asset_files().get(name)
        return FileResponse(path) if path else Response(status_code=404)
