"""The routes for pictures and captions: what they show and change, whom they refuse, and what hostile files do."""

from __future__ import annotations

import io
import os
import struct
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from jobs_helpers import fake_jobs
from PIL import Image, ImageDraw, ImageFilter

fastapi = pytest.importorskip("fastapi")
pytest.importorskip("httpx")
from fastapi.testclient import TestClient  # noqa: E402

from extension.api import add_routes  # noqa: E402
from extension.recipes import Base  # noqa: E402
from extension.workshop import Workshop  # noqa: E402

V1 = "/athanor/v1"


def drawing(number: int = 0, size: tuple[int, int] = (96, 96)) -> Image.Image:
    """Pictures of which no two are alike."""
    made = Image.new("RGB", size, (40 * number % 256, 90 + 60 * number % 160, 200 - 50 * number % 200))
    draw = ImageDraw.Draw(made)
    draw.rectangle(
        (5 + 11 * number % 60, 8, 40 + 7 * number % 50, 30 + 9 * number % 50), fill=(250, 240, 20 * number % 255)
    )
    draw.ellipse((50 - 13 * number % 40, 40, 90 - 5 * number % 30, 90), fill=(10, 10 * number % 255, 90))
    return made


def encoded(picture: Image.Image, kind: str = "PNG", **how) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **how)
    return stream.getvalue()


@pytest.fixture
def workshop(tmp_path):
    made = Workshop(
        fake_jobs(tmp_path / "host" / "runs"),
        tmp_path / "host" / "pictures",
        lambda: [Base(tmp_path / "b.safetensors", "b", "sd1", 64, True)],
    )
    made.pictures.mkdir(parents=True)
    return made


@pytest.fixture
def client(workshop):
    app = fastapi.FastAPI()
    add_routes(app, workshop)
    return TestClient(app, base_url="http://127.0.0.1")


@pytest.fixture
def folder(workshop) -> Path:
    """Six pictures with captions, in a folder with blanks and Chinese letters."""
    made = workshop.pictures / "my 足球 pictures"
    made.mkdir()
    for number in range(6):
        drawing(number).save(made / f"ball {number + 1}.png")
        (made / f"ball {number + 1}.txt").write_text(f"sks ball, number {number}\n", encoding="utf-8")
    return made


def show(client, folder, **more):
    return client.get(f"{V1}/data", params={"folder": str(folder), **more}).json()


def by_file(shown) -> dict[str, dict]:
    return {card["file"]: card for card in shown["pictures"]}


def write(client, folder, *edits, label="captions"):
    body = {
        "folder": str(folder),
        "label": label,
        "edits": [dict(zip(("file", "text", "was"), edit, strict=True)) for edit in edits],
    }
    return client.post(f"{V1}/data/captions", json=body)


def closer(client, folder) -> dict[str, list[dict]]:
    start = 0
    while start is not None:
        told = client.get(f"{V1}/data/closer", params={"folder": str(folder), "start": start}).json()
        start = told["next"]
    return told["problems"]


def upload(client, name: str, data: bytes, folder: str = "dropped"):
    return client.post(f"{V1}/data/upload", params={"folder": folder, "name": name}, content=data)


# --- looking


def test_a_folder_shows_captions_buckets_and_what_is_wrong(client, folder):
    drawing(7, (400, 100)).save(folder / "ball 10.png")
    (folder / "ball 10.png.caption").write_bytes("\ufeffein Fußball,\nrot".encode("utf-16"))
    drawing(8, (20, 20)).save(folder / "small.jpg")
    (folder / "page.png").write_text("<html><script>alert(1)</script></html>")
    (folder / "ball 3.txt").unlink()
    shown = show(client, folder)
    cards = by_file(shown)
    assert list(cards) == [*(f"ball {n}.png" for n in (1, 2, 3, 4, 5, 6, 10)), "page.png", "small.jpg"]
    assert shown["resolution"] == 64 and cards["ball 1.png"]["bucket"] == [64, 64]
    assert cards["ball 10.png"]["caption"] == "ein Fußball, rot" and cards["ball 10.png"]["bucket"][0] > 64
    problems = {file: card["problems"] for file, card in cards.items() if card["problems"]}
    assert problems == {"ball 3.png": ["caption"], "page.png": ["broken", "caption"], "small.jpg": ["small", "caption"]}
    assert show(client, folder, resolution=512)["pictures"][0]["problems"] == ["small"]
    wide = {name: by_file(show(client, folder, resolution=256, **{name: value}))["ball 10.png"]["bucket"]
            for name, value in (("buckets", "false"), ("bucket_min", "128"), ("bucket_max", "256"))}  # fmt: skip
    assert wide["buckets"] == [256, 256] and wide["bucket_min"] == [512, 128] and wide["bucket_max"] == [256, 128]
    assert "bucket_step" in str(show(client, folder, bucket_step="many"))
    (entry,) = client.get(f"{V1}/data/folders").json()["folders"]
    assert (entry["path"], entry["pictures"], entry["captions"]) == (str(folder.resolve()), 9, 6)


def test_a_closer_look_finds_copies_damage_and_softness(client, folder):
    first = Image.open(folder / "ball 1.png")
    (folder / "copy.png").write_bytes((folder / "ball 2.png").read_bytes())
    first.resize((90, 90)).save(folder / "near.jpg", quality=70)
    (folder / "cut.png").write_bytes((folder / "ball 4.png").read_bytes()[:-60])
    drawing(9).filter(ImageFilter.GaussianBlur(5)).save(folder / "soft.png")
    assert closer(client, folder) == {
        "copy.png": [{"kind": "copy", "of": "ball 2.png"}],
        "cut.png": [{"kind": "broken", "why": "is damaged or cut short."}],
        "near.jpg": [{"kind": "alike", "of": "ball 1.png"}],
        "soft.png": [{"kind": "soft"}],
    }


def test_thumbnails_are_drawn_anew_kept_and_renewed(client, folder, workshop):
    def small() -> bytes:
        answer = client.get(f"{V1}/data/thumbnail", params={"folder": str(folder), "file": "ball 1.png"})
        assert answer.headers["content-type"] == "image/jpeg" and answer.headers["x-content-type-options"] == "nosniff"
        return answer.content

    before = small()
    assert small() == before and len(list((workshop.jobs.runs / ".thumbnails").rglob("*.jpg"))) == 1
    drawing(5, (120, 96)).save(folder / "ball 1.png")
    assert small() != before
    (folder / "ball 1.png").write_bytes(b"<html><script>alert(1)</script>")
    assert Image.open(io.BytesIO(small())).getcolors() == [(320 * 320, (128, 128, 128))]


def test_sixteen_bits_of_grey_are_shown_as_they_are_trained_on(client, folder):
    grey = drawing(40).convert("L")
    grey.save(folder / "flat.png")
    Image.fromarray(np.asarray(grey).astype(np.uint16) * 257).save(folder / "deep.png", transparency=65535)
    shown = [
        np.asarray(
            Image.open(
                io.BytesIO(client.get(f"{V1}/data/thumbnail", params={"folder": str(folder), "file": name}).content)
            ),
            dtype=int,
        )
        for name in ("deep.png", "flat.png")
    ]
    assert abs(shown[0] - shown[1]).max() <= 3 and shown[0].std() > 20
    assert {"kind": "alike", "of": "deep.png"} in closer(client, folder)["flat.png"]


def test_what_is_dropped_without_a_name_goes_where_nothing_lies_yet(client, workshop):
    def free(name: str) -> str:
        return client.get(f"{V1}/data/free-folder", params={"name": name}).json()["name"]

    for name, made in (("my pictures", "my-pictures"), ("x" * 80, "x" * 60)):
        assert free(name) == made
        for number in (2, 3):
            kept = upload(client, "a.png", encoded(drawing()), folder=free(name)).json()
            assert len(list(Path(kept["folder"]).iterdir())) == 1
            assert free(name) == f"{made[:50]}-{number}"
    (workshop.pictures / "notes").write_text("a file, no folder")
    assert free("notes") == "notes-2"


# --- changing


def test_captions_are_changed_together_and_taken_back_also_after_a_restart(client, folder, workshop):
    (folder / "ball 2.txt").write_bytes("sks ball, rouge é".encode("cp1252"))
    (folder / "ball 3.txt").unlink()
    before = {file.name: file.read_bytes() for file in folder.glob("*.txt")}
    made = write(
        client, folder, ("ball 1.png", "red  ball\n", "sks ball, number 0"), ("ball 2.png", "a", "sks ball, rouge é"),
        ("ball 3.png", "new", None), ("ball 4.png", "sks ball, number 3", "sks ball, number 3"), label="“red” added",
    )  # fmt: skip
    assert made.json() == {"saved": 3, "undo": "“red” added"}
    assert (folder / "ball 1.txt").read_text(encoding="utf-8") == "red ball\n"
    write(client, folder, ("ball 6.png", "last", "sks ball, number 5"), label="another")
    app = fastapi.FastAPI()
    add_routes(app, workshop)
    later = TestClient(
        app, base_url="http://127.0.0.1"
    )  # a page that was loaded again, in a host that was started again
    assert show(later, folder)["undo"] == "another"
    undone = later.post(f"{V1}/data/undo", json={"folder": str(folder)}).json()
    assert undone == {"label": "another", "kept": [], "undo": "“red” added"}
    (folder / "ball 3.txt").write_text("somebody's own")
    undone = later.post(f"{V1}/data/undo", json={"folder": str(folder)}).json()
    assert undone["kept"] == ["ball 3.txt"] and undone["undo"] is None
    assert {**before, "ball 3.txt": b"somebody's own"} == {
        file.name: file.read_bytes() for file in folder.glob("*.txt")
    }
    assert later.post(f"{V1}/data/undo", json={"folder": str(folder)}).status_code == 422
    assert not [file for file in folder.iterdir() if file.name.endswith(".tmp")]


def test_a_caption_that_changed_meanwhile_is_not_overwritten(client, folder):
    refused = write(client, folder, ("ball 1.png", "mine", "sks ball, number 0"), ("ball 2.png", "mine", "an old text"))
    assert refused.status_code == 422 and "changed meanwhile" in refused.json()["problems"][0]
    assert (folder / "ball 1.txt").read_text() == "sks ball, number 0\n"
    for text in ("x" * 20_001, "a\0b"):
        assert write(client, folder, ("ball 1.png", text, "sks ball, number 0")).status_code == 422
    for edits in ("x", [1], [{"file": "ball 1.png"}] * 5001):
        assert client.post(f"{V1}/data/captions", json={"folder": str(folder), "edits": edits}).status_code == 422


def test_pictures_are_set_aside_with_all_that_belongs_to_them(client, folder):
    drawing(1).save(folder / "ball 1-masklabel.png")
    body = {"folder": str(folder), "files": ["ball 1.png", "ball 2.png"], "label": "2 set aside"}
    assert client.post(f"{V1}/data/aside", json=body).json() == {"moved": 2, "undo": "2 set aside"}
    assert len(show(client, folder)["pictures"]) == 4 and not (folder / "ball 1.txt").exists()
    assert len(list((folder / ".set-aside").iterdir())) == 5
    client.post(f"{V1}/data/undo", json={"folder": str(folder)})
    assert len(show(client, folder)["pictures"]) == 6 and (folder / "ball 1-masklabel.png").exists()


# --- hostile paths


def test_files_outside_are_neither_shown_nor_changed(client, folder, tmp_path):
    secret = tmp_path / "secret"
    secret.mkdir()
    drawing().save(secret / "a.png")
    (secret / "a.txt").write_text("a secret")
    os.symlink(secret / "a.png", folder / "link.png")
    os.symlink(secret / "a.txt", folder / "ball 1.png.txt")
    (folder / "ball 1.txt").unlink()
    os.symlink(secret, folder / "linked", target_is_directory=True)
    cards = by_file(show(client, folder))
    assert len(cards) == 6 and cards["ball 1.png"]["caption"] is None
    assert show(client, folder)["notes"][0].endswith("but trained on: link.png, linked.")
    names = (
        "link.png",
        "linked/a.png",
        "../../../secret/a.png",
        str(secret / "a.png"),
        "..",
        "",
        "a\0.png",
        "ball 2.txt",
        "x" * 400,
    )
    for name in names:
        asked = {"folder": str(folder), "file": name}
        assert client.get(f"{V1}/data/thumbnail", params=asked).status_code == 422, name
        assert write(client, folder, (name, "mine", None)).status_code == 422, name
        assert client.post(f"{V1}/data/aside", json={"folder": str(folder), "files": [name]}).status_code == 422, name
    for place in (
        str(secret),
        str(folder / ".." / ".." / ".." / "secret"),
        str(folder / "linked"),
        "my 足球 pictures",
        "~",
    ):
        assert client.get(f"{V1}/data", params={"folder": place}).status_code == 422, place
        assert client.get(f"{V1}/data/closer", params={"folder": place}).status_code == 422, place
        assert client.post(f"{V1}/data/undo", json={"folder": place}).status_code == 422, place
    assert (secret / "a.txt").read_text() == "a secret" and (secret / "a.png").exists()


def test_other_sites_change_nothing(client, folder):
    foreign = {"Origin": "https://example.org"}
    for route, body in (
        ("captions", {"edits": [{"file": "ball 1.png", "text": "x"}]}),
        ("undo", {}),
        ("aside", {"files": []}),
    ):
        answer = client.post(f"{V1}/data/{route}", json={"folder": str(folder), **body}, headers=foreign)
        assert answer.status_code == 403, route
    query = {"folder": "a", "name": "a.png"}
    assert (
        client.post(f"{V1}/data/upload", params=query, content=encoded(drawing()), headers=foreign).status_code == 403
    )


# --- what is dropped


def png_of_size(width: int, height: int) -> bytes:
    """A few bytes that claim to be a picture of this size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(bytes(100_000)))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("page.png", b"<!DOCTYPE html><script>alert(1)</script>", "is not a picture"),
        ("drawing.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is not a picture"),
        ("program.png", b"MZ\x90\x00" + bytes(2000), "is not a picture"),
        ("postscript.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is not a picture"),
        ("bomb.png", png_of_size(50_000, 50_000), "million pixels"),
        ("wide.png", png_of_size(2_000_000, 100), "million pixels"),
        ("cut.png", encoded(drawing())[:-80], "damaged"),
        ("empty.png", b"", "is not a picture"),
        ("binary.txt", bytes(range(256)) * 4, "is no text"),
        ("long.txt", b"word, " * 5000, "at most 20000"),
    ],
)  # fmt: skip
def test_what_is_no_picture_is_refused_by_its_content(client, workshop, name, data, says):
    refused = upload(client, name, data)
    assert (
        refused.status_code == 422 and says in refused.json()["problems"][0] and name in refused.json()["problems"][0]
    )
    assert not list(workshop.pictures.rglob("*.*"))


def test_a_picture_with_an_archive_behind_it_arrives_without_it(client):
    hidden = io.BytesIO()
    with zipfile.ZipFile(hidden, "w") as archive:
        archive.writestr("evil.html", "<script>")
    made = upload(client, "both.png", encoded(drawing()) + hidden.getvalue()).json()
    kept = Path(made["folder"]) / made["file"]
    assert kept.read_bytes() == encoded(drawing()) and not zipfile.is_zipfile(kept)


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("../../evil.png", "evil.png"), ("C:\\Users\\me\\a b.png", "a b.png"), ("图 一.png", "图 一.png"),
        ("photo.jpg", "photo.png"), ("x.php.png", "x_php.png"), (".hidden.png", "hidden.png"), 
        ("..", "picture-5ec1f7.png"),
        ("a" * 300 + ".png", "a" * 80 + "-9835fa.png"),
    ],
)  # fmt: skip
def test_names_are_made_harmless(client, workshop, name, kept):
    made = upload(client, name, encoded(drawing()), folder="../..").json()
    assert made["file"] == kept and Path(made["folder"]).parent == workshop.pictures.resolve()


@pytest.mark.parametrize(("one", "other"), [("v1.5 a", "v1.5 b"), ("a" * 90, "a" * 90 + "b"), ("😀", "🎉")])
def test_each_picture_keeps_its_own_caption(client, workshop, one, other):
    for number, name in enumerate((one, other)):
        upload(client, f"{name}.png", encoded(drawing(number)))
        folder = upload(client, f"{name}.png.txt" if number else f"{name}.txt", name.encode()).json()["folder"]
    assert sorted(card["caption"] for card in show(client, folder)["pictures"]) == sorted((one, other))


def test_captions_come_along_and_nothing_is_overwritten(client, workshop):
    for name, data in (
        ("a.png", encoded(drawing(1))),
        ("a.txt", "图, rouge é".encode("gb18030")),
        ("b.png", encoded(drawing(2))),
    ):
        assert upload(client, name, data).status_code == 200
    assert upload(client, "a.png", encoded(drawing(1))).json()["file"] == "a.png"  # dropped twice
    assert upload(client, "a.png", encoded(drawing(3))).json()["file"] == "a-2.png"
    folder = upload(client, "a.txt", b"another").json()["folder"]
    cards = by_file(show(client, folder))
    assert list(cards) == ["a.png", "a-2.png", "b.png"] or sorted(cards) == ["a-2.png", "a.png", "b.png"]
    assert cards["a.png"]["caption"] == "图, rouge é" and show(client, folder)["ours"]


def test_uploads_are_limited_in_size_and_number(client, monkeypatch):
    from extension.pictures import uploads

    monkeypatch.setattr(uploads, "LARGEST", 100)
    assert "larger than" in upload(client, "a.png", encoded(drawing())).json()["problems"][0]
    monkeypatch.setattr(uploads, "LARGEST", 1 << 20)
    monkeypatch.setattr(uploads, "MOST_FILES", 2)
    assert [upload(client, "a.png", encoded(drawing(n))).status_code for n in range(3)] == [200, 200, 422]


@pytest.mark.skipif(sys.platform == "win32", reason="names of bytes are for POSIX")
def test_a_name_that_is_no_text_is_left_out(client, folder):
    (folder / os.fsdecode(b"caf\xe9.png")).write_bytes(encoded(drawing(8)))
    assert len(show(client, folder)["pictures"]) == 6 and closer(client, folder) == {}
