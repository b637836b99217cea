"""The base model, its autoencoder and the memory, as far as they are known before anything is loaded."""

from __future__ import annotations

import re
from collections.abc import Iterator

from trainers.checks.facts import JobFacts
from trainers.checks.finding import OK, WARN, Finding

_DISTILLED = re.compile(r"(?i)(?<![a-z])(turbo|lightning|lcm|hyper-?sdx?l?|dmd2?|hypersd)(?![a-z])")


def base(facts: JobFacts) -> Iterator[Finding]:
    """A base that can be taught, read as the host reads it."""
    found = False
    if distilled := _DISTILLED.search(facts.base_name):
        found = True
        yield Finding(
            "base", WARN, f"{facts.base_name} looks like a distilled model ({distilled.group(1)}): training undoes "
            "what makes it fast.", (), "Train on the model it was made from, and use the result with both.",
        )  # fmt: skip
    host, ours = facts.host_clip_skip, facts.options.get("clip_skip")
    if host is not None and ours is not None and host != ours and facts.options.get("family") != "sdxl":
        found = True
        yield Finding(
            "base", WARN, f"Clip skip is {ours} here and {host} in the WebUI.", (),
            f"Set clip_skip: {host}, or the WebUI's to {ours}: what is learned under one fits the other badly.",
        )  # fmt: skip
    if not found:
        kind = f"{facts.options.get('prediction')} prediction"
        yield Finding("base", OK, f"{facts.base_name}, {kind}; measured again before the first step.")


def vae(facts: JobFacts) -> Iterator[Finding]:
    """Looked at while pictures are prepared."""
    yield Finding("vae", OK, "Two pictures are drawn back by the autoencoder before training; fp32 is taken by itself.")


def memory(facts: JobFacts) -> Iterator[Finding]:
    """The memory plan fits."""
    plan = facts.memory
    if plan and not plan.get("fits", True):
        yield Finding(
            "memory", WARN, f"This may not fit: {plan['peak'] / 2**30:.1f} GiB are expected and "
            f"{(plan.get('free') or 0) / 2**30:.1f} are free.", (),
            "Lower resolution, batch_size or rank, or close other programs.",
        )  # fmt: skip
    else:
        yield Finding("memory", OK, "The memory plan fits; steps that spill are noticed.")


def learning(facts: JobFacts) -> Iterator[Finding]:
    """Looked at while the run is measured."""
    if facts.options.get("validation_data") or facts.held_out:
        yield Finding("learning", OK, "Held-out pictures tell when it gets worse.")
    else:
        yield Finding(
            "learning", OK, "No pictures are held out, so learning by heart cannot be measured; nothing learned can.",
        )  # fmt: skip
