"""The one exception that stands for a person's mistake.

Everything that a person can mend (a misspelt option, a missing file, a damaged picture) is raised as `InputError`
and printed as plain sentences; every other exception is a fault of ours and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(Exception):
    """One or several plain sentences, each naming the file or field and what to do about it."""

    def __init__(self, *problems: str) -> None:
        super().__init__(*problems)
        self.problems: list[str] = list(problems)

    def __str__(self) -> str:
        return "\n".join(self.problems)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """` Did you mean "rank"?` for the known name nearest to `word`, or an empty string when none is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.55)
    return f' Did you mean "{near[0]}"?' if near else ""
