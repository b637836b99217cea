"""Folders as people have them, and every refusal in one sentence."""

import os
import sys

import pytest
from data_helpers import Encoder, encoded, job_for, picture, put
from PIL import Image

from trainers.data.dataset import prepare
from trainers.data.index import FileIndex
from trainers.data.scan import scan
from trainers.data.walk import natural
from trainers.errors import InputError


def read(folder, **options):
    return scan(folder, job_for(folder, **options))


def keys(result):
    return [each.key for each in result.pictures]


def test_natural_order():
    names = ["b.png", "A.png", "a10.png", "a2.png", "a.png", "é.png", "2.png", "10.png", "a2b.png"]
    assert sorted(names, key=natural) == [
        "2.png",
        "10.png",
        "a2.png",
        "a2b.png",
        "a10.png",
        "A.png",
        "a.png",
        "b.png",
        "é.png",
    ]
    assert natural("e\u0301.png") == natural("\u00e9.png")


def test_kohya_folders(tmp_path):
    put(tmp_path / "10_sks dog" / "2.png")
    put(tmp_path / "10_sks dog" / "10.png")
    put(tmp_path / "3_cat" / "deep" / "c.png", "a cat on a mat")
    put(tmp_path / "plain" / "p.png", "a plain thing")
    result = read(tmp_path)
    facts = [(each.key, each.repeats, each.caption, each.folder) for each in result.pictures]
    assert facts == [
        ("3_cat/deep/c.png", 3, "a cat on a mat", "3_cat"),
        ("10_sks dog/2.png", 10, "sks dog", "10_sks dog"),
        ("10_sks dog/10.png", 10, "sks dog", "10_sks dog"),
        ("plain/p.png", 1, "a plain thing", tmp_path.name),
    ]
    assert {each.repeats for each in read(tmp_path, repeats=4).pictures} == {4}


def test_the_data_folder_itself_may_be_a_kohya_folder(tmp_path):
    put(tmp_path / "5_ball" / "a.png")
    assert read(tmp_path / "5_ball").pictures[0].repeats == 5


def test_zero_and_many_repeats_are_said(tmp_path):
    put(tmp_path / "0_off" / "a.png")
    put(tmp_path / "2023_holiday" / "b.png")
    result = read(tmp_path)
    assert keys(result) == ["2023_holiday/b.png"]
    assert any("0 repeats" in note for note in result.notes) and any("2023 times" in note for note in result.notes)


def test_class_name_does_not_fill_in_beside_real_captions(tmp_path):
    put(tmp_path / "5_ball" / "a.png", "a caption")
    put(tmp_path / "5_ball" / "b.png")
    with pytest.raises(InputError, match=r"1 of 2 pictures .* have no caption while others do: 5_ball/b\.png"):
        read(tmp_path)
    assert read(tmp_path, allow_missing_captions=True).pictures[1].caption == "ball"


def test_layout_of_kohyas_gui(tmp_path):
    put(tmp_path / "img" / "5_ball" / "a.png")
    put(tmp_path / "reg" / "1_thing" / "r.png")
    put(tmp_path / "model" / "sample" / "s.png")
    result = read(tmp_path)
    assert [(each.key, each.is_regularisation) for each in result.pictures] == [
        ("img/5_ball/a.png", False),
        ("reg:1_thing/r.png", True),
    ]
    assert any("kohya's GUI" in note for note in result.notes)


def test_hidden_and_system_folders_and_runs_are_left_out(tmp_path):
    put(tmp_path / "a.png")
    for folder in (".hidden", "__MACOSX", ".athanor-cache", "@eaDir", "run"):
        put(tmp_path / folder / "b.png")
    put(tmp_path / "._a.png")
    for name in ("job.yaml", "events.jsonl"):
        (tmp_path / "run" / name).touch()
    result = read(tmp_path)
    assert keys(result) == ["a.png"] and any("training run" in note for note in result.notes)


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="names are text there")
def test_names_that_are_no_text(tmp_path):
    put(tmp_path / os.fsdecode(b"caf\xe9.png"), "a caf\u00e9")
    data = prepare(job_for(tmp_path), encode_moments=Encoder(), cache_key="k")
    assert data.batch(0).captions == ["a caf\u00e9"] and data.pictures[0].key == "caf\\udce9.png"


def test_names_spelt_in_two_ways_belong_together(tmp_path):
    put(tmp_path / "cafe\u0301.png")
    (tmp_path / "caf\u00e9.txt").write_text("x", encoding="utf-8")
    result = read(tmp_path)
    assert keys(result) == ["caf\u00e9.png"] and result.pictures[0].caption == "x"


def test_spaces_and_chinese_names(tmp_path):
    put(tmp_path / "我的 图片" / "10_橙色 球" / "图 1.png", "一只球")
    result = read(tmp_path / "我的 图片")
    assert keys(result) == ["10_橙色 球/图 1.png"] and result.pictures[0].caption == "一只球"


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_links_are_followed_and_loops_end(tmp_path):
    put(tmp_path / "elsewhere" / "b.png")
    put(tmp_path / "data" / "a.png")
    os.symlink(tmp_path / "elsewhere", tmp_path / "data" / "linked")
    os.symlink(tmp_path / "data", tmp_path / "data" / "round")
    os.symlink(tmp_path / "gone.png", tmp_path / "data" / "nowhere.png")
    result = read(tmp_path / "data")
    assert keys(result) == ["a.png", "linked/b.png"]
    assert any("already read" in note for note in result.notes) and any(
        "leads nowhere" in note for note in result.notes
    )


def test_unusable_pictures_are_listed(tmp_path):
    put(tmp_path / "good.png")
    put(tmp_path / "empty.png", image=b"")
    put(tmp_path / "short.jpg", image=encoded(picture((128, 128)), "JPEG")[:-300])
    put(tmp_path / "phone.heic", image=b"x")
    put(tmp_path / "tiny.png", image=Image.new("RGB", (3, 3)))
    result = read(tmp_path)
    assert keys(result) == ["good.png"]
    reasons = {each.path.name: each.reason for each in result.skipped}
    assert "empty" in reasons["empty.png"] and "cut short" in reasons["short.jpg"]
    assert "convert" in reasons["phone.heic"] and "3 x 3 is too small" in reasons["tiny.png"]


def test_captions_of_unusable_pictures_are_no_orphans(tmp_path):
    put(tmp_path / "good.png", "a")
    put(tmp_path / "bad.png", "b", image=b"x")
    assert read(tmp_path).notes == []


def one_sentence(error):
    assert len(error.value.problems) == 1 and "\n" not in str(error.value) and str(error.value).endswith((".", ")."))
    return str(error.value)


def test_refusals(tmp_path):
    with pytest.raises(InputError, match="does not exist") as error:
        read(tmp_path / "none")
    one_sentence(error)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no pictures in .*png") as error:
        read(tmp_path / "empty")
    one_sentence(error)
    file = put(tmp_path / "file" / "a.png")
    with pytest.raises(InputError, match="is not a folder") as error:
        read(file)
    one_sentence(error)
    put(tmp_path / "bad" / "a.png", image=b"x")
    put(tmp_path / "bad" / "b.png", image=b"")
    with pytest.raises(InputError, match=r"nothing in .* can be used, of 2 pictures .*a\.png: .*b\.png") as error:
        read(tmp_path / "bad")
    one_sentence(error)


def test_caches_are_no_data(tmp_path):
    put(tmp_path / "kohya" / "a_0512x0512_sdxl.npz", image=b"x")
    with pytest.raises(InputError, match="another trainer's cache for SDXL"):
        read(tmp_path / "kohya")
    (tmp_path / "d" / ".athanor-cache" / "latents").mkdir(parents=True)
    with pytest.raises(InputError, match="cache of prepared pictures"):
        read(tmp_path / "d" / ".athanor-cache" / "latents")


def test_masks(tmp_path):
    put(tmp_path / "a.png")
    put(tmp_path / "a-masklabel.png", image=Image.new("L", (64, 64), 255))
    result = read(tmp_path)
    assert keys(result) == ["a.png"] and any("1 mask file not used" in note for note in result.notes)
    assert read(tmp_path, masks="files").pictures[0].mask_sha256
    with pytest.raises(InputError, match=r"no picture in .* has transparent parts"):
        read(tmp_path, masks="alpha")
    (tmp_path / "a-masklabel.png").unlink()
    with pytest.raises(InputError, match=r"no picture in .* has a mask"):
        read(tmp_path, masks="files")


def test_index_decodes_once_and_notices_change(tmp_path, monkeypatch):
    from trainers.data import index as module

    old = 1_600_000_000
    for name in ("a.png", "b.png", "broken.png"):
        os.utime(put(tmp_path / "d" / name, image=b"x" if name == "broken.png" else None), (old, old))
    if sys.platform != "win32":  # ctime cannot be set back; what counts is that it lies behind the clock step
        monkeypatch.setattr(module, "_CLOCK_STEP_NS", -1)
    decoded, hashed = [], []
    inspect, read_bytes = module._inspect, module.read_bytes
    monkeypatch.setattr(module, "_inspect", lambda data: decoded.append(len(data)) or inspect(data))
    monkeypatch.setattr(module, "read_bytes", lambda path: hashed.append(path.name) or read_bytes(path))
    job = job_for(tmp_path / "d")

    def again():
        decoded.clear()
        hashed.clear()
        store = FileIndex.find([tmp_path / "gone", tmp_path])
        result = scan(tmp_path / "d", job, index=store)
        store.save(tmp_path)
        return result

    first = again()
    assert sorted(hashed) == ["a.png", "b.png", "broken.png"] and len(decoded) <= 3
    second = again()
    assert not decoded and not hashed and second.pictures == first.pictures and second.skipped == first.skipped
    put(tmp_path / "d" / "b.png", image=picture(colour=(1, 2, 3)))
    changed = again()
    assert hashed == ["b.png"] and len(decoded) == 1 and changed.pictures[1].sha256 != first.pictures[1].sha256
    (tmp_path / "index.json").write_text("{broken", encoding="utf-8")
    assert again().pictures == changed.pictures


def test_a_file_changed_within_the_clock_step_is_hashed_again(tmp_path):
    path = put(tmp_path / "d" / "a.png", image=picture(colour=(1, 1, 1)))
    index = FileIndex()
    before, stat = index.facts(path), path.stat()
    data = bytearray(path.read_bytes())
    put(path, image=encoded(picture(colour=(2, 2, 2))))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert len(data) > 0 and index.facts(path).sha256 != before.sha256
