"""Which package an environment really uses: its version, and the folder that it comes from."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from installer.problems import SetupError, tail_of
from installer.processes import capture

BORROWED = ("torch", "triton", "nvidia")
"""What may come from a WebUI; everything else that is listed must be the environment's own."""

# Runs inside the environment. Its arguments are requirement files; pip brings what reads them.
_LOOK = """
import importlib.metadata as metadata, json, sys
from pip._vendor.packaging.requirements import Requirement
rows = []
for file in sys.argv[1:]:
    for line in open(file, encoding="utf-8"):
        line = line.split("#")[0].strip()
        if not line:
            continue
        pin = Requirement(line)
        if pin.marker is not None and not pin.marker.evaluate():
            continue
        wanted = next(iter(pin.specifier)).version
        try:
            found = metadata.distribution(pin.name)
            rows.append((pin.name, wanted, found.version, str(found.locate_file(""))))
        except metadata.PackageNotFoundError:
            rows.append((pin.name, wanted, None, ""))
try:
    torch = metadata.distribution("torch")
    rows.append(("torch", None, torch.version, str(torch.locate_file(""))))
except metadata.PackageNotFoundError:
    rows.append(("torch", None, None, ""))
print("\\n" + json.dumps(rows))
"""


@dataclass(frozen=True)
class Package:
    """A package as an environment finds it.

    Attributes:
        wanted: the listed version, None where any will do.
        version: the version that is found, None where none is.
        place: the folder that it comes from.
        complaint: what is wrong with that; empty where nothing is.
    """

    name: str
    wanted: str | None
    version: str | None
    place: str
    complaint: str = ""


def look(command: Sequence[Path], files: Sequence[Path], folder: Path) -> list[Package]:
    """Every listed package and torch, as the environment in `folder` finds them.

    Args:
        command: what starts the environment's interpreter.

    Raises:
        SetupError: the interpreter does not start.
    """
    status, output = capture([*command, "-c", _LOOK, *files], timeout=300)
    if status != 0:
        raise SetupError(f"The environment in {folder} does not start: delete it.", tail_of(output))
    rows = json.loads(output.strip().splitlines()[-1])
    return [Package(*row, complaint=_complaint(*row, folder)) for row in rows]


def _complaint(name: str, wanted: str | None, version: str | None, place: str, folder: Path) -> str:
    if version is None:
        return f"{name} is missing."
    if wanted is not None and version.split("+")[0] != wanted:
        return f"{name} is {version} (from {place}), but {wanted} is needed."
    if name not in BORROWED and not _inside(place, folder):
        return f"{name} {version} comes from {place}, not from the environment."
    return ""


def _inside(place: str, folder: Path) -> bool:
    inner, outer = (os.path.normcase(os.path.realpath(one)) for one in (place, folder))
    return inner == outer or inner.startswith(outer + os.sep)
