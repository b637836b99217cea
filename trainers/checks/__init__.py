"""The twelve checks: what most often ruins a run, looked for before it starts and while it trains.

Every check is a pure function of facts that gives findings. A new one is a function and a line in `BEFORE`, with its
name in `trainers.options.CHECKS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from trainers.checks import model, pictures, strength, words
from trainers.checks.facts import JobFacts, job_facts
from trainers.checks.finding import OK, STOP, WARN, Finding, overridden
from trainers.errors import InputError

__all__ = ["BEFORE", "OK", "STOP", "WARN", "Finding", "JobFacts", "before_start", "job_facts", "require"]

BEFORE: dict[str, Callable[[JobFacts], Iterator[Finding]]] = {
    "captions": words.captions,
    "trigger": words.trigger,
    "amount": pictures.amount,
    "quality": pictures.quality,
    "buckets": pictures.buckets,
    "sameness": pictures.sameness,
    "dose": strength.dose,
    "rate": strength.rate,
    "base": model.base,
    "vae": model.vae,
    "memory": model.memory,
    "learning": model.learning,
}


def before_start(facts: JobFacts) -> list[Finding]:
    """What every check says before a run, the worst first; red ones that the job overrides are marked so."""
    every = [finding for check in BEFORE.values() for finding in check(facts)]
    return overridden(every, facts.options.get("override_checks", ()))


def require(findings: Iterable[Finding]) -> None:
    """Raises `InputError` with one sentence for each red finding that is not overridden."""
    refusals = [finding.refusal() for finding in findings if finding.holds_back]
    if refusals:
        raise InputError(*refusals)
