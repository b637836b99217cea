"""Draws a list of pictures and ends: `python -m extension.hosts.embedded.draw_list LIST.json`.

The list is {"base": FILE, "data": FOLDER, "pictures": [{"to": FILE, "prompt": …, "seed": …, …}]}; a picture's other
fields are those of `Request`. What the host has to say about a prompt's tags is printed, one sentence per line.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from extension.hosts.embedded.engine import Studio
from extension.hosts.embedded.places import EMBEDDED_BASE, Places
from extension.hosts.embedded.request import Request
from trainers.errors import InputError


def draw(wanted: dict[str, Any]) -> list[str]:
    """Draws and writes every picture of a list; returns the host's sentences about them, each once.

    Raises:
        InputError: the list, or something in it, will not do.
    """
    try:
        base, places = Path(wanted.get("base") or EMBEDDED_BASE), Places(Path(wanted["data"]))
        requests = [(Request(**{name: each[name] for name in each if name != "to"}), each["to"])
                    for each in wanted["pictures"]]  # fmt: skip
    except (KeyError, TypeError) as error:
        raise InputError(f"The list of pictures will not do ({error}).") from None
    studio, said = Studio(base, places), {}
    for request, file in requests:
        drawn = studio.draw(request)
        drawn.pictures[0].image.save(file)
        said.update(dict.fromkeys(drawn.reports))
    return list(said)


def main(arguments: Sequence[str]) -> int:
    """Exit status: 0 drawn, 2 the list cannot be read or will not do."""
    if len(arguments) != 1:
        print("usage: python -m extension.hosts.embedded.draw_list LIST.json", file=sys.stderr)
        return 2
    try:
        for sentence in draw(json.loads(Path(arguments[0]).read_text(encoding="utf-8"))):
            print(sentence)
    except (InputError, OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
