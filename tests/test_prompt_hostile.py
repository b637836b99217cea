"""Inputs made to break a parser, and proof that nothing in the grammar can evaluate anything."""

from __future__ import annotations

import ast
import json
import math
import sys
import time
import unicodedata
from itertools import pairwise
from pathlib import Path

import pytest

import extension.prompt
from extension.prompt import constant_weights, effective, format_tag, nearest, parse_batch, parse_prompt, resolve

HOSTILE = Path(__file__).parent / "data" / "hostile_prompts.txt"
PACKAGE = Path(extension.prompt.__file__).parent


def hostile_prompts() -> list[str]:
    lines = HOSTILE.read_text(encoding="ascii").splitlines()
    return [written_out(json.loads(line)) for line in lines if not line.startswith("#")]


def written_out(value: str | list) -> str:
    if isinstance(value, str):
        return value
    return "".join(piece if isinstance(piece, str) else piece[0] * piece[1] for piece in value)


def test_every_hostile_prompt_is_read_or_refused_in_words():
    prompts = hostile_prompts()
    assert len(prompts) > 200
    for text in prompts:
        began = time.process_time()
        parsed = parse_prompt(text)
        assert time.process_time() - began < 0.5, text[:80]
        for error in parsed.errors:
            assert text[error.start : error.end] in error.text or error.text in text
            assert not any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in error.message)
            assert "\u202e" not in error.message
            assert len(error.message) < 400
        for tag in parsed.tags:
            assert all(math.isfinite(weight) for weight in effective(tag, 3, 20))
            assert parse_prompt(format_tag(tag)).tags[0].name == tag.name


def test_all_of_them_together_and_in_pairs():
    prompts = hostile_prompts()
    short = [text for text in prompts if len(text) < 100]
    parse_prompt("".join(prompts))
    parse_prompt(" AND ".join(prompts))
    parse_batch(prompts, [" ".join(short)])
    for first, second in pairwise(short):
        parse_prompt(first + second)


@pytest.mark.parametrize("number", ["nan", "-nan", "inf", "-Infinity", "1e400", "NaN", "+inf", "infinity"])
def test_numbers_that_are_none_never_reach_a_layer(number):
    for text in (f"<lora:x:{number}>", f"<lora:x:te={number}>", f"<lora:x:{number}@0,1@1>", f"<lora:x:1@0,1@{number}>"):
        parsed = parse_prompt(text)
        assert parsed.tags == () and "not a finite number" in parsed.errors[0].message


def test_names_reach_no_path():
    listed = {"cat": "/loras/cat.safetensors"}
    for text in hostile_prompts():
        for tag in parse_prompt(text).tags:
            assert resolve(tag.name, listed) is None
    tag = parse_prompt("<lora:cat>").tags[0]
    assert resolve(tag.name, listed) == "cat" and constant_weights(tag) == (1.0, 1.0)


def test_suggestions_take_bounded_time():
    known = [f"style {index} by artist {index % 97}" for index in range(3000)]
    began = time.process_time()
    nearest("x" * 1_000_000, known)
    nearest("style 1234 by artst", known)
    assert time.process_time() - began < 5.0


def modules() -> list[tuple[str, ast.Module]]:
    return [(path.name, ast.parse(path.read_text(encoding="utf-8"))) for path in sorted(PACKAGE.glob("*.py"))]


FORBIDDEN = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "getattr",
    "globals",
    "open",
    "import_module",
    "literal_eval",
    "system",
}


def test_nothing_in_the_grammar_evaluates():
    for name, tree in modules():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                called = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
                is_regex = isinstance(node.func, ast.Attribute) and ast.unparse(node.func) == "re.compile"
                assert called not in FORBIDDEN or is_regex, f"{name}: {ast.unparse(node)}"
            elif isinstance(node, ast.Name):
                assert node.id not in FORBIDDEN, name


def test_the_grammar_needs_only_the_standard_library():
    for name, tree in modules():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                imported = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                imported = [node.module or ""]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 1, f"{name} reaches outside the package"
                continue
            else:
                continue
            for module in imported:
                assert module.partition(".")[0] in sys.stdlib_module_names, f"{name} imports {module}"
                assert module.partition(".")[0] not in {"os", "subprocess", "importlib", "pickle", "pathlib"}, name
