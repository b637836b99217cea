"""Files, settings and pasted infotexts in every real WebUI: what is read, and what is said about what is not."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest
import torch
from host_fixtures import tag
from PIL import Image
from server import PROMPT

from trainers.formats import safetensors_io


def test_a_pasted_infotext_leads_to_the_file_under_its_new_name(hosts):
    path = hosts.lora("athanor_pasted", seed=4)
    drawn = hosts.ours(f"{PROMPT} <lora:athanor_pasted:0.7:stop=0.5>", "blurry <lora:athanor_pasted:0.4> <lora:gone:1>")
    assert "there is no LoRA" in drawn.infotext
    path.rename(path.with_name("athanor_other.safetensors"))
    body = {"image": f"data:image/png;base64,{drawn.encoded[0]}"}
    pasted = hosts.ours.server.post("/sdapi/v1/png-info", body)["parameters"]
    assert pasted["Prompt"] == f"{PROMPT} <lora:athanor_other:0.7:stop=0.5>"
    assert pasted["Negative prompt"] == "blurry <lora:athanor_other:0.4> <lora:gone:1>"
    assert "Athanor" not in pasted  # what was said about another picture
    assert hosts.ours(pasted["Prompt"], pasted["Negative prompt"]).away_from(drawn) == 0


def test_an_embedding_inside_a_lora(hosts):
    tensors, metadata = safetensors_io.load(hosts.lora("athanor_bundle", seed=5))
    vectors = torch.randn(2, hosts.width, generator=torch.Generator().manual_seed(6))
    bundle = {**tensors, "bundle_emb.athanorinside.string_to_param.*": vectors * 0.5}
    safetensors_io.save(hosts.folders["lora"] / "athanor_bundle.safetensors", bundle, metadata or {})
    acting = "<lora:athanor_bundle:0.5>"
    named = hosts.ours(f"a drawing of athanorinside {acting}")
    assert named.away_from(hosts.ours(f"a drawing of {acting}")) > 2
    if hosts.kind == "a1111":  # the own loaders of the others do not read it
        assert named.away_from(hosts.alone(f"a drawing of athanorinside {acting}")) <= 1
    assert hosts.ours("a drawing of athanorinside").away_from(hosts.alone("a drawing of athanorinside")) == 0


def test_a_region_from_a_picture(hosts):
    folder = hosts.folder / "athanor" / "masks"
    there = folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    left = np.zeros((64, 64), np.uint8)
    left[:, :32] = 255
    Image.fromarray(left).save(folder / "athanor-half.png")
    try:
        begin = f"{PROMPT} <lora:k_lora:te=0:unet=0.8:mask="
        drawn = hosts.ours(f"{begin}athanor-half>")
        assert drawn.away_from(hosts.ours(f"{begin}left>")) == 0 and drawn.away_from(hosts.ours()) > 2
        missing = hosts.ours(f"{begin}athanor-hal>")
        assert missing.away_from(hosts.ours()) == 0 and 'did you mean \\"athanor-half\\"?' in missing.infotext
    finally:
        (folder / "athanor-half.png").unlink()
        if not there:
            shutil.rmtree(folder.parent)


def test_img2img(hosts):
    given = {"init_images": hosts.alone().encoded, "denoising_strength": 0.7, "steps": 6}
    tagged = hosts.ours(tag("lora"), **given)
    assert tagged.away_from(hosts.alone(tag("lora"), **given)) <= 1 and tagged.away_from(hosts.ours(**given)) > 2
    halves = f"{PROMPT} <lora:k_lora:0.7:stop=0.5> <lora:k_lora:0.7:start=0.5>"
    assert hosts.ours(halves, **given).away_from(tagged) <= 1
    assert hosts.ours(f"{tag('lora')} <lora:k_lora:-0.7:start=0.5>", **given).away_from(tagged) > 2
    split = hosts.ours(f"{PROMPT} <lora:k_lora:0.7:for=part>", "blurry <lora:k_lora:0.7>", **given)
    assert split.away_from(tagged) <= 1
    assert hosts.ours(**given).away_from(hosts.alone(**given)) == 0


def test_embeddings_that_do_not_fit_are_said_so(hosts):
    paths = [hosts.embedding("athanorwide", hosts.width + 16), hosts.embedding("castle", hosts.width)]
    try:
        wide = hosts.ours("a drawing of athanorwide", fresh=True)
        assert 'The embedding "athanorwide" is for' in wide.infotext
        word = hosts.ours("a castle on a hill", "blurry", fresh=True)
        assert 'The embedding "castle" takes the place of the word' in word.infotext
        negative = hosts.ours("a hill", "castle", fresh=True)
        assert 'The embedding "castle" takes the place of the word' in negative.infotext
        assert "Athanor" not in hosts.ours("a hill", fresh=True).infotext
        tagged = hosts.ours("a drawing of <ti:athanorwide:0.5>", fresh=True)
        assert 'The embedding "athanorwide" is for' in tagged.infotext
    finally:
        for path in paths:
            path.unlink()
        os.utime(hosts.folders["embedding"].parent)


def test_a_new_and_a_changed_embedding_are_seen_at_once(hosts):
    text = "a drawing of athanornew"
    nothing = hosts.ours(text, fresh=True)
    path = hosts.embedding("athanornew", hosts.width)
    first = hosts.ours(text, fresh=True)
    assert first.away_from(nothing) > 0 and ("TI hashes: " in first.infotext) == hosts.writes_ti_hashes
    hosts.embedding("athanornew", hosts.width, seed=9)
    second = hosts.ours(text, fresh=True)
    assert second.away_from(first) > 0
    assert (second.infotext != first.infotext) == hosts.writes_ti_hashes  # another hash
    path.unlink()
    os.utime(hosts.folders["embedding"].parent)
    assert hosts.ours(text, fresh=True).away_from(nothing) == 0


def test_given_files_draw_as_the_hosts_own_loader(given_files, hosts):
    """Files that a trainer or LyCORIS itself made for this checkpoint: `make_files.py` makes a folder for `--files`.

    One that has a namesake in `reference/`, with the same differences in full, is compared with that.
    """
    if given_files is None:
        pytest.skip("needs files: --files DIR")
    differences = {}
    for path in sorted(given_files.glob("*.safetensors")):
        exact = (given_files / "reference" / path.name).exists()
        mine, theirs = f"{path.stem}:{1 if exact else 0.7}", f"{path.stem}_reference:1" if exact else f"{path.stem}:0.7"
        one, other = hosts.ours(f"{PROMPT} <lora:{mine}>"), hosts.alone(f"{PROMPT} <lora:{theirs}>")
        differences[path.stem] = one.away_from(other), one.away_from(hosts.ours())
    for path in sorted(given_files.glob("embeddings/*.safetensors")):
        text = f"a drawing of a {path.stem} on a blue background"
        plain = hosts.ours("a drawing of a on a blue background")
        one, other = hosts.ours(text), hosts.alone(text)
        differences[path.stem] = one.away_from(other), one.away_from(plain)
    print(differences)
    assert differences
    assert all(apart <= 1 and acts > 2 for apart, acts in differences.values()), differences


def test_a_missing_file_is_reported_with_the_nearest_name(hosts):
    drawn = hosts.ours(f"{PROMPT} <lora:k_locn:1>")
    assert 'there is no LoRA \\"k_locn\\"; did you mean \\"k_locon\\"?' in drawn.infotext
    assert drawn.away_from(hosts.ours()) == 0


def test_a_broken_file_is_reported_and_stays_where_it_is(hosts):
    path = hosts.folders["lora"] / "broken.safetensors"
    path.write_bytes(b"x" * 5000)
    drawn = hosts.ours(f"{PROMPT} <lora:broken:1>", fresh=True)
    assert drawn.away_from(hosts.ours()) == 0 and "broken" in drawn.infotext.split("Athanor: ")[1]
    assert str(path.parent) not in drawn.infotext  # pictures are shown to other people
    assert path.exists()  # Forge renames files that fail in its own readers
    path.unlink()


def test_a_retrained_file_of_the_same_name_takes_effect_at_once(hosts):
    text = f"{PROMPT} <lora:athanor_again:0.7>"
    hosts.lora("athanor_again", seed=1)
    first = hosts.ours(text, fresh=True)
    assert first.away_from(hosts.ours()) > 2
    hosts.lora("athanor_again", seed=2)
    assert hosts.ours(text, fresh=True).away_from(first) > 2
    hosts.lora("athanor_again", seed=1)
    assert hosts.ours(text, fresh=True).away_from(first) == 0


def test_embeddings_by_name_and_by_tag(hosts):
    plain, path = hosts.ours("a drawing of "), hosts.embedding("athanorword", hosts.width)
    named = hosts.ours("a drawing of athanorword")
    assert named.away_from(plain) > 2
    assert ("athanorword: " in named.infotext) == hosts.writes_ti_hashes
    assert hosts.ours("a drawing of <ti:athanorword>").away_from(named) == 0
    assert hosts.ours("a drawing of <ti:athanorword:0>").away_from(plain) == 0
    for one in ("<ti:athanorword:0.5>", "<ti:athanorword:1:stop=0.5>"):
        drawn = hosts.ours(f"a drawing of {one}")
        assert drawn.away_from(named) > 0 and drawn.away_from(plain) > 0
    path.unlink()


def test_the_network_that_a_setting_adds(hosts):
    """As the network's tag. A1111's own loader is asked with the setting too, and last: it keeps that network then, and
    what Forge's does with the setting depends on what was drawn before."""
    chosen, tagged = {"settings": {"sd_lora": "k_lora"}}, f"{PROMPT} <lora:k_lora:1>"
    plain, expected = hosts.ours(), hosts.alone(tagged)
    one = hosts.ours(**chosen)
    assert one.away_from(expected) <= 1 and one.away_from(plain) > 2 and one.away_from(hosts.ours(tagged)) == 0
    assert "<lora:k_lora:1" in one.infotext
    assert hosts.ours(fresh=True).away_from(plain) == 0
    if hosts.kind == "a1111":
        other = hosts.alone(**chosen)
        assert one.away_from(other) <= 1 and one.infotext == other.infotext
