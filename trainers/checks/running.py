"""What is looked at from the first step on: figures of the run in, a finding or nothing out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trainers.checks.finding import STOP, WARN, Finding

WRONG_PREDICTION, MOST_UNEXPLAINED = 1.5, 0.5
LEAST_DECIBELS = 20.0
SPILL_TIMES, SPILL_SHARE = 5.0, 0.95
WORSE, WORSE_TIMES = 1.03, 3
PRIOR_WARN, PRIOR_STOP = 1.05, 1.15
LARGEST_DELTA = 2.5
LEAST_CHANGE = 2 / 255
SHARE_UNTIL_LEARNED = 0.1
_NAMES = {"epsilon": "v", "v": "epsilon"}


def prediction(declared: str, declared_loss: float, other_loss: float, unexplained: float) -> Finding | None:
    """Before the first step: the base's loss under what it is said to predict, and under the other kind.

    Args:
        unexplained: share of the other kind's target that the base does not predict; near 1 for a model that predicts
            neither (an untrained one), about which nothing is said.
    """
    if not declared_loss > WRONG_PREDICTION * other_loss or unexplained > MOST_UNEXPLAINED:
        return None
    return Finding(
        "base", STOP, f"As a model of {declared} prediction the base is off by {declared_loss:.2f}, as one of "
        f"{_NAMES[declared]} prediction by {other_loss:.2f}: it is of the other kind.", (),
        f"Set prediction: {_NAMES[declared]}.",
    )  # fmt: skip


def round_trip(decibels: float, precision: str) -> Finding | None:
    """While pictures are prepared: how well the autoencoder gives a picture back (PSNR)."""
    if decibels >= LEAST_DECIBELS:
        return None
    half = precision != "fp32"
    return Finding(
        "vae", WARN, f"The autoencoder gives a picture back with {decibels:.0f} dB in {precision}; "
        f"{LEAST_DECIBELS:.0f} and more are usual." + (" It goes on in fp32." if half else ""), (),
        "" if half else "Is it the right one for this model? Name another with vae.",
    )  # fmt: skip


def spill(seconds: float, usual: float, allocated: float) -> Finding | None:
    """A step that takes far longer than those before it while the memory is full: the driver moves memory to the
    computer's own.

    Args:
        seconds: of the last few steps, the fastest.
        usual: median of the first steps.
        allocated: share of the device's memory in use, by all programs.
    """
    if allocated < SPILL_SHARE or seconds < SPILL_TIMES * usual:
        return None
    return Finding(
        "memory", STOP, f"Steps take {seconds / usual:.0f} times as long as the first ones and {allocated:.0%} of the "
        "memory is in use: it spills into the computer's own.", (),
        "Close other programs and resume, or run it again with gradient_checkpointing: on or base_dtype: fp8.",
    )  # fmt: skip


def burnt(losses: Sequence[tuple[int, float]]) -> Finding | None:
    """The held-out loss, (step, loss) of each measurement: worse than its best three times since."""
    if not losses:
        return None
    best_step, best = min(losses, key=lambda each: each[1])
    worse = [step for step, loss in losses if step > best_step and loss > WORSE * best]
    if len(worse) < WORSE_TIMES:
        return None
    return Finding(
        "learning", WARN, f"It is learning by heart: the held-out loss was best at step {best_step} and more than "
        f"{WORSE - 1:.0%} worse {len(worse)} times since.", (), f"Use what was saved near step {best_step}.",
    )  # fmt: skip


def forgetting(
    step: int, prior: float, base_prior: float, is_toy: bool = False, options: Mapping[str, Any] | None = None
) -> Finding | None:
    """The loss on unrelated pictures, beside the untrained base's; a toy has no room to spare, so nothing is red.

    Args:
        options: the job's, so that nothing is advised that it does already.
    """
    if not base_prior or prior <= PRIOR_WARN * base_prior:
        return None
    is_bad = prior > PRIOR_STOP * base_prior and not is_toy
    return Finding(
        "learning", STOP if is_bad else WARN, f"At step {step} the model has forgotten: pictures of other things are "
        f"{prior / base_prior - 1:.0%} further off than with the base.", (),
        _what_keeps(options or {}),
    )  # fmt: skip


def _what_keeps(options: Mapping[str, Any]) -> str:
    """What holds a model to what it knew, without what the job does already."""
    if not options.get("regularisation_data") and not options.get("class_pictures"):
        return "A lower learning_rate, fewer steps, or regularisation pictures keep what it knew."
    if options.get("prior_target") == "noise" and options.get("method") != "dreambooth":
        return "A lower learning_rate, fewer steps, a higher prior_weight, or prior_target: base keep what it knew."
    return "A lower learning_rate, fewer steps, or a higher prior_weight keep what it knew."


def nothing_changed(step: int) -> Finding:
    """After a tenth of the steps nothing differs from the start."""
    return Finding(
        "learning", STOP, f"After {step} steps nothing was learned: what is trained is as it was at the start.", (),
        "Look at learning_rate, block_lrs and precision.",
    )  # fmt: skip


def delta(norm: float, site: str) -> Finding | None:
    """The largest change of a layer's weight (Frobenius norm, scale included)."""
    if norm <= LARGEST_DELTA:
        return None
    return Finding(
        "rate", WARN, f"The change at {site} has a norm of {norm:.1f}; over {LARGEST_DELTA:g} pictures are usually "
        "burnt.", (), "Lower learning_rate, or use it at a lower strength.",
    )  # fmt: skip


def pictures_alike(difference: float) -> Finding | None:
    """At the end: the mean difference (0 to 1) between the first and the last picture of a prompt and seed."""
    if difference >= LEAST_CHANGE:
        return None
    return Finding(
        "learning", WARN, f"Nothing was learned that shows: the same prompt and seed give the same picture "
        f"(difference {difference * 255:.1f} of 255).", (),
        "More steps or a higher learning_rate; is the trigger in it?",
    )  # fmt: skip
