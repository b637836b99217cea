"""The texts of the page, and which of them have a translation.

    python -m extension.ui.texts [zh_CN]      lists the texts that `localizations/zh_CN.json` lacks

Texts are found where scripts call `t("…")`, in the schema of options, in the tables of `presets/compose/`, where
trainers and routes say a sentence (`sentences.py`), at the top of `presets/*.yaml`, and below in `SAID`.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from extension import composing
from extension.hosts.a1111_settings import TEXTS as SETTINGS
from extension.hosts.unfit import SENTENCES as REFUSALS
from extension.jobs.setup import SENTENCES
from extension.ui import sentences
from extension.ui.assets import ROOT, asset_files
from trainers.options import FIELDS
from trainers.presets import preset_names

LOCALIZATIONS = ROOT / "localizations"
_CALL = re.compile(r"\bt\(")
_TEXT = re.compile(r'"((?:[^"\\]|\\.)*)"')

SAID = (
    "needs at least {0} pictures", "needs about {0} GB of graphics memory", *SENTENCES.values(), *REFUSALS, *SETTINGS,
)  # fmt: skip
"""What `extension.choosing` has against a method; what is said of the trainers' environment and of a WebUI, and the
settings there."""


def page_texts() -> list[str]:
    """Every text, each once, in the order it is found."""
    found = [*_in_scripts(), *_in_schema(), *_in_tables(), *_in_own_page(), *SAID, *sentences.PHRASES]
    worded = [text for text in found if re.search("[A-Za-z]", text)]
    return list(dict.fromkeys([*worded, *sentences.INSIDE]))


def _in_scripts() -> Iterator[str]:
    for name, path in asset_files().items():
        if name.endswith(".js"):
            script = path.read_text(encoding="utf-8")
            for call in _CALL.finditer(script):
                for text in _first_argument(script, call.end()):
                    yield json.loads(f'"{text}"')
            yield from _tables_of_words(script)


def _first_argument(script: str, start: int) -> Iterator[str]:
    """The texts in the first argument of a call: one, or both sides of a choice."""
    depth, place = 0, start
    while place < len(script):
        text = _TEXT.match(script, place)
        if text:
            before = script[:place].rstrip()
            if depth == 0 and not before.endswith(("===", "!==", "[", "in")):
                yield text.group(1)
            place = text.end()
            continue
        letter = script[place]
        if letter in "([{":
            depth += 1
        elif letter in ")]}":
            if depth == 0:
                return
            depth -= 1
        elif letter == "," and depth == 0:
            return
        place += 1


_WORD_TABLE = re.compile(r"^  const ([A-Z_]+) = ([{\[].*?[}\]]);", re.MULTILINE | re.DOTALL)
_NO_WORDS = ("SENTENCES", "ICONS", "PARTS", "BASE_LISTS")
"""Tables of what is no text of the page: captions that are written, drawings, names."""


def _tables_of_words(script: str) -> Iterator[str]:
    """Texts in a script's tables of words (`const TITLES = {…}`), which are translated where they are shown."""
    for table in _WORD_TABLE.finditer(script):
        if table.group(1) not in _NO_WORDS:
            for text in _TEXT.finditer(table.group(2)):
                words = json.loads(f'"{text.group(1)}"')
                if table.group(1) == "WORDS" or re.match(r"[A-Z][a-z]|.* ", words):
                    yield words


def _in_schema() -> Iterator[str]:
    for option in FIELDS:
        yield from (option.name.replace("_", " "), option.help, option.group, option.unit)


def _in_tables() -> Iterator[str]:
    for name, keys in (
        ("purposes", ("title", "hint")),
        ("paces", ("title", "hint")),
        ("methods", ("title", "about", "output")),
    ):
        for row in composing.table(name).values():
            yield from (row[key] for key in keys)
    for row in composing.table("memory")["rows"]:
        yield from row.get("because", {}).values()
    yield "Fewer pictures are looked at in one step, because gradients are used up at once."


def said() -> list[str]:
    """What comes to the page as finished sentences: of trainers and routes, and what recipes say of themselves."""
    return list(dict.fromkeys([*sentences.templates(), *map(composing.about_preset, preset_names())]))


_OWN_PAGE = ROOT / "extension" / "hosts" / "embedded"
_NAMED = ("label", "info", "placeholder")
_SHOWING = ("Button", "Tab", "Accordion", "_side")


def _in_own_page() -> Iterator[str]:
    """What gradio is given to show on the embedded host's page, which has no translation by a WebUI."""
    for name in ("page.py", "page_form.py"):
        for node in ast.walk(ast.parse((_OWN_PAGE / name).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                given = [each.value for each in node.keywords if each.arg in _NAMED]
                if node.args and ast.unparse(node.func).removeprefix("gr.") in _SHOWING:
                    given.append(node.args[0])
                yield from (text for each in given if re.search("[a-z]", text := sentences.template(each)))


@cache
def localization(language: str) -> dict[str, Any]:
    """The texts of a language; empty where there is no file for it."""
    file = LOCALIZATIONS / f"{language}.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def languages() -> list[str]:
    """The languages that there are files for."""
    return sorted(path.stem for path in LOCALIZATIONS.glob("*.json"))


def missing(language: str) -> list[str]:
    """Texts without a translation; sentences, which come to the page as they are, at the end."""
    return [text for text in dict.fromkeys([*page_texts(), *said()]) if text not in localization(language)]


def main(words: list[str]) -> int:
    language = words[0] if words else "zh_CN"
    lacking = missing(language)
    for text in lacking:
        print(json.dumps(text, ensure_ascii=False))
    print(f"{len(lacking)} texts are not in {language}.", file=sys.stderr)
    return 1 if lacking else 0


def _main() -> None:
    sys.stdout.reconfigure(encoding="utf-8", errors="replace")
    sys.exit(main([word for word in sys.argv[1:] if Path(word).name == word]))


if __name__ == "__main__":
    _main()
