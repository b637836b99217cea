"""What `doctor` says of a WebUI: which one it is, its Python, the trainers' environment that was made for it."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from extension.jobs import places
from extension.jobs.copies import copies, second_copies
from extension.jobs.files import read_json
from installer.link import SD_NEXT, check_webui, is_sd_next
from installer.packages import look
from installer.problems import SetupError, tail_of
from installer.processes import capture

KINDS = (
    ("Forge", ("modules_forge", "backend")),
    ("reForge", ("modules_forge", "ldm_patched")),
    ("SD.Next", ("installer.py", "modules/processing_diffusers.py")),
    ("AUTOMATIC1111", ("modules/launch_utils.py",)),
)
"""Names of WebUIs and what only they have, the more special ones first."""
_VERSIONS = (("modules_forge/forge_version.py", r"version = '([^']+)'"), ("CHANGELOG.md", r"^## (\S+)"))
_PYTHONS = ("venv/bin/python", "venv/Scripts/python.exe", "python/python.exe", "../system/python/python.exe")
_PYTHONS += ("../python_embeded/python.exe", "../python/python.exe", ".venv/bin/python")
_ASK = """
import importlib.metadata as metadata, json, sys
def version(name):
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
names = ("torch", "gradio", "fastapi", "transformers", "diffusers", "peft", "xformers")
print("\\n" + json.dumps({"python": sys.version.split()[0], "prefix": sys.prefix, "numbers": sys.version_info[:2],
      "venv": __import__("importlib.util").util.find_spec("venv") is not None,
      "versions": {name: version(name) for name in names}}))
"""


@dataclass
class Found:
    """A WebUI and its Python; `facts` is empty where that was not found or does not start."""

    folder: Path
    python: Path | None
    facts: dict = field(default_factory=dict)


def kind_of(folder: Path) -> str:
    """The WebUI's name, with its version where it says one."""
    name = next((name for name, signs in KINDS if all((folder / sign).exists() for sign in signs)), "unknown WebUI")
    for file, pattern in _VERSIONS:
        text = (folder / file).read_text(encoding="utf-8", errors="replace") if (folder / file).is_file() else ""
        if said := re.search(pattern, text, re.M):
            return f"{name} {said.group(1)}{_commit(folder)}"
    return name + _commit(folder)


def _commit(folder: Path) -> str:
    status, output = capture(["git", "-C", folder, "rev-parse", "--short", "HEAD"], timeout=20)
    return f" (commit {output.strip()})" if status == 0 and (folder / ".git").exists() else ""


def find_python(folder: Path, named: Path | None = None) -> Path | None:
    """The Python that runs a WebUI: the one that is named, or where they usually keep it."""
    places_of_it = [named] if named else [folder / part for part in _PYTHONS]
    return next((Path(os.path.abspath(place)) for place in places_of_it if place.is_file()), None)


def examine(folder: Path, named: Path | None, root: Path, problems: list[str]) -> Iterator[str]:
    """The lines about a WebUI; what is wrong with it, and what to do, goes to `problems`."""
    try:
        check_webui(folder)
    except SetupError as error:
        problems.append(error.sentence)
        return
    yield f"WebUI: {kind_of(folder)} in {folder}"
    if is_sd_next(folder):
        problems.append(SD_NEXT)
        return
    found = Found(folder, find_python(folder, named))
    yield from _python(found, problems)
    yield from _extension(folder, root, problems)
    if found.facts:
        yield from _environment(found, _extension_folder(folder, root), problems)


def _python(found: Found, problems: list[str]) -> Iterator[str]:
    if found.python is None:
        yield "  its Python: not found"
        problems.append("name the Python that runs the WebUI: `doctor WEBUI_DIR --python PATH`.")
        return
    status, output = capture([found.python, "-c", _ASK], timeout=120)
    if status != 0:
        problems.append(f"{found.python} does not start; repair the WebUI's own Python first.")
        yield from (f"  {line}" for line in tail_of(output).splitlines())
        return
    found.facts.update(json.loads(output.strip().splitlines()[-1]))
    versions = ", ".join(f"{name} {version}" for name, version in found.facts["versions"].items() if version)
    yield f"  its Python: {found.facts['python']} ({found.python}){'' if found.facts['venv'] else ', without venv'}"
    yield f"  its packages: {versions or 'none'}"
    if not found.facts["versions"]["torch"]:
        problems.append("the WebUI has no torch yet; start it once without Athanor, so that it sets itself up.")


def _extension_folder(folder: Path, root: Path) -> Path:
    """The folder that the WebUI loads us from."""
    return next((copy.resolve() for copy in copies(folder / "extensions")), root)


def _extension(folder: Path, root: Path, problems: list[str]) -> Iterator[str]:
    settings = read_json(folder / "config.json") or {}
    disabled = settings.get("disabled_extensions") or []
    found = copies(folder / "extensions")
    for copy in found:
        ours = copy.resolve() == root.resolve()
        yield f"  Athanor: this folder, as {copy}" if ours else f"  Athanor: another copy, {copy.resolve()}"
    if not found:
        yield "  Athanor: not among its extensions"
        problems.append(f'put Athanor into the WebUI with `python install.py link "{folder}"`.')
    if any(copy.name in disabled for copy in found) or settings.get("disable_all_extensions", "none") not in (
        "none",
        None,
    ):
        problems.append("the WebUI has switched Athanor off; switch it on in its tab Extensions.")
    problems += second_copies(folder / "extensions", disabled)


def _environment(found: Found, root: Path, problems: list[str]) -> Iterator[str]:
    key = places.key_of(found.facts["prefix"], found.facts["numbers"])
    place = places.known(root, found.folder / "athanor", key)
    status = (read_json(place.status) or {}) if place else {}
    if place is None or not status:
        yield "  trainers' environment: not made yet; the WebUI's next start makes it"
        return
    yield f"  trainers' environment: {status.get('state')}, {place.folder}"
    if place.why:
        yield f"    not in Athanor's own folder: {place.why}"
    if status.get("state") != "ready":
        said = status.get("sentence") or f"it was at: {status.get('doing', 'its beginning')}"
        began = time.strftime("%Y-%m-%d %H:%M", time.localtime(status.get("began", 0)))
        problems.append(f"the trainers' environment ({began}): {said} Its log is {place.log}; the tab can repair it.")
        return
    stamp = read_json(place.folder / "athanor-setup.json") or {}
    files = [file for name in stamp.get("lists", []) if (file := root / "requirements" / name).is_file()]
    yield from packages_of([Path(word) for word in status.get("interpreter", [])], files, place.folder, problems)


def packages_of(command: list[Path], files: list[Path], folder: Path, problems: list[str]) -> Iterator[str]:
    """Which package an environment takes from where; what is wrong with one goes to `problems`."""
    try:
        found = look(command, files, folder)
    except SetupError as error:
        problems.append(f"{error.sentence.rstrip('.')}, and start the WebUI again or press Repair in the tab.")
        yield from (f"    {line}" for line in error.tail.splitlines())
        return
    for place in dict.fromkeys(package.place for package in found):
        there = ", ".join(f"{one.name} {one.version}" for one in found if one.place == place and one.version)
        if place:
            yield f"    from {place}: {there}"
    wrong = [package.complaint for package in found if package.complaint]
    problems += [f"{complaint} Press Repair in the tab, or delete {folder}." for complaint in wrong]
