"""How many pictures there are, how good, how they are cut, and what they have in common besides the subject."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from trainers.checks.facts import JobFacts
from trainers.checks.finding import OK, STOP, WARN, Finding
from trainers.data.captions import has_trigger, tags_of
from trainers.data.picture import counted, first_few
from trainers.looks import far_softer, groups_of_alike, same_border

FEW, TOO_FEW, TOO_FEW_FOR_A_WORD = 10, 5, 3
REDUNDANT = 0.2
ENLARGED, ENLARGED_TOO_MUCH = 1.5, 2.0
CUT_OFF = 0.2
SAME_BORDER, SAME_TAG = 0.6, 0.9


def amount(facts: JobFacts) -> Iterator[Finding]:
    """Enough pictures, and not the same one many times."""
    number = len(facts.pictures)
    least = TOO_FEW_FOR_A_WORD if "vectors" in facts.options else TOO_FEW
    advice = "Add pictures: other places, light, distances and angles. A style needs 20 and more."
    if number < least:
        yield Finding("amount", STOP, f"{counted(number, 'picture')} to learn from; fewer than {least}.", (), advice)
    elif number < FEW:
        yield Finding(
            "amount", WARN, f"{counted(number, 'picture')} to learn from; {FEW} and more are better.", (), advice
        )
    measured = [picture for picture in facts.pictures if picture.looks]
    groups = groups_of_alike([picture.looks for picture in measured])
    copies = [measured[position].key for group in groups for position in group[1:]]
    if copies:
        severity = STOP if len(copies) > REDUNDANT * number else WARN
        first = ", ".join(f"{measured[group[1]].key} = {measured[group[0]].key}" for group in groups[:2])
        yield Finding(
            "amount", severity, f"{len(copies)} of {number} pictures are nearly the same as another ({first}).",
            tuple(copies), "Set copies aside: what is shown twice is learned twice as hard, with its accidents.",
        )  # fmt: skip
    if number >= FEW and not copies:
        yield Finding("amount", OK, f"{number} pictures, no two nearly the same.")


def quality(facts: JobFacts) -> Iterator[Finding]:
    """Pictures are large and sharp enough."""
    factors = {picture.key: picture.enlarged for picture in facts.pictures}
    for least, severity in ((ENLARGED_TOO_MUCH, STOP), (ENLARGED, WARN)):
        found = [key for key, factor in factors.items() if factor > least]
        if found:
            most = max(factors.values())
            yield Finding(
                "quality", severity,
                f"{counted(len(found), 'picture')} would be enlarged more than {least:g} times "
                f"(up to {most:.1f} times): {first_few(found)}.", tuple(found),
                "Use larger originals, lower resolution, or set upscale: false to keep them small; "
                "blurred pictures teach blur.",
            )  # fmt: skip
            break
    measured = [picture for picture in facts.pictures if picture.looks]
    soft = [measured[number].key for number in far_softer([picture.looks for picture in measured])]
    if soft:
        yield Finding(
            "quality", WARN, f"{counted(len(soft), 'picture')} far softer than the others: {first_few(soft)}.",
            tuple(soft), "Set them aside, or use sharp originals.",
        )  # fmt: skip
    if not soft and not any(factor > ENLARGED for factor in factors.values()):
        yield Finding("quality", OK, "All pictures are large and sharp enough.")


def buckets(facts: JobFacts) -> Iterator[Finding]:
    """Every picture is seen, in batches that are full enough, without losing much of it."""
    lost = [*facts.unseen, *(picture.key for picture in facts.pictures if picture.placement is None)]
    if lost:
        yield Finding(
            "buckets", STOP, f"{counted(len(lost), 'picture')} would never be shown: {first_few(lost)}.", tuple(lost),
            "Their folder says 0 repeats, or they are too small while upscale is off; change that, or take them out.",
        )  # fmt: skip
    counts: Counter[tuple[int, int]] = Counter()
    for picture in facts.pictures:
        if picture.placement:
            counts[picture.placement.bucket] += picture.repeats
    starved = {bucket for bucket, number in counts.items() if number < facts.batch_size / 2}
    hungry = tuple(p.key for p in facts.pictures if p.placement and p.placement.bucket in starved)
    if starved:
        names = first_few(f"{width} x {height}" for width, height in sorted(starved))
        yield Finding(
            "buckets", WARN, f"{counted(len(starved), 'bucket')} with less than half a batch of {facts.batch_size}: "
            f"{names}.", hungry,
            "Crop these pictures to a common shape, use a smaller batch_size, or turn buckets off."
            if len(counts) > 1
            else "Use a smaller batch_size, or add pictures.",
        )  # fmt: skip
    cut = tuple(picture.key for picture in facts.pictures if picture.cut_off > CUT_OFF)
    if cut:
        yield Finding(
            "buckets", WARN, f"{counted(len(cut), 'picture')} lose more than a fifth at the edges: {first_few(cut)}.",
            cut, "Crop them yourself to what matters, or turn buckets on.",
        )  # fmt: skip
    if not lost and not starved and not cut:
        shapes = counted(len(counts), "bucket")
        yield Finding("buckets", OK, f"All pictures fit into {shapes}.")


def sameness(facts: JobFacts) -> Iterator[Finding]:
    """The subject is shown before different things, so that they are not learned with it."""
    number = len(facts.pictures)
    measured = [picture for picture in facts.pictures if picture.looks]
    same = same_border([picture.looks for picture in measured])
    plain = number >= TOO_FEW and len(same) > SAME_BORDER * number
    if plain:
        red, green, blue = measured[same[0]].looks.border
        yield Finding(
            "sameness", WARN, f"{len(same)} of {number} pictures have the same background (about #{red:02x}{green:02x}"
            f"{blue:02x}): it may fuse with the trigger.", tuple(measured[each].key for each in same),
            "Show the subject in other places too, or name the background in the captions.",
        )  # fmt: skip
    tags = _common_tags(facts)
    if tags:
        yield Finding(
            "sameness", WARN, f"In nearly all captions: {first_few(f'“{tag}”' for tag in tags)}; it may fuse with the "
            "trigger.", (), "Leave out what always belongs to the subject, and show the rest in only some pictures.",
        )  # fmt: skip
    if not plain and not tags:
        yield Finding("sameness", OK, "Backgrounds and tags vary.")


def _common_tags(facts: JobFacts) -> list[str]:
    """Tags of more than nine in ten captions, without the trigger; where there is none, without the first tag."""
    trigger = str(facts.options.get("trigger", "")).strip()
    written = [tags_of(picture.caption) for picture in facts.pictures if picture.caption]
    if len(written) < TOO_FEW:
        return []
    counts = Counter(tag for tags in written for tag in dict.fromkeys(tag.lower() for tag in tags))
    common = [tag for tag, number in counts.most_common() if number > SAME_TAG * len(written)]
    if trigger:
        return [tag for tag in common if not has_trigger(tag, trigger)]
    first = written[0][0].lower() if written[0] else ""
    return [tag for tag in common if tag != first]
