"""kohya's dataset files: what is supported means the same, what is not is named."""

import json

import pytest
from data_helpers import Encoder, job_for, put

from trainers.data.dataset import prepare
from trainers.data.scan import scan
from trainers.errors import InputError


@pytest.fixture
def folders(tmp_path):
    for name in ("a", "b", "reg"):
        for number in range(3):
            put(tmp_path / name / f"{number}.png")
    for number in range(3):
        (tmp_path / "a" / f"{number}.caption").write_text(f"one, two, a{number}", encoding="utf-8")
    return tmp_path


def read(folders, text, **options):
    path = folders / "set.toml"
    path.write_text(text, encoding="utf-8")
    return scan(path, job_for(path, **options))


FULL = """
[general]
shuffle_caption = true
caption_extension = ".caption"
keep_tokens = 1

[[datasets]]
resolution = [96, 64]
batch_size = 2
enable_bucket = true
min_bucket_reso = 32
bucket_no_upscale = true

  [[datasets.subsets]]
  image_dir = "a"
  num_repeats = 4
  flip_aug = true
  caption_dropout_rate = 0.1
  caption_tag_dropout_rate = 0.2
  caption_prefix = "pre"

  [[datasets.subsets]]
  image_dir = 'b'
  class_tokens = "sks ball"
  keep_tokens = 3
  shuffle_caption = false

  [[datasets.subsets]]
  is_reg = true
  image_dir = "reg"
  class_tokens = "ball"

[[datasets]]
resolution = 128
batch_size = 2
  [[datasets.subsets]]
  image_dir = "a"
"""


def test_supported_settings(folders):
    result = read(folders, FULL)
    assert len(result.pictures) == 12 and result.options == {"batch_size": 2}
    first, second, prior, again = result.pictures[::3]
    assert (first.caption, first.repeats, first.folder) == ("one, two, a0", 4, "a")
    options = first.options
    assert options.shuffle_captions and options.flip and options.keep_tokens == 1 and options.prefix == "pre"
    assert (options.caption_drop, options.tag_drop) == (0.1, 0.2)
    assert options.geometry == {"resolution": (96, 64), "buckets": True, "bucket_min": 32, "upscale": False}
    assert second.caption == "sks ball" and second.options.keep_tokens == 3 and not second.options.shuffle_captions
    assert prior.is_regularisation and prior.caption == "ball" and prior.repeats == 1
    assert again.options.geometry == {"resolution": (128, 128)}
    assert len({picture.key for picture in result.pictures}) == 12
    assert any("batch size is 2" in note for note in result.notes)


def test_a_dataset_file_trains(folders):
    path = folders / "set.toml"
    path.write_text(FULL, encoding="utf-8")
    data = prepare(job_for(path), encode_moments=Encoder(), cache_key="k")
    assert data.batch_size == 2 and data.cache_folder == folders / ".athanor-cache"
    # picture 64 x 64 without enlarging stays 64 x 64 in the first set and becomes 128 x 128 in the second
    assert {bucket["resolution"][0] for bucket in data.bucket_info()["buckets"].values()} == {64, 128}
    batches = [data.batch(index) for index in range(data.batches_per_epoch)]
    taught = sum(not key.startswith("1.3/") for batch in batches for key in batch.keys)
    assert taught == 3 * 4 + 3 + 3
    assert data.dataset_dirs()["a"]["img_count"] == 6


def test_subfolders_are_not_read_as_in_kohya(folders):
    put(folders / "a" / "deeper" / "x.png")
    assert len(read(folders, "[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'a'").pictures) == 3


def test_captions_with_the_usual_extension_are_read_too(folders):
    text = '[[datasets]]\n[[datasets.subsets]]\nimage_dir = "a"\ncaption_extension = "txt"'
    assert read(folders, text).pictures[0].caption == "one, two, a0"


def test_metadata_file(folders):
    absolute = (folders / "b" / "2.png").resolve().as_posix()
    entries = {"0": {"caption": "zero", "tags": "t"}, "1.png": {"tags": "one"}, absolute: {"caption": "two"}}
    (folders / "meta.json").write_text(json.dumps(entries), encoding="utf-8")
    result = read(folders, '[[datasets]]\n[[datasets.subsets]]\nimage_dir = "b"\nmetadata_file = "meta.json"')
    assert [each.caption for each in result.pictures] == ["zero, t", "one", "two"]


SUBSET = '[[datasets]]\n[[datasets.subsets]]\nimage_dir = "a"\n'


@pytest.mark.parametrize(
    "text, part",
    [
        (SUBSET + "color_aug = true", "dataset 1, subset 1: color_aug is not supported"),
        (SUBSET + "enable_wildcard = true", "enable_wildcard is not supported"),
        (SUBSET + 'keep_tokens_separator = "|||"', "keep_tokens_separator is not supported; use keep_tokens"),
        (SUBSET + "caption_dropout_every_n_epochs = 2", "caption_dropout_every_n_epochs is not supported"),
        (SUBSET + "num_repeat = 2", 'no setting \'num_repeat\'. Did you mean "num_repeats"'),
        (SUBSET + 'num_repeats = "2"', "num_repeats = '2' will not do; it takes a whole number"),
        (SUBSET + "caption_dropout_rate = 2", "it takes a number from 0 to 1"),
        (SUBSET + "resolution = 512", "resolution belongs to"),
        ("[[datasets]]\nresolution = [1, 2, 3]\n[[datasets.subsets]]\nimage_dir = 'a'", "resolution = "),
        ('[[datasets]]\n[[datasets.subsets]]\nimage_dir = "none"', "image_dir none does not exist"),
        ("[[datasets]]\n[[datasets.subsets]]\nnum_repeats = 1", "add image_dir"),
        ("[[datasets]]\nbatch_size = 1", r"has no [[datasets.subsets]]"),
        ("[general]\nshuffle_caption = true", "at least one"),
        ("[other]\nx = 1\n" + SUBSET, "'other' is no section"),
        ("x = ", "not readable TOML"),
        ('[[datasets]]\n[[datasets.subsets]]\nimage_dir = "C:\\pictures"', "single quotes"),
        (
            "[[datasets]]\nbatch_size = 1\n[[datasets.subsets]]\nimage_dir = 'a'\n"
            "[[datasets]]\nbatch_size = 3\n[[datasets.subsets]]\nimage_dir = 'b'",
            "same batch_size",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(folders, text, part):
    with pytest.raises(InputError) as error:
        read(folders, text)
    assert part in str(error.value) and "set.toml" in str(error.value)


def test_settings_without_effect_are_said(folders):
    result = read(folders, SUBSET + "color_aug = false\ncache_info = true\n")
    assert any("cache_info has no effect" in note for note in result.notes) and not any(
        "color_aug" in n for n in result.notes
    )


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"dataset file .*none\.toml does not exist"):
        scan(tmp_path / "none.toml", job_for(tmp_path / "none.toml"))
