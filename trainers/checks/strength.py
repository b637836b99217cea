"""How long and how strongly: the number of exposures and the learning rates."""

from __future__ import annotations

from collections.abc import Iterator

from trainers.checks.facts import JobFacts
from trainers.checks.finding import OK, WARN, Finding

LEAST_EXPOSURES, MOST_EXPOSURES, MOST_PER_PICTURE = 1_000, 12_000, 500
PRODIGY = (0.3, 1.5)
HIGHEST_RATE = {
    ("lora", "sd1"): 5e-4, ("lora", "sd2"): 5e-4, ("lora", "sdxl"): 3e-4,
    ("dreambooth", "sd1"): 1e-5, ("dreambooth", "sd2"): 1e-5, ("dreambooth", "sdxl"): 5e-6,
    ("textual_inversion", "sd1"): 2e-2, ("textual_inversion", "sd2"): 2e-2, ("textual_inversion", "sdxl"): 2e-2,
    ("hypernetwork", "sd1"): 1e-4, ("hypernetwork", "sd2"): 1e-4, ("hypernetwork", "sdxl"): 1e-4,
}  # fmt: skip
_ADAM = ("adamw", "adamw8bit", "schedulefree")


def dose(facts: JobFacts) -> Iterator[Finding]:
    """The pictures are shown often enough, and not too often."""
    shown, number = facts.exposures, max(1, len(facts.pictures))
    each = shown / number
    if facts.options.get("method") == "lora" and not facts.is_toy:
        if shown < LEAST_EXPOSURES:
            text = f"{shown:,} exposures; a LoRA usually takes {LEAST_EXPOSURES:,} to {MOST_EXPOSURES:,}."
            yield Finding("dose", WARN, text, (), "More steps; with fewer it may not have learned it.")
        elif shown > MOST_EXPOSURES:
            text = f"{shown:,} exposures; a LoRA is usually done after {MOST_EXPOSURES:,}."
            yield Finding("dose", WARN, text, (), "Fewer steps, or hold some pictures out to see when it turns worse.")
    if each > MOST_PER_PICTURE:
        text = f"Every picture is shown {each:,.0f} times; over {MOST_PER_PICTURE} they are learned by heart."
        yield Finding("dose", WARN, text, (), "Fewer steps, or more pictures.")
    if each < 1:
        text = f"Only {shown} of {number} pictures are shown at all before the run ends."
        yield Finding("dose", WARN, text, (), "More steps.")
    usual = facts.is_toy or facts.options.get("method") != "lora" or LEAST_EXPOSURES <= shown <= MOST_EXPOSURES
    if usual and 1 <= each <= MOST_PER_PICTURE:
        yield Finding("dose", OK, f"{shown:,} exposures, about {each:,.0f} of each picture.")


def rate(facts: JobFacts) -> Iterator[Finding]:
    """The learning rates are in the usual range."""
    options = facts.options
    value, optimizer = options.get("learning_rate"), options.get("optimizer")
    if facts.is_toy:
        yield Finding("rate", OK, "The base is a small one: the usual rates of real models say nothing about it.")
        return
    found = list(_too_high(facts, float(value or 0), str(optimizer)))
    text_rate = options.get("text_encoder_lr") if options.get("train_text_encoder") else None
    if text_rate and value and float(text_rate) > float(value):
        text = f"The text encoder's rate ({text_rate:g}) is above the UNet's ({value:g})."
        advice = "A quarter of the UNet's is usual; the text encoder is the first part to be burnt."
        found.append(Finding("rate", WARN, text, (), advice))
    yield from found
    if not found:
        yield Finding("rate", OK, f"Learning rate {float(value or 0):g} with {optimizer}: usual.")


def _too_high(facts: JobFacts, value: float, optimizer: str) -> Iterator[Finding]:
    if optimizer == "prodigy":
        low, high = PRODIGY
        if not low <= value <= high:
            text = f"Prodigy finds the rate itself and takes a factor near 1; {value:g} is far from it."
            yield Finding("rate", WARN, text, (), "Set learning_rate: 1.")
        return
    key = (str(facts.options.get("method")), str(facts.options.get("family")))
    limit = HIGHEST_RATE.get(key)
    if limit and optimizer in _ADAM and value > limit:
        text = (
            f"Learning rate {value:g} is above {limit:g}, where {key[0].replace('_', ' ')} on {key[1]} usually burns."
        )
        yield Finding("rate", WARN, text, (), "Lower it, or leave it empty for the usual one.")
