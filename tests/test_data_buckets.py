"""Every picture finds a bucket near its shape, at every resolution, and the cut covers it."""

import pytest
from data_helpers import job_for
from hypothesis import given, settings
from hypothesis import strategies as st

from trainers.buckets import bucket_sizes, geometry, place


def shape(tmp=".", resolution=512, default=512, **options):
    return geometry(job_for(tmp, resolution=resolution, **options), default)


def test_defaults_at_512_are_kohyas():
    sizes = bucket_sizes(shape())
    assert (512, 512) in sizes and (256, 1024) in sizes and (384, 640) in sizes
    assert all(w % 64 == 0 and h % 64 == 0 and w * h <= 512 * 512 and min(w, h) >= 256 for w, h in sizes)


def test_small_resolutions_get_buckets_too():
    sizes = bucket_sizes(shape(resolution=64))
    assert (64, 64) in sizes and len(sizes) > 5
    assert all(w % 8 == 0 and h % 8 == 0 and w * h <= 64 * 64 and min(w, h) >= 32 for w, h in sizes)


def test_resolution_falls_back_to_the_familys():
    assert shape(resolution=None, default=1024).width == 1024


def test_bounds_are_kept():
    sizes = bucket_sizes(shape(bucket_min=384, bucket_max=640))
    assert all(384 <= side <= 640 for size in sizes for side in size) or (512, 512) in sizes
    assert all(side % 32 == 0 for size in bucket_sizes(shape(bucket_step=32)) for side in size)
    assert all(side % 8 == 0 for size in bucket_sizes(shape(bucket_step=12)) for side in size)


def test_without_buckets_there_is_one_square():
    assert bucket_sizes(shape(resolution=500, buckets=False)) == ((496, 496),)


sides = st.integers(8, 6000)


@settings(max_examples=150, deadline=None)
@given(width=sides, height=sides, resolution=st.sampled_from([64, 100, 256, 512, 768, 1024]), buckets=st.booleans())
def test_placement_covers_its_bucket(width, height, resolution, buckets):
    placement = place((width, height), shape(resolution=resolution, buckets=buckets))
    bucket, resized = placement.bucket, placement.resized
    assert resized[0] >= bucket[0] and resized[1] >= bucket[1]
    assert resized[0] == bucket[0] or resized[1] == bucket[1]
    assert bucket[0] % 8 == 0 and bucket[1] % 8 == 0
    if max(width, height) <= 2 * min(width, height) and buckets:  # a usual shape loses little
        assert bucket[0] * bucket[1] >= 0.6 * resized[0] * resized[1]


@settings(max_examples=150, deadline=None)
@given(width=sides, height=sides, resolution=st.sampled_from([64, 512, 1024]), buckets=st.booleans())
def test_no_upscale_never_enlarges(width, height, resolution, buckets):
    placement = place((width, height), shape(resolution=resolution, buckets=buckets, upscale=False))
    if placement is None:
        return
    assert placement.resized[0] <= width and placement.resized[1] <= height
    assert placement.bucket[0] <= placement.resized[0] and placement.bucket[1] <= placement.resized[1]
    assert min(placement.bucket) >= 8


@pytest.mark.parametrize("size, bucket", [((512, 512), (512, 512)), ((600, 400), (640, 384)), ((400, 600), (384, 640))])
def test_known_buckets(size, bucket):
    assert place(size, shape()).bucket == bucket


def test_no_upscale_keeps_small_pictures_at_their_size():
    placement = place((200, 130), shape(upscale=False))
    assert placement.resized == (200, 130) and placement.bucket == (192, 128)
