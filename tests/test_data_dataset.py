"""Batches are a pure function of their index; caches are used, checked and mended."""

import errno
import os
import sys
from collections import Counter

import pytest
import torch
from data_helpers import Encoder, encoded, job_for, picture, put
from PIL import Image, ImageOps

from trainers.data import cache as cache_module
from trainers.data.cache import TextCache, write_atomically
from trainers.data.dataset import prepare
from trainers.data.images import load_picture
from trainers.errors import InputError

SIZES = [(64, 64), (96, 64), (64, 96), (100, 100), (300, 200), (64, 65), (128, 64)]


@pytest.fixture
def folder(tmp_path):
    for number, size in enumerate(SIZES):
        put(tmp_path / "data" / "2_ball" / f"{number}.png", f"a, b, c, d{number}", picture(size, (30 * number, 90, 60)))
    return tmp_path / "data"


def made(folder, world_size=1, encoder=None, **options):
    how = {name: options.pop(name) for name in ("fresh_captions", "run_folder", "cache_key") if name in options}
    how = {"cache_key": "sd1 vae", **how}
    return prepare(job_for(folder, **options), encode_moments=encoder or Encoder(), world_size=world_size, **how)


def same(a, b):
    tensors = all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("latents", "weights", "time_ids"))
    return tensors and (a.captions, a.keys) == (b.captions, b.keys)


FULL = {
    "flip": True,
    "crop": "random",
    "shuffle_captions": True,
    "caption_drop": 0.2,
    "batch_size": 2,
    "trigger": "sks",
}


def test_an_epoch_shows_every_picture_as_often_as_it_counts(folder):
    data = made(folder, batch_size=3)
    for epoch in (0, 5):
        keys = Counter()
        for index in range(data.batches_per_epoch):
            batch = data.batch(epoch * data.batches_per_epoch + index)
            keys.update(key.partition("#")[0] for key in batch.keys)
            assert len({tuple(times[4:]) for times in batch.time_ids.tolist()}) == 1
            assert batch.global_size == len(batch.keys) <= 3
        assert keys == {f"2_ball/{number}.png": 2 for number in range(len(SIZES))}
    assert data.train_count == 14


def test_batches_do_not_depend_on_what_came_before(folder):
    one, two = made(folder, **FULL), made(folder, **FULL)
    total = 3 * one.batches_per_epoch
    forward = [one.batch(index) for index in range(total)]
    for index in (total - 1, 0, total // 2, 1, total - 1):
        assert same(two.batch(index), forward[index])
    assert not same(forward[0], made(folder, seed=2, **FULL).batch(0))
    epochs = {tuple(forward[index].keys) for index in range(total)}
    assert len(epochs) > one.batches_per_epoch  # the order changes from epoch to epoch


def test_shards_make_up_the_global_batch_of_one_process(folder):
    options = {**FULL, "batch_size": 4}
    single = made(folder, **options)
    several = made(folder, world_size=2, **{**FULL, "batch_size": 2})
    assert single.batches_per_epoch == several.batches_per_epoch
    empty = 0
    for index in range(single.batches_per_epoch):
        whole = single.batch(index)
        for rank in range(2):
            shard = several.batch(index, 2, rank)
            assert shard.sample_indices == list(range(rank, len(whole.keys), 2))
            assert shard.global_size == len(whole.keys)
            assert shard.keys == whole.keys[rank::2] and shard.captions == whole.captions[rank::2]
            assert torch.equal(shard.latents, whole.latents[rank::2]) and torch.equal(
                shard.weights, whole.weights[rank::2]
            )
            empty += not shard.keys
    assert several.batch(0).latents.shape[1:] == single.batch(0).latents.shape[1:]
    alone = made(folder, world_size=4, **{**FULL, "batch_size": 1})
    shards = [alone.batch(index, 4, 3) for index in range(alone.batches_per_epoch)]
    assert all(each.latents.shape[0] == len(each.keys) and each.time_ids.shape[1] == 6 for each in shards)


def test_latents_are_scaled_draws_from_the_moments(folder):
    data = made(folder, sample_latents=False)
    batch = data.batch(0)
    drawn = made(folder, sample_latents=True).batch(0)
    assert batch.keys == drawn.keys and not torch.equal(batch.latents, drawn.latents)
    assert (batch.latents - drawn.latents).abs().max() < 0.18215 * 6 * 2.718**-2
    each = next(p for p in data.prepared if p.picture.key == batch.keys[0].partition("#")[0])
    moments = data.store.read(each.picture, each.cuts[0])["moments"]
    assert torch.equal(batch.latents[0], moments[:4] * 0.18215)


def test_flip_mirrors_pixels_corner_and_size_conditioning(tmp_path):
    put(tmp_path / "a.png", image=picture((130, 64)))
    data = made(tmp_path, flip=True, crop="random", sample_latents=False)
    each = data.prepared[0]
    for plain, flipped in zip(each.cuts[::2], each.cuts[1::2], strict=True):
        a, b = (data.store.read(each.picture, cut)["moments"] for cut in (plain, flipped))
        assert torch.allclose(a.flip(-1), b, atol=1e-5)
        slack = plain.resized[0] - plain.bucket[0]
        assert plain.time_ids((130, 64))[3] + flipped.time_ids((130, 64))[3] == slack
        assert plain.time_ids((130, 64))[:2] == (64, 130)
    shown = {tuple(data.batch(index).latents.flatten().tolist()) for index in range(60)}
    assert len(shown) == len(each.cuts)


def test_centre_crop_shows_the_middle(tmp_path):
    image = Image.new("RGB", (640, 64), "white")
    image.paste((0, 0, 0), (0, 0, 250, 64))
    image.paste((0, 0, 0), (390, 0, 640, 64))
    put(tmp_path / "a.png", image=image)
    data = made(tmp_path, buckets=False, sample_latents=False)
    assert data.batch(0).latents.min() > 0.9 * 0.18215
    assert data.batch(0).time_ids.tolist() == [[64, 640, 0, 288, 64, 64]]


def test_regularisation_pictures_are_mixed_evenly(tmp_path, folder):
    for number in range(20):
        put(tmp_path / "reg" / "1_thing" / f"{number}.png")
    data = made(folder, regularisation_data=str(tmp_path / "reg"), prior_weight=0.5, batch_size=4, trigger="sks")
    seen, taught = Counter(), 0
    for index in range(4 * data.batches_per_epoch):
        batch = data.batch(index)
        for key, weight, caption in zip(batch.keys, batch.weights.tolist(), batch.captions, strict=True):
            if key.startswith("reg:"):
                assert weight == 0.5 and caption == "thing"
                seen[key.partition("#")[0]] += 1
            else:
                assert weight == 1.0 and "sks" in caption
                taught += 1
    assert taught == 4 * 14 and sum(seen.values()) == 4 * 14
    assert len(seen) == 20 and max(seen.values()) - min(seen.values()) <= 1
    assert data.dataset_dirs(True) == {"1_thing": {"n_repeats": 1, "img_count": 20}}
    assert list(data.tag_frequency()) == ["2_ball"]


def test_masks_reach_the_batch(tmp_path):
    half = Image.new("L", (64, 64), 0)
    half.paste(255, (0, 0, 32, 64))
    put(tmp_path / "a.png")
    half.save(tmp_path / "a-masklabel.png")
    image = picture()
    image.putalpha(ImageOps.mirror(half))
    put(tmp_path / "b.png", image=image)
    put(tmp_path / "c.png", image=picture(colour=(9, 9, 9)))
    data = made(tmp_path, masks="auto", batch_size=3)
    batch = data.batch(0)
    masks = {key[0]: mask for key, mask in zip(batch.keys, batch.masks, strict=True)}
    assert batch.masks.shape == (3, 1, 8, 8)
    assert masks["a"][0, :, :4].eq(1).all() and masks["a"][0, :, 4:].eq(0).all()
    assert torch.equal(masks["b"], masks["a"].flip(-1)) and masks["c"].eq(1).all()
    assert made(tmp_path).batch(0).masks is None


def test_a_changed_mask_is_noticed(tmp_path):
    put(tmp_path / "a.png")
    Image.new("L", (64, 64), 255).save(tmp_path / "a-masklabel.png")
    assert made(tmp_path, masks="files").batch(0).masks.eq(1).all()
    Image.new("L", (64, 64), 0).save(tmp_path / "a-masklabel.png")
    assert made(tmp_path, masks="files").batch(0).masks.eq(0).all()


# --- captions


def test_fixed_variants_are_all_announced(folder):
    data = made(folder, tag_drop=0.2, caption_variants=5, **FULL)
    needed, seen = data.captions_needed(), set()
    for index in range(20 * data.batches_per_epoch):
        seen.update(data.batch(index).captions)
    assert seen <= needed and "" in seen and len(seen) > 3 * len(SIZES)
    assert len(needed) <= 5 * len(SIZES) + 1


def test_fresh_captions_differ_every_time(folder):
    data = made(folder, fresh_captions=True, shuffle_captions=True, caption_variants=1)
    texts = {data.batch(index).captions[0] for index in range(6 * data.batches_per_epoch)}
    assert len(texts) > 2 * len(SIZES)
    assert data.captions_needed() == set()


def test_facts_for_the_metadata(folder):
    data = made(folder, trigger="sks")
    assert data.dataset_dirs() == {"2_ball": {"n_repeats": 2, "img_count": 7}}
    assert data.tag_frequency()["2_ball"]["a"] == 7 and data.tag_frequency()["2_ball"]["sks"] == 7
    info = data.bucket_info()
    assert sum(bucket["count"] for bucket in info["buckets"].values()) == 14
    assert info["buckets"]["0"]["resolution"] == [48, 80] and info["mean_img_ar_error"] > 0


# --- held-out pictures


def test_split_is_the_same_for_every_seed_and_keeps_copies_together(folder):
    put(folder / "2_ball" / "copy.png", "copy", load_picture(folder / "2_ball" / "3.png")[0])
    first, second = (made(folder, validation_split=0.4, seed=seed) for seed in (1, 2))
    held = [item.key for item in first.evaluation_items()]
    assert held == [item.key for item in second.evaluation_items()] and 2 <= len(held) <= 4
    contents = {each.picture.sha256 for each in first.held_out}
    assert not contents & {picture.sha256 for picture in first.pictures}
    assert not set(held) & {picture.key for picture in first.pictures}


def test_evaluation_items_are_plain(tmp_path, folder):
    put(tmp_path / "val" / "v.png", "x, y, z", picture((64, 90)))
    put(tmp_path / "prior" / "p.png", "a house", picture((64, 64)))
    options = {"validation_data": str(tmp_path / "val"), "prior_data": str(tmp_path / "prior"), **FULL}
    data = made(folder, **options)
    (item,), (prior,) = data.evaluation_items(), data.prior_items()
    assert (item.key, item.caption) == ("val:v.png", "sks, x, y, z") and (prior.key, prior.caption) == (
        "prior:p.png",
        "a house",
    )
    assert item.latents.shape[0] == 4 and item.time_ids.tolist()[:2] == [90, 64]
    assert {item.caption, prior.caption} <= data.captions_needed()
    again = made(folder, **{**options, "seed": 9}).evaluation_items()[0]
    assert torch.equal(item.latents, again.latents)
    with pytest.raises(InputError, match=r"validation_data: the folder .* does not exist"):
        made(folder, validation_data=str(tmp_path / "none"))


# --- the cache


def test_a_second_start_encodes_nothing(folder):
    first, encoder = made(folder, **FULL), Encoder()
    second = made(folder, encoder=encoder, **FULL)
    assert first.encoded > 0 and second.encoded == 0 and encoder.calls == 0
    assert same(first.batch(3), second.batch(3))
    assert (folder / ".athanor-cache" / "README.txt").exists()


def test_only_what_changed_is_encoded_again(folder):
    made(folder)
    put(folder / "2_ball" / "2.png", image=picture((64, 96), (250, 250, 0)))
    encoder = Encoder()
    assert made(folder, encoder=encoder).encoded == 1
    assert made(folder, flip=True).encoded == len(SIZES)  # the mirrored ones only
    assert made(folder, resolution=128).encoded == len(SIZES)


def test_another_familys_cache_is_not_used(folder):
    made(folder)
    assert made(folder, cache_key="sdxl vae").encoded == len(SIZES)
    assert made(folder).encoded == 0


def entries(folder):
    return sorted((folder / ".athanor-cache" / "latents").rglob("*.safetensors"))


@pytest.mark.parametrize("damage", ["cut", "empty", "bits", "foreign"])
def test_damaged_entries_are_made_again(folder, damage):
    whole = made(folder).batch(0)
    for path in entries(folder):
        data = path.read_bytes()
        bits = data[:-8] + bytes(8)
        path.write_bytes(
            {"cut": data[: len(data) // 2], "empty": b"", "bits": bits, "foreign": b"x" * len(data)}[damage]
        )
    data = made(folder)
    assert data.encoded == len(SIZES) and same(data.batch(0), whole)


def test_damage_while_training_says_what_to_do(folder, monkeypatch):
    monkeypatch.setattr("trainers.data.latents.LatentStore.__init__.__defaults__", (0,))
    data = made(folder)
    for path in entries(folder):
        path.write_bytes(b"x")
    with pytest.raises(InputError, match="damaged or removed; resume the run"):
        data.batch(0)
    assert made(folder).batch(0).keys


def test_latents_beyond_the_memory_limit_come_from_disk(folder, monkeypatch):
    whole = made(folder).batch(2)
    monkeypatch.setattr("trainers.data.latents.LatentStore.__init__.__defaults__", (0,))
    data = made(folder)
    assert data.encoded == 0 and same(data.batch(2), whole)


def test_cache_folder_by_option(folder, tmp_path):
    data = made(folder, cache_dir=str(tmp_path / "my cache"))
    assert data.cache_folder == tmp_path / "my cache" and not (folder / ".athanor-cache").exists()
    again = made(folder, cache_dir=str(folder), cache_key="other")  # even among the pictures
    assert len(made(folder, cache_dir=str(folder)).pictures) == len(again.pictures) == len(SIZES)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cache_dir: .* cannot be written"):
        made(folder, cache_dir=str(tmp_path / "file" / "x"))


def test_read_only_data_is_cached_in_the_run_folder(folder, tmp_path, monkeypatch):
    real = cache_module._unwritable
    monkeypatch.setattr(cache_module, "_unwritable", lambda f: "Read-only" if folder in f.parents else real(f))
    data = made(folder, run_folder=tmp_path / "run")
    assert data.cache_folder == tmp_path / "run" / "cache" and any("cannot be written" in note for note in data.notes)
    assert not (folder / ".athanor-cache").exists()


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="needs a user whom permissions bind")
def test_read_only_folder_for_real(folder, tmp_path):
    folder.chmod(0o555)
    try:
        assert made(folder, run_folder=tmp_path / "run").cache_folder == tmp_path / "run" / "cache"
    finally:
        folder.chmod(0o755)


def test_a_full_disk_is_one_sentence_and_leaves_no_half_file(tmp_path, monkeypatch):
    target = tmp_path / "entry"
    target.write_bytes(b"before")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(InputError, match="is full; free some space"):
        write_atomically(target, b"after")
    assert target.read_bytes() == b"before" and os.listdir(tmp_path) == ["entry"]


def test_a_folder_without_pictures_stays_as_it_was(tmp_path):
    with pytest.raises(InputError, match="no pictures"):
        made(tmp_path)
    assert not list(tmp_path.iterdir())


def test_values_that_are_not_finite_are_refused(folder):
    with pytest.raises(InputError, match=r"2\.png: the autoencoder .* not finite"):
        made(folder, encoder=lambda pixels: Encoder()(pixels) * float("nan"))


def test_batched_encoding_gives_the_same(folder):
    encoder = Encoder()
    several = made(folder, encoder=encoder, vae_batch_size=3, cache_key="b")
    assert max(shape[0] for shape in encoder.shapes) > 1
    assert same(several.batch(1), made(folder).batch(1))


def test_too_few_pictures_are_left(tmp_path):
    put(tmp_path / "a.png", image=picture((10, 6000)))
    with pytest.raises(InputError, match=r"no picture in .* is left to train on .*too small for a bucket"):
        made(tmp_path, upscale=False, resolution=64)


def test_unreadable_pictures_are_listed_and_the_rest_trains(folder):
    put(folder / "2_ball" / "bad.png", "x", encoded(picture())[:100])
    data = made(folder)
    assert len(data.pictures) == len(SIZES) and [each.path.name for each in data.skipped] == ["bad.png"]
    assert any("1 file skipped: bad.png (it is damaged" in note for note in data.notes)


# --- the text cache


def embed(calls):
    def encode(texts):
        calls.append(list(texts))
        return [{"hidden": torch.full((2, 3), float(len(text))), "pooled": None} for text in texts]

    return encode


def test_text_cache(tmp_path):
    calls = []
    texts = {"", "a ball", "一只球", "x" * 5000}
    first = TextCache(tmp_path, "clip a").get(texts, embed(calls), batch_size=3)
    assert sorted(map(len, calls)) == [1, 3] and set(first) == texts
    assert first["a ball"]["hidden"].eq(6).all() and "pooled" not in first["a ball"]
    calls.clear()
    again = TextCache(tmp_path, "clip a").get([*texts, "new"], embed(calls))
    assert calls == [["new"]] and again[""]["hidden"].eq(0).all()
    TextCache(tmp_path, "clip b").get(["a ball"], embed(calls))
    assert calls[-1] == ["a ball"]


def test_text_cache_mends_damage_and_reads_from_disk(tmp_path):
    calls = []
    TextCache(tmp_path, "k").get(["a", "b"], embed(calls))
    for path in tmp_path.rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-3])
    lazy = TextCache(tmp_path, "k", memory_limit=0).get(["a", "b"], embed(calls))
    assert len(calls) == 2 and lazy["b"]["hidden"].eq(1).all()
    assert not list(tmp_path.rglob("*.tmp"))
