"""What a check says."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

OK, WARN, STOP = "ok", "warn", "stop"
_ORDER = {STOP: 0, WARN: 1, OK: 2}
_MOST_PICTURES = 500


@dataclass(frozen=True)
class Finding:
    """One sentence of one check.

    Attributes:
        id: the check's name, as `override_checks` takes it.
        severity: "stop" (red: the run is held back), "warn" or "ok".
        text: what was found.
        pictures: which pictures it is about, by their path below the data folder.
        what_to_do: how to mend it; empty where nothing has to be.
        overridden: it is red, and the person said to go on all the same.
    """

    id: str
    severity: str
    text: str
    pictures: tuple[str, ...] = ()
    what_to_do: str = ""
    overridden: bool = False

    @property
    def holds_back(self) -> bool:
        return self.severity == STOP and not self.overridden

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "pictures": list(self.pictures[:_MOST_PICTURES])}

    def line(self) -> str:
        """For a terminal."""
        mark = {OK: "ok  ", WARN: "warn", STOP: "STOP"}[self.severity]
        again = " (you said to go on all the same)" if self.overridden else ""
        advice = f" {self.what_to_do}" if self.what_to_do and self.severity != OK else ""
        return f"[{mark}] {self.id}: {self.text}{advice}{again}"

    def refusal(self) -> str:
        """The one sentence that a run is refused with."""
        advice = f" {self.what_to_do}" if self.what_to_do else ""
        return f"{self.id}: {self.text}{advice} To train all the same, set override_checks: {self.id}."


def overridden(findings: Iterable[Finding], ids: Iterable[str]) -> list[Finding]:
    """The findings, red ones of the checks named by `ids` marked as overridden; the worst first."""
    ids = set(ids)
    marked = [replace(each, overridden=each.severity == STOP and each.id in ids) for each in findings]
    return sorted(marked, key=lambda each: (_ORDER[each.severity], each.overridden))
