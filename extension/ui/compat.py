"""What differs between gradio 3.41, 4.40 and the current one; nothing else here asks for its version."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any

import gradio as gr
from fastapi import FastAPI, Request
from fastapi.responses import Response

MAJOR = int(gr.__version__.split(".")[0])


def html(value: str, elem_id: str) -> Any:
    """A piece of HTML without a frame or padding of gradio's own."""
    known = inspect.signature(gr.HTML.__init__).parameters
    plain = {name: False for name in ("padding", "container", "apply_default_css") if name in known}
    return gr.HTML(value, elem_id=elem_id, **plain)


def mount(app: FastAPI, page: gr.Blocks, head: str, **wishes: Any) -> FastAPI:
    """Puts a page at `/` of an application, with `head` inside its <head>; wishes that gradio does not know go."""
    known = inspect.signature(gr.mount_gradio_app).parameters
    given = {name: value for name, value in wishes.items() if name in known}
    if "head" in known:
        given["head"] = head
    elif MAJOR >= 4:
        page.head = head
    else:
        _put_into_pages(app, head)
    return gr.mount_gradio_app(app, page, path="" if MAJOR >= 4 else "/", **given)


def _put_into_pages(app: FastAPI, head: str) -> None:
    """Adds `head` to every HTML page; gradio 3 has no other way."""

    @app.middleware("http")
    async def add(request: Request, call_next: Callable[[Request], Awaitable[Any]]) -> Any:
        answer = await call_next(request)
        if not answer.headers.get("content-type", "").startswith("text/html"):
            return answer
        page = b"".join([part async for part in answer.body_iterator]).replace(
            b"</head>", head.encode() + b"</head>", 1
        )
        kept = {name: value for name, value in answer.headers.items() if name.lower() != "content-length"}
        return Response(page, status_code=answer.status_code, headers=kept)
