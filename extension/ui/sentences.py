"""The sentences that the trainers and our routes say to a person, as the templates that they are written as.

They come to the page as finished English texts, as in the command line and in logs. The page finds the template that a
sentence was made of (`javascript/athanor_said.js`) and shows its translation with the sentence's own values in it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

SPOKEN_IN = (
    "trainers/**/*.py", "extension/*.py", "extension/jobs/*.py", "extension/pictures/*.py", "extension/injection/*.py",
    "extension/hosts/*.py", "extension/hosts/embedded/*.py",
    "installer/environment.py", "installer/host.py", "installer/lock.py", "installer/packages.py",
)  # fmt: skip
"""Where what the tab shows is said. What is told elsewhere stays English: by commands, in infotexts, in logs."""

NOT_SHOWN = (
    "trainers/cli.py", "trainers/demo/*.py", "trainers/tools/options_doc.py", "extension/hosts/embedded/server.py",
)  # fmt: skip
"""Files among them that speak in a terminal only."""

CLAUSES_IN = (
    "trainers/bases/refusals.py", "trainers/bases/live.py", "trainers/bases/live_trial.py", "trainers/encodings.py",
    "trainers/data/caption_files.py", "trainers/data/images.py", "trainers/data/index.py",
    "trainers/data/toml_config.py", "trainers/engine/attached.py", "trainers/engine/finite.py",
    "trainers/engine/loop.py", "trainers/formats/live_tensors.py", "trainers/formats/pickles.py",
    "trainers/formats/safetensors_io.py", "trainers/spec.py", "extension/hosts/lease.py",
    "extension/hosts/a1111_lease.py", "extension/hosts/forge_lease.py", "extension/jobs/child.py",
    "extension/jobs/lease.py", "extension/jobs/less_memory.py", "extension/jobs/places.py",
    "extension/jobs/reasons.py", "extension/injection/plan.py", "installer/machine.py", "installer/problems.py",
)  # fmt: skip
"""Files whose clauses stand inside sentences, as the reason or as what a thing is."""


PHRASES = (
    # what a run or a set-up is doing
    "loading", "pictures read", "pictures prepared", "encoding captions", "texts", "drawing class pictures",
    "looking at pictures", "drawing the verdict sheet", "Installing the trainers' packages",
    "Checking that everything can be imported",
    # of pictures and folders
    "for regularisation", "to train on", "have no caption while others do", "a side in pixels, or [width, height]",
    "; write folders of Windows in single quotes: 'C:\\pictures'", "; remove it to train without it",
    # what an option takes
    "yes or no", "a list of texts (on the command line separated by |)",
    "names with numbers, such as {mid: 8, up_1: 4} (on the command line mid=8,up_1=4)",
    "a number, true or false, or none",
    # why nobody attaches, and how a device is shared
    "DreamBooth changes the model's own weights, so it trains a copy",
    "base_dtype asks for a base in 8 bits, which the WebUI's is not",
    "Stable Diffusion 1.x, 2.x and XL base models can be trained",
    "began again", "It goes on in fp32.", "this request cannot be read",
    "This WebUI runs in the trainers' environment; mend it with: python install.py demo",
    # on the embedded host's page
    "A tag in the negative prompt acts on the negative side only.", "All tags are explained in docs/tags.md.",
    "Draw with what you trained.", "Text to picture", "Picture to picture", "Starting", "Stretch",
    "Cut the edges off", "Extend the edges", "in the prompt", "what it does",
    "gives a word more weight", "gives it less", "uses a trained file at strength 0.8",
    "only from the middle of the run on", "growing over the run", "only in the left half of the picture",
    "a trained word at strength 0.8; its plain name means full strength",
    "a cat first, from the middle of the run on a dog", "both at once, each with its own say",
    # what is said before a reason
    "The WebUI could not draw it", "The trainers could not look at this job", "The verdict sheet could not be drawn",
)  # fmt: skip
"""Clauses and names that stand inside sentences, or for themselves, and are not found by themselves."""

INSIDE = (
    "{0} pictures", "{0} captions", "{0} caption files", "{0} buckets", "{0} tokens", "{0} files", "{0} mask files",
    "{0} metadata lines", "{0} and {1} more", "it is damaged or cut short ({0})", "epsilon prediction",
    "v prediction", ", unrelated pictures at {0} of the base's loss", "continued from step {0}",
    "memory cannot be shared between processes on {0}", "with exit status {0}", "exit status {0}", "by signal {0}",
    "read as {0}", "{0} vectors {1} wide", "{0} numbers, such as {1}", "{0} from {1} to {2}{3}",
    "have no readable caption (not text: {0})", "{0} files are not read; convert it to PNG or JPEG",
    "{0} x {1} is too small for a bucket while upscale is off", "; use {0} instead",
    " (step {0} of {1}: {2})", " ({0} are needed and {1} are free)", "the CUDA build ({0})",
    "Making an environment for Python {0}", "Installing {0}, {1}",
    "1 picture added", "{0} pictures added", "1 picture removed", "{0} pictures removed", "1 picture changed",
    "{0} pictures changed", "1 caption file added", "{0} caption files added", "1 caption file removed",
    "{0} caption files removed", "1 caption file changed", "{0} caption files changed",
    "Step {0} of {1}", "pass {0} of {1}", "about {0} s left", "{0} of {1} sites", "{0} ({1})", "{0}: {1}", "{0}.",
)  # fmt: skip
"""What values are made of: numbers with what they count, lists that are cut short, clauses with values of their own."""


def templates() -> list[str]:
    """Each sentence once, its values as {0}, {1}, … in their order; clauses as well, where they are looked for."""
    silent = set(_files(NOT_SHOWN))
    said = [text for path in _files(SPOKEN_IN) if path not in silent for text in _in_file(path, _is_sentence)]
    clauses = [text for path in _files(CLAUSES_IN) for text in _in_file(path, _is_clause)]
    return list(dict.fromkeys([*said, *clauses]))


def _files(patterns: Iterable[str]) -> list[Path]:
    return [path for pattern in patterns for path in sorted(ROOT.glob(pattern))]


def _in_file(path: Path, wanted: Callable[[str], bool]) -> Iterator[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = {id(part) for node in ast.walk(tree) for part in _silent(node)}
    for node in ast.walk(tree):
        if id(node) not in skipped and (text := template(node)) and wanted(text):
            yield text


def _silent(node: ast.AST) -> Iterator[ast.AST]:
    """What is no text for a person: docstrings, the pieces of an f-string, and what is looked for in other texts."""
    if isinstance(node, ast.Expr):
        yield node.value
    elif isinstance(node, ast.JoinedStr):
        yield from (part for part in node.values if isinstance(part, ast.Constant))


def template(node: ast.AST) -> str:
    """A text as it is written in a source, its values as {0}, {1}, …; empty where a node is none."""
    if isinstance(node, ast.Constant):
        return node.value.removeprefix(" ") if isinstance(node.value, str) else ""
    if not isinstance(node, ast.JoinedStr):
        return ""
    number, text = 0, ""
    for part in node.values:
        if isinstance(part, ast.Constant):
            text += part.value
        else:
            text += f"{{{number}}}"
            number += 1
    return re.sub(
        r"(?<=[.!?]) ?{\d+}$", "", text.removeprefix(" ")
    )  # what follows a full stop is a sentence of its own


def _is_sentence(text: str) -> bool:
    """Whole sentences only: no pieces of them, no lines of a terminal."""
    is_whole = re.match(r"[\w{“\"]", text) and text[-1] in ".!?"
    return bool(is_whole and re.search(r"[a-z]{2,} .*[a-z]{2,}", text) and "\n" not in text)


def _is_clause(text: str) -> bool:
    """Words of a language, without a full stop: no names of tensors, no texts that are looked for."""
    plain = re.sub(r"\([^()]*\)|\d\.x", "x", text)
    words = re.findall(r"[a-zA-Z]+", re.sub(r"{\d}", "", text))
    least = 2 if re.match(r"an? ", text) else 3
    return bool(re.fullmatch(r"[a-z{][^_.:|\\]*[\w}]", plain)) and len(words) >= least
