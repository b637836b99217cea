"""Prompts that change during sampling, as A1111 reads them: `[a:b:0.5]`, `[b:5]`, `[a::5]` and `[a|b]`.

A prompt becomes a tree once; the text of a step is read off it. Everything that is not such a bracket stays as it is,
for `attention` to read.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

MAX_DEPTH = 40
_NUMBER = re.compile(r"\s*([+-]?(?:\d{1,9}\.?\d{0,9}|\.\d{1,9}))\s*")
_SPECIAL = re.compile(r"\\.|[\[\]():|]", re.DOTALL)


@dataclass
class Switch:
    """`[before:after:when]`: `when` as typed, steps or (with a point) a part of the run."""

    before: Sequence_
    after: Sequence_
    when: str

    def step(self, total: int, hires: bool, base_steps: int) -> int:
        """The number of steps after which `after` counts; the hires pass goes on counting where the first ended."""
        value = float(self.when)
        if "." in self.when:
            return int(max((value - (1.0 if hires else 0.0)) * total, 0))
        return int(max(value - (base_steps if hires else 0), 0))


@dataclass
class Alternation:
    """`[a|b]`: another one at every step."""

    options: list[Sequence_]


Sequence_ = list["str | Switch | Alternation"]


@dataclass
class _Open:
    """A bracket that is not closed yet: `parts` so far, and the separators between them."""

    kind: str
    parts: list[Sequence_] = field(default_factory=lambda: [[]])
    marks: str = ""


def _flat(opened: _Open, closing: str = "") -> Sequence_:
    """What stands in a bracket as ordinary text, brackets included."""
    result: Sequence_ = [opened.kind]
    for number, part in enumerate(opened.parts):
        if number:
            result.append(opened.marks[number - 1])
        result += part
    return [*result, closing]


def _closed(opened: _Open) -> Sequence_:
    """What a `[…]` means once it is closed."""
    parts, marks = opened.parts, opened.marks
    if opened.kind == "[" and marks and set(marks) == {"|"}:
        return [Alternation(parts)]
    last = parts[-1]
    number = _NUMBER.fullmatch("".join(last)) if all(isinstance(item, str) for item in last) else None
    if opened.kind == "[" and number and marks in (":", "::"):
        before = parts[0] if marks == "::" else []
        return [Switch(before, parts[-2], number.group(1))]
    return _flat(opened, "]" if opened.kind == "[" else ")")


def parse(text: str) -> Sequence_:
    """The tree of a prompt. Never raises: brackets that do not close, or nest too deep, are text."""
    stack = [_Open("")]
    position = 0
    for match in _SPECIAL.finditer(text):
        token = match.group(0)
        top = stack[-1]
        if match.start() > position:
            top.parts[-1].append(text[position : match.start()])
        position = match.end()
        if token in "[(" and len(stack) <= MAX_DEPTH:
            stack.append(_Open(token))
        elif token in "])" and top.kind == {"]": "[", ")": "("}[token]:
            closed = _closed(stack.pop())
            stack[-1].parts[-1] += closed
        elif token in ":|" and top.kind:
            top.marks += token
            top.parts.append([])
        else:
            top.parts[-1].append(token)
    stack[-1].parts[-1].append(text[position:])
    while len(stack) > 1:
        opened = stack.pop()
        stack[-1].parts[-1] += _flat(opened)
    return stack[0].parts[0]


def text_at(tree: Sequence_, step: int, total: int, hires: bool = False, base_steps: int = 0) -> str:
    """The text that counts for the step after `step` of `total` steps."""
    out: list[str] = []
    for item in tree:
        if isinstance(item, Switch):
            chosen = item.after if step >= item.step(total, hires, base_steps) else item.before
            out.append(text_at(chosen, step, total, hires, base_steps))
        elif isinstance(item, Alternation):
            out.append(text_at(item.options[step % len(item.options)], step, total, hires, base_steps))
        else:
            out.append(item)
    return "".join(out)


def changes(tree: Sequence_) -> bool:
    """Whether the text differs between steps."""
    return any(not isinstance(item, str) for item in tree)
