"""The command line. Exit codes: 0 done; 1 a failure of ours; 2 the input was rejected; 3 stopped, resumable."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainers import __version__, options, spec
from trainers.errors import InputError
from trainers.spec import Job

DONE, FAILED, REJECTED, STOPPED = 0, 1, 2, 3
PATH_OPTIONS = tuple(option.name for option in options.FIELDS if option.kind == "path")


class _Parser(argparse.ArgumentParser):
    """Wrong words on the command line are rejected like every other input."""

    def error(self, message: str) -> None:  # type: ignore[override]
        raise InputError(f"{message[:1].upper()}{message[1:]}. See `{self.prog} --help`.")


def _add_method(commands: Any, method: str) -> None:
    parser = commands.add_parser(method, help=f"train: {method.replace('_', ' ')}")
    if method in options.ONE_PASS:
        parser.add_argument("--clip-model", required=True, help="folder of the CLIP model that looks at the pictures")
    else:
        parser.add_argument("--base", required=True, help="model file or diffusers folder to start from")
    parser.add_argument("--data", required=True, help="folder with the pictures, or a kohya dataset .toml")
    parser.add_argument("--name", required=True, help="name of the result")
    parser.add_argument("--preset", help="a recipe to start from: the name of a file in presets/, or a .yaml file")
    parser.add_argument("--run", help="the run's folder (default: runs/NAME)")
    parser.add_argument(
        "--set", nargs="+", default=[], action="extend", metavar="OPTION=VALUE", help="any option of docs/options.md"
    )


def make_parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m trainers", description="Teach a Stable Diffusion model something new.")
    parser.add_argument("--version", action="version", version=f"Athanor {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Parser)
    for method in options.METHODS:
        _add_method(commands, method)
    run = commands.add_parser("run", help="train what a job file says")
    run.add_argument("job", metavar="JOB.yaml")
    run.add_argument("--run", help="the run's folder (default: runs/NAME)")
    resume = commands.add_parser("resume", help="go on with a run that was stopped or killed")
    resume.add_argument("run", metavar="RUN_DIR")
    check = commands.add_parser("check", help="say what is wrong with a job, and its memory plan, without training")
    check.add_argument("job", metavar="JOB.yaml")
    check.add_argument("--json", action="store_true", help="as JSON, for programs")
    inspect = commands.add_parser("inspect", help="say what a file is and what is in it")
    inspect.add_argument("file", metavar="FILE")
    inspect.add_argument("--json", action="store_true", help="as JSON")
    return parser


def assignments(words: Sequence[str]) -> dict[str, str]:
    """`rank=8 alpha=4` as a dictionary."""
    result = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name.strip():
            raise InputError(f"--set {word}: is not of the form option=value.")
        result[name.strip()] = value
    return result


def absolute_paths(raw: dict[str, Any], folder: Path) -> dict[str, Any]:
    """`raw` with every path made absolute; relative ones count from `folder`."""
    raw = dict(raw)
    for name in PATH_OPTIONS:
        if isinstance(raw.get(name), str) and raw[name].strip() and "\0" not in raw[name]:
            raw[name] = str((folder / os.path.expanduser(raw[name])).resolve())
    return raw


def job_from_words(args: argparse.Namespace) -> Job:
    raw: dict[str, Any] = {}
    if args.preset:
        from trainers.presets import load_preset

        raw.update(load_preset(args.preset))
    raw.update(assignments(args.set))
    raw.update(method=args.command, data=args.data, name=args.name)
    raw.update({"clip_model": args.clip_model} if args.command in options.ONE_PASS else {"base": args.base})
    return spec.parse(absolute_paths(raw, Path.cwd()))


def job_from_file(path: Path) -> Job:
    raw = spec.read_yaml(path)
    return spec.parse(absolute_paths(raw, path.resolve().parent))


def _inspect(args: argparse.Namespace) -> int:
    from trainers.tools.inspect import describe, lines

    description = describe(Path(args.file))
    if args.json:
        print(json.dumps(description, ensure_ascii=False, indent=1, default=str))
    else:
        print("\n".join(lines(description)))
    return DONE


def _dispatch(args: argparse.Namespace) -> int:
    if args.command == "inspect":
        return _inspect(args)
    from trainers import running

    if args.command == "check":
        return running.check(job_from_file(Path(args.job)), as_json=args.json)
    if args.command == "resume":
        return running.resume(Path(args.run))
    job = job_from_file(Path(args.job)) if args.command == "run" else job_from_words(args)
    return running.start(job, Path(args.run) if args.run else None)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a Windows console may not be UTF-8
            stream.reconfigure(encoding="utf-8", errors="replace")
    try:
        return _dispatch(make_parser().parse_args(argv))
    except InputError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
        return REJECTED
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return STOPPED
