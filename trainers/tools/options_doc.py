"""Writes docs/options.md, the reference of every option, from the schema.

python -m trainers.tools.options_doc          writes the file
python -m trainers.tools.options_doc --check  says whether it is up to date (exit 1 when not)
"""

from __future__ import annotations

import sys
from pathlib import Path

from trainers.options import FIELDS, METHODS
from trainers.spec import BEGINNER, Field

TARGET = Path(__file__).resolve().parent.parent.parent / "docs" / "options.md"

_HEAD = """# Every option

This page is made from the schema by `python -m trainers.tools.options_doc`; do not edit it.

An option is given as `--set name=value` on the command line or as `name: value` in a job file. Lists are separated by
`|` on the command line, maps are written `mid=8,up_1=4`. *(b)* marks what a beginner may want to set; everything else
has a default that is meant to be left alone until there is a reason.
"""


def _shown_default(option: Field) -> str:
    if option.default is None:
        return "not set"
    if option.default in ("", [], {}):
        return "empty"
    if isinstance(option.default, bool):
        return "yes" if option.default else "no"
    return f"`{option.default}`"


def _shown_range(option: Field) -> str:
    if option.kind == "choice":
        return ", ".join(f"`{choice}`" for choice in option.choices)
    if option.kind == "bool":
        return "yes, no"
    if option.kind in ("int", "float"):
        low = "" if option.minimum is None else f"{option.minimum:.15g}"
        high = "" if option.maximum is None else f"{option.maximum:.15g}"
        unit = f" {option.unit}" if option.unit else ""
        kind = "whole number" if option.kind == "int" else "number"
        return f"{kind}, {low} to {high}{unit}"
    return {"path": "a path", "text": "a text", "list": "a list of texts", "map": "names with numbers"}[option.kind]


def _row(option: Field) -> str:
    mark = " *(b)*" if option.level == BEGINNER else ""
    only = [f"only for {', '.join(option.methods)}"] if option.methods and option.methods != METHODS else []
    only += [f"only for {', '.join(option.families)}"] if option.families else []
    text = option.help + (f" ({'; '.join(only)})" if only else "")
    cells = (f"`{option.name}`{mark}", _shown_range(option), _shown_default(option), text)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def document() -> str:
    """The whole page as Markdown."""
    lines = [_HEAD]
    group = None
    for option in FIELDS:
        if option.group != group:
            group = option.group
            lines += ["", f"## {group}", "", "| option | takes | default | what it does |", "|---|---|---|---|"]
        lines.append(_row(option))
    return "\n".join(lines).replace("\n\n\n", "\n\n") + "\n"


def main(arguments: list[str]) -> int:
    text = document()
    if "--check" in arguments:
        current = TARGET.read_text(encoding="utf-8") if TARGET.exists() else ""
        print("docs/options.md is " + ("up to date." if current == text else "outdated."))
        return 0 if current == text else 1
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(text, encoding="utf-8", newline="\n")
    print(f"Written: {TARGET}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
