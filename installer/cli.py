"""`python install.py demo | serve | test | link | doctor`: the commands a person types."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from installer.environment import ROOT, Environment
from installer.problems import SetupError
from installer.processes import clean_environment

COMMANDS = ("demo", "serve", "test", "link", "doctor", "setup")
PASSED_ON = ("serve", "test")
"""Commands whose options are read by the program they start."""


class _Parser(argparse.ArgumentParser):
    """Answers a wrong command line with one sentence instead of a usage block."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message}. See: python install.py --help", file=sys.stderr)
        sys.exit(2)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="install.py", description="Sets Athanor up and runs it.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)
    demo = commands.add_parser("demo", help="train a LoRA on the bundled pictures and draw a before/after picture")
    demo.add_argument("--out", metavar="DIR", type=Path, default=ROOT / "demo", help="folder to write to (demo)")
    demo.add_argument("--method", metavar="NAME", default="lora", help="such as textual_inversion")
    serve = commands.add_parser("serve", help="start a small WebUI of our own", add_help=False)
    serve.add_argument("options", nargs=argparse.REMAINDER, help="--port, --base, --data-dir, …; serve --help")
    test = commands.add_parser("test", help="run ruff, the import contracts and the tests")
    test.add_argument("pytest", nargs=argparse.REMAINDER, help="passed on to pytest")
    link = commands.add_parser("link", help="put this folder into a WebUI's extensions")
    link.add_argument("webui", metavar="WEBUI_DIR", type=Path)
    link.add_argument("--with-base", action="store_true", help="also give it the embedded base model")
    setup = commands.add_parser("setup", help="make the trainers' environment for a WebUI's Python (WebUIs run this)")
    setup.add_argument("--data", metavar="DIR", type=Path, help="where to make it if this folder cannot be written")
    setup.add_argument("--again", action="store_true", help="also mend one that says it is complete")
    doctor = commands.add_parser("doctor", help="say what is here and what is wrong; part of a bug report")
    doctor.add_argument("webui", metavar="WEBUI_DIR", type=Path, nargs="?")
    doctor.add_argument("--python", metavar="PATH", type=Path, help="the Python that runs that WebUI")
    return parser


def run(arguments: Sequence[str]) -> int:
    """Runs one command; returns the exit status. Problems are printed as sentences, never as tracebacks."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(errors="replace")  # a console that cannot show a folder's name must not stop us
    parser = _parser()
    if not arguments:
        parser.print_help()
        return 0
    if not arguments[0].startswith("-") and arguments[0] not in COMMANDS:
        near = difflib.get_close_matches(arguments[0], COMMANDS, n=1)
        hint = f' Did you mean "{near[0]}"?' if near else ""
        print(f"install.py: {arguments[0]!r} is not a command; use {', '.join(COMMANDS)}.{hint}", file=sys.stderr)
        return 2
    # argparse would take pytest's own options (-k, -x) for ours.
    options = parser.parse_args(arguments[:1] if arguments[0] in PASSED_ON else arguments)
    try:
        return _COMMANDS[options.command](options, list(arguments[1:]))
    except SetupError as problem:
        if problem.tail:
            print(problem.tail, file=sys.stderr)
        print(problem.sentence, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped. Run the same command again to go on.", file=sys.stderr)
        return 130


def _demo(options: argparse.Namespace, _rest: list[str]) -> int:
    out = options.out.expanduser().absolute()
    python = Environment().ensure()
    return subprocess.call(
        [python, "-m", "trainers.demo", "--out", str(out), "--method", options.method],
        cwd=ROOT,
        env=clean_environment({"HF_HUB_OFFLINE": "1"}),
    )


def _serve(_options: argparse.Namespace, rest: list[str]) -> int:
    python = Environment().ensure(serve=True)
    # It runs in our folder, whose packages must be the ones it finds; names of files count from where the person is.
    extra = {"ATHANOR_STARTED_IN": os.getcwd(), "HF_HUB_OFFLINE": "1"}
    command = [python, "-m", "extension.hosts.embedded.server", *rest]
    return subprocess.call(command, cwd=ROOT, env=clean_environment(extra))


def _test(_options: argparse.Namespace, rest: list[str]) -> int:
    from installer.checks import run_checks

    return run_checks(Environment().ensure(tests=True), rest)


def _link(options: argparse.Namespace, _rest: list[str]) -> int:
    from installer.link import link

    return link(options.webui.expanduser().absolute(), with_base=options.with_base)


def _setup(options: argparse.Namespace, _rest: list[str]) -> int:
    from installer.host import set_up

    return set_up(options.data and options.data.expanduser().absolute(), options.again)


def _doctor(options: argparse.Namespace, _rest: list[str]) -> int:
    from installer.doctor import report

    webui, python = (path and path.expanduser().absolute() for path in (options.webui, options.python))
    print("\n".join(report(webui, python=python)))
    return 0


_COMMANDS = {"demo": _demo, "serve": _serve, "test": _test, "link": _link, "doctor": _doctor, "setup": _setup}
