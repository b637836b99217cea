"""`python -m extension.ui.preview`: the tab alone, in a small page, for looking at it and for the tests."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from extension.api import add_routes
from extension.hosts.embedded.words import clip_tokens
from extension.jobs.environment import ROOT, Environment
from extension.jobs.manager import Jobs
from extension.recipes import describe_base
from extension.workshop import Workshop

EMBEDDED_BASE = ROOT / "assets" / "base" / "athanor-base.safetensors"


def make_workshop(data: Path, environment: Environment | None = None) -> Workshop:
    """A workshop over one folder, with the embedded base."""
    pictures = data / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    base = describe_base(EMBEDDED_BASE, loaded=True)
    shipped = ROOT / "assets" / "pictures"
    places = {"lora": data / "Lora", "textual_inversion": data / "embeddings"}
    return Workshop(
        Jobs(data / "runs", environment),
        pictures,
        lambda: [base],
        lambda: [places["lora"]],
        lambda: [shipped],
        places.get,
        tokenizer=clip_tokens,
    )


def make_app(workshop: Workshop) -> Any:
    """The application: routes, scripts, and a page with a prompt and the tab."""
    import gradio as gr
    from fastapi import FastAPI

    from extension.ui import assets, compat
    from extension.ui.tab import build_tab

    app = FastAPI(title="Athanor")
    add_routes(app, workshop)
    assets.add_asset_routes(app)
    with gr.Blocks(title="Athanor", analytics_enabled=False) as page:
        with gr.Tab("Athanor"):
            build_tab()
        with gr.Tab("Text to picture", elem_id="tab_txt2img"):
            gr.Textbox(label="Prompt", elem_id="txt2img_prompt", lines=3)
    return compat.mount(app, page, assets.head(), ssr_mode=False, footer_links=[])


def main() -> None:
    parser = argparse.ArgumentParser(description="Shows the tab alone.")
    parser.add_argument("--port", type=int, default=7861)
    parser.add_argument("--data", type=Path, default=ROOT / "data")
    options = parser.parse_args()
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    import uvicorn

    workshop = make_workshop(options.data.absolute())
    workshop.start()
    uvicorn.run(make_app(workshop), host="127.0.0.1", port=options.port, log_level="warning")


if __name__ == "__main__":
    main()
