"""What every route of ours shares: problems as sentences, who may ask, and from where."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from fastapi import HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute

from extension.jobs.store import NoSuchRun
from trainers.errors import InputError

_LOOPBACK = ("127.0.0.1", "::1", "::ffff:127.0.0.1", "testclient")
_OWN_NAMES = ("localhost", "127.0.0.1", "::1", "0.0.0.0", "::")
"""0.0.0.0 is the address that a WebUI started with --listen prints; no other site can have it for a name."""


def _sentences(status: int, *problems: str) -> JSONResponse:
    return JSONResponse({"problems": list(problems)}, status_code=status)


class SentenceRoute(APIRoute):
    """A route whose problems are told as `{"problems": [sentence, …]}`, whatever the host does with its own."""

    def get_route_handler(self) -> Callable[[Request], Any]:
        handle = super().get_route_handler()

        async def told(request: Request) -> Response:
            try:
                return await handle(request)
            except NoSuchRun as error:
                return _sentences(404, *error.problems)
            except InputError as error:
                return _sentences(422, *error.problems)
            except RequestValidationError as error:
                first = error.errors()[0] if error.errors() else {}
                where = ".".join(str(part) for part in first.get("loc", ()))
                return _sentences(422, f"{where}: {first.get('msg', 'this request cannot be read')}.")
            except TimeoutError as error:
                return _sentences(503, str(error))
            except UnicodeError:
                return _sentences(422, "This request holds characters that are no text.")

        return told


def same_origin(request: Request) -> None:
    """Refuses a change that another site's page asks for in the name of whoever has ours open.

    A proxy may have put another Host there than the browser sent; browsers say by themselves whose page asks.
    """
    origin = request.headers.get("origin")
    if request.method in ("GET", "HEAD", "OPTIONS") or origin is None:
        return
    if request.headers.get("sec-fetch-site") == "same-origin":
        return
    ours = {request.headers.get("host", ""), request.headers.get("x-forwarded-host", "")}
    if urlsplit(origin).netloc not in ours - {""}:
        raise HTTPException(403, "This page is not from here, so it may not change anything.")


def is_local(request: Request) -> bool:
    """Whether the person sits at this machine, as far as can be told.

    The page's address has to say so too: another site's name may be made to lead here (DNS rebinding).
    """
    forwarded = any(request.headers.get(name) for name in ("x-forwarded-for", "forwarded", "x-real-ip"))
    try:
        named = urlsplit(f"//{request.headers.get('host', '')}").hostname
    except ValueError:
        return False
    return request.client is not None and request.client.host in _LOOPBACK and named in _OWN_NAMES and not forwarded


def text_of(body: dict[str, Any], name: str, default: str = "") -> str:
    """A text out of a request's body.

    Raises:
        InputError: it is something else.
    """
    value = body.get(name, default)
    if not isinstance(value, str) or "\0" in value:
        raise InputError(f"{name}: must be a text.")
    return value


def map_of(body: dict[str, Any], name: str) -> dict[str, Any]:
    """Names with values out of a request's body.

    Raises:
        InputError: it is something else.
    """
    value = body.get(name, {})
    if not isinstance(value, dict):
        raise InputError(f"{name}: must hold names and values.")
    return value


def list_of(body: dict[str, Any], name: str, most: int) -> list[dict[str, Any]]:
    """Objects out of a request's body; a plain text among them stands for `{"file": text}`.

    Raises:
        InputError: it is something else, or too long.
    """
    value = body.get(name, [])
    if not isinstance(value, list) or len(value) > most:
        raise InputError(f"{name}: must be a list of at most {most}.")
    made = [{"file": each} if isinstance(each, str) else each for each in value]
    if not all(isinstance(each, dict) for each in made):
        raise InputError(f"{name}: must hold names and values.")
    return made
