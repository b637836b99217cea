"""Which method should I use: the methods as a table, for a goal, a number of pictures and a graphics card's memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from extension.composing import Recipe, Wish, compose, family_of, is_toy, methods
from extension.jobs import estimates
from extension.recipes import Base


@dataclass(frozen=True)
class Question:
    """What a person says of their plan.

    Attributes:
        memory: GB of the graphics card; None where that does not matter (trained on the processor) or is not known.
        pictures: how many there are; None while that is not known.
        device: "cuda:1", "cpu", …: what is trained on.
    """

    base: Base
    purpose: str
    pictures: int | None = None
    memory: int | None = None
    device: str = "cpu"


def answer(question: Question, runs: Path) -> list[dict[str, Any]]:
    """A row for each method, the one that is advised first, older ones last.

    Each has `name`, `title`, `about`, `output`, `older`, `bytes` (of the file), `gigabytes` (of memory), `pictures`
    (fewest, enough), `seconds` with `measured`, `advised`, and `against`: why it will not do, as (text, numbers).
    """
    rows = [_row(name, facts, question, runs) for name, facts in methods().items()]
    rows.sort(key=lambda row: (row["older"], bool(row["against"]), -row["score"]))
    if rows and not rows[0]["against"] and not rows[0]["older"]:
        rows[0]["advised"] = True
    return rows


def _row(name: str, facts: dict[str, Any], question: Question, runs: Path) -> dict[str, Any]:
    family = family_of(question.base)
    fewest, enough = facts["pictures"]
    gigabytes = facts["memory"][family]
    against: list[tuple[str, list[Any]]] = []
    if question.pictures is not None and question.pictures < fewest:
        against.append(("needs at least {0} pictures", [fewest]))
    if question.memory is not None and question.memory < gigabytes:
        against.append(("needs about {0} GB of graphics memory", [round(gigabytes)]))
    recipe = compose(Wish(question.base, question.purpose, method=name, memory=question.memory))
    seconds, run = time_of(recipe, question.base, question.device, runs)
    return {
        "name": name,
        **{key: facts[key] for key in ("title", "about", "output")},
        "older": bool(facts.get("older")),
        "bytes": facts["size"][family] if not is_toy(question.base) else None,
        "gigabytes": gigabytes if not is_toy(question.base) else None,
        "pictures": [fewest, enough],
        "score": facts["score"].get(question.purpose, 0),
        "seconds": seconds,
        "measured": bool(run),
        "advised": False,
        "against": against,
    }


def time_of(recipe: Recipe, base: Base, device: str, runs: Path) -> tuple[float | None, str]:
    """(seconds that a recipe takes on a base, the run that measured it or "")."""
    values = recipe.values
    if not values.get("steps"):
        return None, ""
    family = family_of(base)
    side = estimates.side_for(family, values.get("resolution"), base.side)
    kind = estimates.Kind(family, str(values["method"]), device, base.parameters)
    per_step, run = estimates.seconds_per_step(kind, estimates.work(side, values), runs)
    return (round(per_step * values["steps"], 1), run) if per_step else (None, "")
