"""The sentences that the trainers and our routes say to a person, as the templates that they are written as.

They come to the page as finished English texts, as in the command line and in logs. The page finds the template that a
sentence was made of (`javascript/athanor_said.js`) and shows its translation with the sentence's own values in it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

SPOKEN_IN = (
    "trainers/checks/*.py", "trainers/spec.py", "trainers/running.py", "trainers/data/dataset.py",
    "trainers/data/scan.py", "trainers/data/walk.py", "trainers/data/captions.py",
    "trainers/data/caption_files.py", "trainers/bases/detect.py", "trainers/bases/refusals.py",
    "trainers/engine/precision.py", "trainers/engine/optimizers.py", "trainers/engine/memory.py",
    "trainers/engine/loop.py", "trainers/engine/results.py", "trainers/engine/session.py", "trainers/engine/verdict.py",
    "trainers/engine/own_prior.py", "trainers/engine/best.py", "trainers/formats/recipe_png.py", "extension/*.py",
    "extension/jobs/*.py", "extension/pictures/*.py",
)  # fmt: skip
"""Where what a page shows most is said. What is told elsewhere stays English."""


PHRASES = (
    # what a run is doing
    "loading", "pictures read", "pictures prepared", "encoding captions", "texts", "drawing class pictures",
    "looking at pictures", "drawing the verdict sheet",
    # of pictures and folders
    "it is not a picture that can be read, or it is damaged", "for regularisation", "to train on",
    # why nobody attaches, and how a device is shared
    "DreamBooth changes the model's own weights, so it trains a copy", "the WebUI has another model loaded",
    "pictures of the class are drawn first, with a copy",
    "base_dtype asks for a base in 8 bits, which the WebUI's is not",
    "as you asked", "without a second copy, and you can go on drawing", "hand the model over", "train side by side",
    "the WebUI's model is not whole in memory", "a part of the WebUI's model is moved out of the card's memory",
    "memory of graphics cards cannot be shared between processes under WSL", "the WebUI has ended",
    "the WebUI has just loaded another model", "the WebUI runs another version of Athanor",
    # what was done when the memory did not suffice
    "pictures are encoded one by one", "the WebUI makes room", "gradient checkpointing was turned on",
    "the base is kept in 8 bits", "began again",
    "It goes on in fp32.",
)  # fmt: skip
"""Clauses and names that stand inside sentences, or for themselves."""

INSIDE = (
    "{0} pictures", "{0} captions", "{0} caption files", "{0} buckets", "{0} tokens", "{0} files", "{0} mask files",
    "{0} and {1} more", "it is damaged or cut short ({0})", "continued from step {0}", "epsilon prediction",
    "v prediction", ", unrelated pictures at {0} of the base's loss",
    "memory cannot be shared between processes on {0}", "by the signal {0}", "with exit status {0}",
    "batches of {0} became {1} times {2}, added up",
)  # fmt: skip
"""What values are made of: numbers with what they count, lists that are cut short, clauses with values of their own."""


def templates() -> list[str]:
    """Each sentence once, its values as {0}, {1}, … in their order."""
    files = [path for pattern in SPOKEN_IN for path in sorted(ROOT.glob(pattern))]
    found = [text for path in files for text in _in_file(path)]
    return list(dict.fromkeys(found))


def _in_file(path: Path) -> Iterator[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = {id(part) for node in ast.walk(tree) for part in _silent(node)}
    for node in ast.walk(tree):
        if id(node) not in skipped and (text := _template(node)) and _is_sentence(text):
            yield text


def _silent(node: ast.AST) -> Iterator[ast.AST]:
    """What is no text for a person: docstrings, the pieces of an f-string, and what is looked for in other texts."""
    if isinstance(node, ast.Expr):
        yield node.value
    elif isinstance(node, ast.JoinedStr):
        yield from (part for part in node.values if isinstance(part, ast.Constant))


def _template(node: ast.AST) -> str:
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if not isinstance(node, ast.JoinedStr):
        return ""
    number, text = 0, ""
    for part in node.values:
        if isinstance(part, ast.Constant):
            text += part.value
        else:
            text += f"{{{number}}}"
            number += 1
    return text


def _is_sentence(text: str) -> bool:
    """Whole sentences only: no pieces of them, no lines of a terminal."""
    is_whole = re.match(r"[\w{“\"]", text) and text[-1] in ".!?"
    return bool(is_whole and re.search(r"[a-z]{2,} .*[a-z]{2,}", text) and "\n" not in text)
