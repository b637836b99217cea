"""`python -m extension.hosts.embedded.server`: starts the embedded host; `python install.py serve` runs this."""

from __future__ import annotations

import argparse
import gc
import logging
import os
import socket
import sys
import threading
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from extension.hosts.embedded.places import EMBEDDED_BASE, ROOT, Places
from trainers.errors import InputError

if TYPE_CHECKING:
    from fastapi import FastAPI

    from extension.hosts.embedded.engine import Studio

PORT, TRIED_PORTS = 7860, 20


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message}. See: python install.py serve --help", file=sys.stderr)
        sys.exit(2)


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = _Parser(prog="serve", description="Starts the embedded host: a small WebUI with A1111's API.")
    parser.add_argument("--port", type=int, metavar="N", help=f"port to listen on (the first free one from {PORT})")
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="address to listen on (127.0.0.1)")
    parser.add_argument("--base", type=Path, default=EMBEDDED_BASE, metavar="FILE", help="base model: file or folder")
    parser.add_argument(
        "--data-dir", type=Path, default=ROOT / "data", metavar="DIR", help="folder of models, embeddings and outputs"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps, xpu (auto)")
    parser.add_argument(
        "--language",
        default="auto",
        metavar="NAME",
        help="language of the page: en, zh_CN, or auto, the browser's (auto)",
    )
    parser.add_argument("--no-browser", action="store_true", help="do not open the page in a browser")
    return parser.parse_args(given)


def free_port(address: str, wanted: int | None) -> int:
    """The wanted port, or the first free one.

    Raises InputError.
    """
    if wanted is not None and not 0 < wanted < 65536:
        raise InputError(f"port: {wanted} is not between 1 and 65535.")
    for port in [wanted] if wanted else range(PORT, PORT + TRIED_PORTS):
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as trial:
            if os.name != "nt":
                trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                trial.bind((address, port))
                return port
            except socket.gaierror:
                raise InputError(f"host: {address!r} is no address of this machine.") from None
            except OSError as error:
                reason = error.strerror
    ports = f"port {wanted}" if wanted else f"any port from {PORT} to {PORT + TRIED_PORTS - 1}"
    raise InputError(f"{address} {ports} cannot be used ({reason}); name another with --port.")


def _path(path: Path) -> Path:
    """An absolute path; relative ones count from the folder in which the person started us."""
    return Path(os.environ.get("ATHANOR_STARTED_IN", os.getcwd())) / path.expanduser()


def make_app(studio: Studio, flags: dict[str, Any] | None = None, page: bool = True, language: str = "auto") -> FastAPI:
    """The web application: the API, and the page at `/`."""
    from fastapi import FastAPI

    from extension.hosts.embedded.api import add_api
    from extension.hosts.embedded.training import add_training

    app = FastAPI(title="Athanor")
    add_api(app, studio, flags)
    workshop = add_training(app, studio)
    app.state.athanor_workshop = workshop
    if page:
        from extension.hosts.embedded.page import add_page

        app = add_page(app, studio, language)
    return app


def _ending_quietly(server: Any) -> Any:
    """An open page holds a connection for as long as it is open; cutting that off at the end is no error."""
    shutdown = server.shutdown

    async def shut(sockets: Any = None) -> None:
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        await shutdown(sockets)

    server.shutdown = shut
    return server


def serve(options: argparse.Namespace) -> None:
    """Runs until it is stopped.

    Raises InputError.
    """
    import uvicorn

    port = free_port(options.host, options.port)
    print(f"Loading {options.base} ...", flush=True)
    from extension.hosts.embedded.engine import Studio

    studio = Studio(_path(options.base), Places(_path(options.data_dir)), options.device)
    app = make_app(studio, {"port": port, "listen": options.host != "127.0.0.1"}, language=options.language)
    app.state.athanor_workshop.start()
    shown = "127.0.0.1" if options.host in ("0.0.0.0", "::") else options.host
    address = f"http://{f'[{shown}]' if ':' in shown else shown}:{port}"
    if options.host not in ("127.0.0.1", "localhost", "::1"):
        print("Whoever reaches this machine can use it: there is no password.", flush=True)
    print(f"Running on {address}   (stop with Ctrl+C; files are kept in {studio.places.data})", flush=True)
    if not options.no_browser:
        threading.Timer(1.0, webbrowser.open, [address]).start()
    config = uvicorn.Config(app, host=options.host, port=port, log_level="warning", timeout_graceful_shutdown=1)
    try:
        _ending_quietly(uvicorn.Server(config)).run()
    finally:
        gc.freeze()  # the interpreter would search everything for what can be freed, and then end anyway


def main(given: Sequence[str] | None = None) -> int:
    """Returns the exit status; problems are printed as sentences."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        serve(arguments(given))
    except InputError as problem:
        print(problem, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
