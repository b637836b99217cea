"""Encodings, caption files and what is done to captions."""

import json

import pytest
from data_helpers import job_for, put

from trainers.data.captions import caption_for, has_trigger, is_dropped, plain_caption, tag_frequency, variant_texts
from trainers.data.picture import Picture, PictureOptions
from trainers.data.scan import scan
from trainers.encodings import UnreadableText, decode_text
from trainers.errors import InputError

CHINESE = "一只橙色的球, 黑色接缝"


@pytest.mark.parametrize("text", ["an orange ball", CHINESE, "café, naïve", "ボール", "emoji 🏀 ball", "a\nb"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le-bom", "utf-16-be-bom"])
def test_unicode_encodings(text, encoding):
    if encoding.endswith("-bom"):
        data = ("\ufeff" + text).encode(encoding.removesuffix("-bom"))
    else:
        data = text.encode(encoding)
    assert decode_text(data)[0] == text


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf16_without_bom(encoding):
    assert decode_text("an orange ball".encode(encoding))[0] == "an orange ball"


@pytest.mark.parametrize("text", [CHINESE, "球", "ball, 球, court", "𠀀 rare", "a photo of 篮球 on 木地板"])
def test_gb18030(text):
    assert decode_text(text.encode("gb18030")) == (text, "gb18030")


@pytest.mark.parametrize("text", ["café", "naïve café noir", "Ein schöner Ball, grün"])
def test_western_code_page(text):
    assert decode_text(text.encode("cp1252")) == (text, "cp1252")


@pytest.mark.parametrize("data", [b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\x01", b"\xff\xfe\x00", b"\x01\x02\x03\x04"])
def test_bytes_that_are_no_text(data):
    with pytest.raises(UnreadableText):
        decode_text(data)


def read(folder, **options):
    return scan(folder, job_for(folder, **options))


def test_each_encoding_through_a_folder(tmp_path):
    put(tmp_path / "a.png", CHINESE.encode("gb18030"))
    put(tmp_path / "b.png", CHINESE.encode("utf-16"))
    put(tmp_path / "c.png", CHINESE.encode("utf-8-sig"))
    result = read(tmp_path)
    assert [each.caption for each in result.pictures] == [CHINESE] * 3
    assert any("1 caption: read as GB18030 (a.txt)" in note for note in result.notes)


def test_caption_extension_and_double_extension(tmp_path):
    put(tmp_path / "a.png")
    (tmp_path / "a.caption").write_text("one", encoding="utf-8")
    put(tmp_path / "b.png")
    (tmp_path / "b.png.txt").write_text("two", encoding="utf-8")
    put(tmp_path / "c.PNG", image=None, format="PNG")
    (tmp_path / "c.TXT").write_text("three", encoding="utf-8")
    assert [each.caption for each in read(tmp_path).pictures] == ["one", "two", "three"]


def test_two_captions_that_differ_are_said(tmp_path):
    put(tmp_path / "a.png", "from txt")
    (tmp_path / "a.caption").write_text("from caption", encoding="utf-8")
    result = read(tmp_path)
    assert result.pictures[0].caption == "from txt"
    assert any("a.png (a.txt)" in note and "differ" in note for note in result.notes)
    assert read(tmp_path, captions="caption").pictures[0].caption == "from caption"


def test_same_captions_twice_are_not_worth_a_word(tmp_path):
    put(tmp_path / "a.png", "same")
    (tmp_path / "a.caption").write_text("same\n", encoding="utf-8")
    assert read(tmp_path).notes == []


@pytest.mark.parametrize(
    "name, text",
    [
        ("metadata.jsonl", '{"file_name": "a.png", "text": "one"}\n{"file_name": "sub\\\\b.png", "text": "two"}\n'),
        (
            "metadata.json",
            json.dumps([{"file_name": "a.png", "text": "one"}, {"file_name": "./sub/b.png", "text": "two"}]),
        ),
        ("metadata.json", json.dumps({"a.png": "one", "sub/b": {"caption": "two"}})),
        ("metadata.csv", "file_name,text\na.png,one\nsub/b.png,two\n"),
    ],
)
def test_metadata_files(tmp_path, name, text):
    put(tmp_path / "a.png")
    put(tmp_path / "sub" / "b.png")
    (tmp_path / name).write_text(text, encoding="utf-8")
    result = read(tmp_path)
    assert [each.caption for each in result.pictures] == ["one", "two"] and result.notes == []


def test_metadata_in_a_subfolder_and_kohya_tags(tmp_path):
    put(tmp_path / "sub" / "b.png")
    text = json.dumps({"b": {"caption": "a ball", "tags": "orange, round"}})
    (tmp_path / "sub" / "metadata.json").write_text(text, encoding="utf-8")
    assert read(tmp_path).pictures[0].caption == "a ball, orange, round"


@pytest.mark.parametrize(
    "text, part",
    [
        ('{"file_name": "a.png", "text": "one"}\n{oops\n', "line 2"),
        ('{"text": "one"}\n', "entry 1 does not say which picture"),
        ('{"file_name": "a.png"}\n', "a.png has no caption"),
        ("[1, 2]", "entry 1 does not say which picture"),
        ("[" * 100000, "damaged"),
    ],
)
def test_damaged_metadata_names_the_line(tmp_path, text, part):
    put(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=part):
        read(tmp_path)


def test_metadata_of_missing_pictures_is_said(tmp_path):
    put(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text(
        '{"file_name": "a.png", "text": "one"}\n{"file_name": "gone.png", "text": "x"}', encoding="utf-8"
    )
    assert any("gone.png" in note for note in read(tmp_path).notes)


def test_missing_captions_are_refused_unless_allowed(tmp_path):
    put(tmp_path / "a.png", "a ball")
    for number in range(7):
        put(tmp_path / f"b{number}.png")
    with pytest.raises(InputError, match=r"7 of 8 pictures .* b0.png, b1.png, b2.png, b3.png, b4.png and 2 more"):
        read(tmp_path)
    result = read(tmp_path, allow_missing_captions=True)
    assert len(result.pictures) == 8 and any("7 of 8" in note for note in result.notes)


def test_no_captions_at_all_is_said(tmp_path):
    put(tmp_path / "a.png")
    assert any("No captions in" in note for note in read(tmp_path).notes)
    assert read(tmp_path, captions="none").notes == []


def test_unreadable_captions_are_not_passed_over(tmp_path):
    put(tmp_path / "a.png", b"\x00\x01\x02\x03")
    with pytest.raises(InputError, match=r"no readable caption \(not text: a.txt\)"):
        read(tmp_path)


def test_captions_of_a_kind_that_is_not_read_are_not_passed_over(tmp_path):
    put(tmp_path / "a.png")
    (tmp_path / "a.caption").write_text("x", encoding="utf-8")
    with pytest.raises(InputError, match=r"captions: txt finds no caption .* a\.caption"):
        read(tmp_path, captions="txt")


def test_a_novel_is_no_caption(tmp_path):
    put(tmp_path / "a.png", "word " * 300_000)
    with pytest.raises(InputError, match="no readable caption"):
        read(tmp_path)


def test_orphans_and_empty_files_are_said(tmp_path):
    put(tmp_path / "a.png", "")
    (tmp_path / "old.txt").write_text("x", encoding="utf-8")
    (tmp_path / "README.txt").write_text("x", encoding="utf-8")
    notes = read(tmp_path).notes
    assert any("1 caption file: no picture of that name (old.txt)" in note for note in notes)
    assert any("1 caption file: empty (a.txt)" in note for note in notes)


def test_all_lines_of_a_caption_are_read(tmp_path):
    put(tmp_path / "a.png", "first,\r\nsecond\r\n")
    result = read(tmp_path)
    assert result.pictures[0].caption == "first, second" and any("several lines" in note for note in result.notes)


# --- what is done to captions


def one(caption, key="a.png", **options):
    return Picture(path=None, key=key, caption=caption, folder="10_ball", options=PictureOptions(**options))


@pytest.mark.parametrize(
    "caption, trigger, present",
    [
        ("a sks dog", "sks", True),
        ("a SKS dog", "sks", True),
        ("asks dog", "sks", False),
        ("on the court", "cou", False),
        ("一只橙色的球", "球", True),
        ("ohwx-man, x", "ohwx-man", True),
        ("", "sks", False),
    ],
)
def test_has_trigger(caption, trigger, present):
    assert has_trigger(caption, trigger) is present


def test_trigger_is_put_in_front_where_it_lacks(tmp_path):
    job = job_for(tmp_path, trigger="sks")
    assert plain_caption(one("a ball"), job) == "sks, a ball"
    assert plain_caption(one("the sks ball"), job) == "the sks ball"
    assert plain_caption(one(""), job) == "sks"
    prior = one("a ball")
    prior.is_regularisation = True
    assert plain_caption(prior, job) == "a ball"


def test_shuffle_keeps_the_front_and_is_pure(tmp_path):
    job = job_for(tmp_path, trigger="sks", seed=3)
    each = one("a, b, c, d, e, f", shuffle_captions=True, keep_tokens=2)
    texts = [caption_for(each, variant, job) for variant in range(20)]
    assert all(
        text.startswith("sks, a, b, ") and sorted(text.split(", ")) == [*sorted("abcdef"), "sks"] for text in texts
    )
    assert len(set(texts)) > 5
    assert texts == [caption_for(each, variant, job) for variant in range(20)]
    assert texts != [caption_for(each, variant, job.replace(seed=4)) for variant in range(20)]


def test_trigger_that_leads_stays_in_front_and_is_never_dropped(tmp_path):
    job = job_for(tmp_path, trigger="sks")
    each = one("sks ball, b, c, d", shuffle_captions=True, tag_drop=0.9)
    inside = one("b, c, sks ball, d", shuffle_captions=True, tag_drop=0.9)
    for variant in range(30):
        assert caption_for(each, variant, job).startswith("sks ball")
        assert "sks ball" in caption_for(inside, variant, job)


def test_tag_drop_has_its_share(tmp_path):
    each = one(", ".join(f"t{n}" for n in range(10)), tag_drop=0.3)
    job = job_for(tmp_path)
    kept = sum(len(caption_for(each, variant, job).split(", ")) for variant in range(300)) / 3000
    assert 0.65 < kept < 0.75


def test_captions_that_do_not_vary_stay_as_written(tmp_path):
    each = one("a ball,with  odd   spaces ,")
    assert variant_texts(each, job_for(tmp_path)) == ["a ball,with  odd   spaces ,"]


def test_caption_drop_has_its_share(tmp_path):
    each, job = one("a", caption_drop=0.2), job_for(tmp_path)
    share = sum(is_dropped(each, job, epoch, 0) for epoch in range(1000)) / 1000
    assert 0.16 < share < 0.24


def test_tag_frequency(tmp_path):
    got = tag_frequency([one("A ball, orange"), one("a ball, red")], job_for(tmp_path, trigger="sks"))
    assert got == {"10_ball": {"sks": 2, "a ball": 2, "orange": 1, "red": 1}}
