"""Which pictures make which batch: a pure function of the epoch's number, so that any step can be resumed alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trainers.buckets import Size
from trainers.data.picture import Picture
from trainers.rng import python_random


@dataclass(frozen=True)
class Sample:
    """One showing of a picture in an epoch."""

    picture: int  # position in the list of pictures
    repeat: int


def epoch_batches(
    pictures: Sequence[Picture], buckets: Sequence[Size], batch_size: int, seed: int, epoch: int
) -> list[list[Sample]]:
    """The epoch's global batches, each of one bucket; the last of a bucket may be smaller.

    Args:
        buckets: the bucket of each picture.
        batch_size: samples of one global batch (all processes together).

    Repeats of a picture are spread over the epoch. Regularisation pictures are as many as the others, evenly mixed
    in; where there are more of them, later epochs show the rest. The number of batches is the same in every epoch.
    """
    quotas = _regularisation_quotas(pictures, buckets)
    batches = []
    for size in sorted(set(buckets)):
        members = [number for number, bucket in enumerate(buckets) if bucket == size]
        taught = _spread(pictures, [n for n in members if not pictures[n].is_regularisation], seed, epoch)
        prior = _rotate(
            pictures, [n for n in members if pictures[n].is_regularisation], quotas.get(size, 0), seed, epoch
        )
        merged = _interleave(taught, prior)
        batches += [merged[start : start + batch_size] for start in range(0, len(merged), batch_size)]
    python_random(seed, "order of batches", epoch).shuffle(batches)
    return batches


def batches_per_epoch(pictures: Sequence[Picture], buckets: Sequence[Size], batch_size: int) -> int:
    counts = dict(_regularisation_quotas(pictures, buckets))
    for picture, bucket in zip(pictures, buckets, strict=True):
        if not picture.is_regularisation:
            counts[bucket] = counts.get(bucket, 0) + picture.repeats
    return sum(-(-count // batch_size) for count in counts.values())


def _spread(pictures: Sequence[Picture], members: list[int], seed: int, epoch: int) -> list[Sample]:
    """Every member `repeats` times: repeat k of r falls at random into the k-th of r parts of the epoch."""
    placed = []
    for number in members:
        repeats = pictures[number].repeats
        draw = python_random(seed, "order", epoch, pictures[number].key)
        placed += [((repeat + draw.random()) / repeats, number, repeat) for repeat in range(repeats)]
    return [Sample(number, repeat) for _, number, repeat in sorted(placed)]


def _regularisation_quotas(pictures: Sequence[Picture], buckets: Sequence[Size]) -> dict[Size, int]:
    """How many regularisation samples an epoch has per bucket: together as many as the others, in proportion.

    At least one per bucket, so that no picture is never seen.
    """
    taught = sum(picture.repeats for picture in pictures if not picture.is_regularisation)
    weights: dict[Size, int] = {}
    for picture, bucket in zip(pictures, buckets, strict=True):
        if picture.is_regularisation:
            weights[bucket] = weights.get(bucket, 0) + picture.repeats
    total = sum(weights.values())
    return {bucket: max(1, round(taught * weight / total)) for bucket, weight in weights.items()}


def _rotate(pictures: Sequence[Picture], members: list[int], quota: int, seed: int, epoch: int) -> list[Sample]:
    """The epoch's `quota` samples out of an endless sequence of shuffled rounds through the members."""
    if not members:
        return []
    pool = [number for number in members for _ in range(pictures[number].repeats)]
    samples, rounds = [], {}
    for position in range(epoch * quota, (epoch + 1) * quota):
        turn, place = divmod(position, len(pool))
        if turn not in rounds:
            rounds[turn] = python_random(seed, "regularisation", turn, pictures[members[0]].key).sample(pool, len(pool))
        samples.append(Sample(rounds[turn][place], position))
    return samples


def _interleave(first: list[Sample], second: list[Sample]) -> list[Sample]:
    """Both lists in their order, mixed evenly."""
    placed = [((number + 0.5) / len(first), 0, sample) for number, sample in enumerate(first)]
    placed += [((number + 0.5) / len(second), 1, sample) for number, sample in enumerate(second)]
    return [sample for _, _, sample in sorted(placed, key=lambda each: each[:2])]
