"""X/Y/Z plot: an axis for the weight of LoRAs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from extension.prompt import ADAPTER_KINDS, Curve, Tag, format_tag, parse_prompt
from extension.prompt.formatting import format_number

LABEL = "[Athanor] LoRA weight"
PROMPTS = ("prompt", "negative_prompt", "hr_prompt", "hr_negative_prompt")


def read_value(text: str) -> tuple[str | None, float]:
    """`0.8` for all tags, `name:0.8` (or `name=0.8`) for those of one file.

    Raises:
        ValueError: it is neither.
    """
    name, separator, number = text.strip().replace("=", ":").rpartition(":")
    return (name.strip() if separator else None), float(number)


def with_weight(prompt: str, name: str | None, weight: float) -> str:
    """The prompt with this weight in its tags, everything else of a tag as it was."""
    for tag in reversed(parse_prompt(prompt).tags):
        if tag.kind in ADAPTER_KINDS and (name is None or tag.name.strip() == name):
            prompt = prompt[: tag.span[0]] + _weighted(tag, weight) + prompt[tag.span[1] :]
    return prompt


def _weighted(tag: Tag, weight: float) -> str:
    curve = Curve.flat(weight)
    try:
        return format_tag(replace(tag, te=curve, unet=curve, hires=None))
    except ValueError:
        return f"<{tag.kind}:{tag.name}:{format_number(weight)}>"


def apply(p: Any, value: str, values: list[str]) -> None:
    """Sets the weight in the prompts of one picture of the plot."""
    name, weight = read_value(value)
    for field in PROMPTS:
        text = getattr(p, field, None)
        if isinstance(text, str) and text:
            setattr(p, field, with_weight(text, name, weight))


def confirm(p: Any, values: list[str]) -> None:
    """Says before anything is drawn that a value cannot be read."""
    for value in values:
        try:
            read_value(value)
        except ValueError:
            raise RuntimeError(f'{LABEL}: "{value}" is neither a number nor name:number.') from None


def add_axis(scripts_data: list[Any]) -> None:
    """Adds the axis to the plot's script; does nothing where that is absent or has the axis."""
    for entry in scripts_data:
        if entry.script_class.__module__ not in ("xyz_grid.py", "scripts.xyz_grid"):
            continue
        make: Callable[..., Any] = entry.module.AxisOption
        if all(option.label != LABEL for option in entry.module.axis_options):
            entry.module.axis_options.append(make(LABEL, str, apply, confirm=confirm))
