"""From prompts and folders of files to what acts: names, aliases, missing files, fingerprints, masks."""

from __future__ import annotations

import os

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from extension.injection.embeddings import EmbeddingStore
from extension.listing import MASK_ENDINGS, Listing
from extension.masks import file_mask, mask_of
from extension.prompt import Region
from extension.wanted import Library, read_wanted
from trainers.formats import hypernetworks
from trainers.formats.hypernetworks import Hypernetwork, Structure


def lora(path, output_name=None, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    name = "lora_unet_mid_block_attentions_0_proj_in"
    tensors = {
        f"{name}.lora_down.weight": torch.randn(2, 64, 1, 1, generator=generator),
        f"{name}.lora_up.weight": torch.randn(64, 2, 1, 1, generator=generator),
        f"{name}.alpha": torch.tensor(2.0),
    }
    save_file(tensors, path, {"ss_output_name": output_name} if output_name else None)
    return path


@pytest.fixture
def library(tmp_path):
    lora(tmp_path / "Lora" / "cat 猫.safetensors")
    lora(tmp_path / "Lora" / "below" / "dog.safetensors", output_name="hound", seed=1)
    save_file({"emb_params": torch.ones(2, 64)}, _made(tmp_path / "embeddings") / "shiny (new).safetensors")
    Image.new("L", (64, 64), 255).crop((0, 0, 64, 64)).save(_made(tmp_path / "masks") / "hat.png")
    made = Library(
        Listing([tmp_path / "Lora"]),
        EmbeddingStore([tmp_path / "embeddings"]),
        masks=Listing([tmp_path / "masks"], MASK_ENDINGS),
    )
    made.rescan()
    return made


def _made(folder):
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def test_names_paths_and_aliases(library, tmp_path):
    find = library.adapters.find
    assert find("cat 猫") == tmp_path / "Lora" / "cat 猫.safetensors"
    assert find("dog") == find("below/dog") == find("hound") == tmp_path / "Lora" / "below" / "dog.safetensors"
    assert find("../Lora/dog") is None and find(str(tmp_path / "Lora" / "below" / "dog")) is None
    lora(tmp_path / "Lora" / "cur.safetensors", output_name="hound")
    assert library.adapters.rescan() and library.adapters.find("hound") is None
    assert not library.adapters.rescan()


def test_links_are_followed_once(library, tmp_path):
    elsewhere = lora(tmp_path / "other drive" / "linked.safetensors").parent
    try:
        (tmp_path / "Lora" / "link").symlink_to(elsewhere, target_is_directory=True)
        (elsewhere / "back").symlink_to(tmp_path / "Lora", target_is_directory=True)
    except OSError:
        pytest.skip("links cannot be made here")
    library.rescan()
    assert library.adapters.find("linked") and library.adapters.names().count("linked") == 1


def test_what_is_found_and_what_is_missing(library):
    wanted = read_wanted(
        ["a <lora:hound:0.5> <ti:shiny (new)> <lora:dgo>", "b <lora:cat 猫:for=picture>"],
        ["bad <lora:cat 猫:-1>", ""],
        library,
    )
    assert [one.adapter.path.stem for one in wanted.found] == ["dog", "cat 猫", "cat 猫"]
    assert wanted.prompts == ["a  shiny \\(new\\) ", "b "] and wanted.negatives == ["bad ", ""]
    assert [active.tag.name for active in wanted.missing] == ["dgo"]
    assert any('did you mean "dog"' in line for line in wanted.reports)
    assert [item.name for _, item in wanted.embedding_tags] == ["shiny (new)"]
    uses = wanted.uses("sd1")
    assert uses[1].whom.picture == 1 and uses[2].whom.negative and wanted.needs_rows
    assert set(wanted.lora_hashes()) == {"hound", "cat 猫"}
    assert all(len(value) == 12 for value in [*wanted.lora_hashes().values(), *wanted.ti_hashes().values()])


def test_a_damaged_file_and_a_missing_mask_are_said(library, tmp_path):
    (tmp_path / "Lora" / "broken.safetensors").write_bytes(b"\xff" * 40)
    library.rescan()
    wanted = read_wanted(["<lora:broken> <lora:dog:mask=het> <ti:shyni>"], [""], library)
    assert wanted.found == [] and len(wanted.reports) == 3
    assert str(tmp_path) not in wanted.reports[0]  # pictures carry it to other people
    assert "broken.safetensors" in wanted.reports[0] and 'mean "hat"' in wanted.reports[1]


def test_fingerprint_follows_tags_and_files(library, tmp_path):
    def fingerprint(text):
        library.rescan()
        return read_wanted([text], [""], library).fingerprint()

    first = fingerprint("<lora:dog:1>")
    assert fingerprint("no tags") == "" and fingerprint("<lora:dog:1>") == first != fingerprint("<lora:dog:0.9>")
    path = lora(tmp_path / "Lora" / "below" / "dog.safetensors", seed=7)
    os.utime(path, ns=(1, 1))
    assert fingerprint("<lora:dog:1>") != first


@pytest.mark.parametrize(
    ("text", "constant"),
    [
        ("<lora:dog:0.7>", True),
        ("<lora:dog:1:stop=0.5>", False),
        ("<lora:dog:te=0:unet=1:stop=0.5>", True),
        ("<lora:dog:0@0,1@1>", False),
    ],
)
def test_whether_text_weights_are_constant(library, text, constant):
    assert read_wanted([text], [""], library).constant_text is constant


def test_block_weights_of_another_family_are_said(library):
    wanted = read_wanted(["<lora:dog:1:lbw=1,1,1,1,1,1,1,1,1,1,1,1> <lora:dog:1:lbw=OUTD>"], [""], library)
    assert len(wanted.block_reports("sd1")) == 1 and "17 or 26" in wanted.block_reports("sd1")[0]
    assert wanted.block_reports("sdxl") == []


def test_hypernetworks_are_the_hosts_own_unless_listed(library, tmp_path):
    text = "<hypernet:zog:0.5> <hypernet:zug>"
    assert [active.tag.name for active in read_wanted([text], [""], library).others] == ["zog", "zug"]
    network = Hypernetwork("zog", Structure(), {8: tuple(hypernetworks.build(8, Structure()) for _ in range(2))})
    hypernetworks.save(_made(tmp_path / "hypernetworks") / "zog.pt", network)
    library.hypernetworks = Listing([tmp_path / "hypernetworks"], (".pt",))
    library.rescan()
    wanted = read_wanted([text], [""], library)
    (use,) = wanted.network_uses()
    assert use.weight("unet", 3, 20, False) == 0.5 and use.whom.everyone and wanted.others == []
    assert 'did you mean "zog"' in wanted.reports[0]


def test_live_snapshots_come_first(library, tmp_path):
    snapshot = lora(tmp_path / "runs" / "dog" / "newest.safetensors")
    library.live = lambda name, kind: {("dog", "lora"): snapshot}.get((name, kind))
    assert read_wanted(["<lora:dog:1:live=1>"], [""], library).found[0].adapter.path == snapshot
    wanted = read_wanted(["<lora:cat 猫:1:live=1>"], [""], library)
    assert wanted.found[0].adapter.path.stem == "cat 猫" and "no run of this name" in wanted.reports[0]


def test_masks(tmp_path):
    left = mask_of(Region("left", (0.0, 0.0, 0.5, 1.0)), lambda name: None)(4, 6)
    assert left.shape == (4, 6) and left[:, :3].eq(1).all() and left[:, 3:].eq(0).all()
    picture = Image.new("L", (80, 40))
    picture.paste(255, (0, 0, 40, 40))
    picture.save(tmp_path / "half.png")
    assert torch.equal(file_mask(tmp_path / "half.png", 4, 8)[0], torch.tensor([1.0] * 4 + [0.0] * 4))
    Image.new("RGBA", (8, 8), (255, 255, 255, 0)).save(tmp_path / "clear.png")
    assert file_mask(tmp_path / "clear.png", 2, 2).eq(0).all()
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"bad\.png"):
        mask_of(Region("bad"), lambda name: tmp_path / "bad.png")
