"""The tab and the routes in AUTOMATIC1111 and its relatives."""

from __future__ import annotations

import base64
import binascii
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import HTTPException, Request
from modules import paths_internal, sd_models, shared

from extension.api import PREFIX, add_routes
from extension.hosts.a1111_callbacks import register
from extension.hosts.a1111_languages import share_languages
from extension.hosts.base import Host
from extension.hosts.workshops import workshop_for
from extension.jobs.copies import second_copies
from extension.jobs.places import ROOT
from extension.ui.tab import build_tab
from extension.workshop import Workshop

TAB_ID = "athanor_page"


def add_tab(
    host: Host, changed: Callable[[str], None] = lambda method: None, draw: Callable[[Any], Any] | None = None
) -> None:
    """Registers the tab and the routes for this load of the scripts.

    Args:
        draw: see `Workshop`.
        changed: told the method that makes such files when a new one lies where the host looks.
    """

    def started(demo: Any, app: Any) -> None:
        _serve(app, _workshop(host, changed, draw))

    register(__file__, before_ui=_share_languages, ui_tabs=_tab, app_started=started)


def _share_languages() -> None:
    from modules import localization

    share_languages(localization.localizations)


def _tab() -> list[tuple[Any, str, str]]:
    with gr.Blocks(analytics_enabled=False) as page:
        build_tab()
    return [(page, "Athanor", TAB_ID)]


def _serve(app: Any, workshop: Workshop) -> None:
    if not any(getattr(route, "path", "").startswith(PREFIX) for route in app.routes):
        add_routes(app, workshop, authorise_with(app))
    workshop.start()


def _workshop(host: Host, changed: Callable[[str], None], draw: Callable[[Any], Any] | None) -> Workshop:
    folders = host.folders()
    places = {
        "lora": folders.adapters,
        "pivotal": folders.adapters,
        "textual_inversion": folders.embeddings,
        "hypernetwork": folders.hypernetworks,
        "aesthetic_gradient": folders.aesthetics,
        "dreambooth": _named_folders("ckpt_dir", "ckpt_dirs") or [Path(sd_models.model_path)],
    }

    def results(method: str) -> Path | None:
        found = places.get(method)
        return found[0] if found else None

    def checkpoints() -> list[Path]:
        return [Path(info.filename) for info in sd_models.checkpoints_list.values()]

    def clip_skip() -> int | None:
        return shared.opts.CLIP_stop_at_last_layers

    def notes() -> list[str]:
        return second_copies(Path(paths_internal.extensions_dir), shared.opts.disabled_extensions)

    def shipped() -> list[Path]:
        return [ROOT / "assets" / "pictures"]

    made = workshop_for(host, checkpoints, results, changed, clip_skip, shipped, notes)
    made.draw = draw
    return made


def _named_folders(*flags: str) -> list[Path]:
    """The folders that these command line flags name; one flag may name several."""
    found = [getattr(shared.cmd_opts, flag, None) for flag in flags]
    every = [one for value in found for one in (value if isinstance(value, (list, tuple)) else [value])]
    return [Path(folder) for folder in every if folder]


def authorise_with(app: Any) -> Callable[[Request], None]:
    """A check that lets in whoever the host lets in: by `--api-auth`, or by having logged in to its page.

    Where the host asks nobody, this asks nobody.
    """

    def authorise(request: Request) -> None:
        known = _api_credentials()
        has_login = getattr(app, "auth", None) is not None
        if not known and not has_login:
            return
        if has_login and _is_logged_in(app, request):
            return
        if _sent_credentials(request) in known:
            return
        raise HTTPException(401, "This needs the WebUI's password.", {"WWW-Authenticate": "Basic"})

    return authorise


def _api_credentials() -> _Known:
    words = getattr(shared.cmd_opts, "api_auth", None) or ""
    return _Known(part.strip() for part in words.split(",") if part.strip())


class _Known(frozenset):
    """Credentials as `name:password`; looking one up takes the same time whether it is there or not."""

    def __contains__(self, sent: object) -> bool:
        text = sent if isinstance(sent, str) else ""
        return any([secrets.compare_digest(text.encode(), one.encode()) for one in self])


def _is_logged_in(app: Any, request: Request) -> bool:
    tokens = getattr(app, "tokens", {})
    return any(value in tokens for name, value in request.cookies.items() if name.startswith("access-token"))


def _sent_credentials(request: Request) -> str:
    kind, _, words = request.headers.get("authorization", "").partition(" ")
    if kind.lower() != "basic":
        return ""
    try:
        return base64.b64decode(words, validate=True).decode("utf-8")
    except (binascii.Error, UnicodeDecodeError):
        return ""
