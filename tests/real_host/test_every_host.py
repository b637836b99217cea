"""What is the same in every real WebUI: pasting, settings, files of all forms, and what is said about them."""

from __future__ import annotations

import contextlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from kinds import write
from patcher_fixtures import Drawing
from PIL import Image
from server import PROMPT

from trainers.formats import safetensors_io

LORA = f"{PROMPT} <lora:k_lora:0.7>"


@dataclass
class Hosts:
    """The WebUI with this extension and without, whichever it is."""

    kind: str
    folder: Path
    ours: Drawing
    alone: Drawing
    folders: dict[str, Path]
    state: dict[str, torch.Tensor]

    @property
    def width(self) -> int:
        """Of the token embeddings."""
        return self.state["cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"].shape[1]

    def lora(self, name: str, **more) -> Path:
        """A LoRA of this name."""
        return write(self.folders["lora"] / f"{name}.safetensors", "lora", self.state, **more)

    def embedding(self, name: str, width: int, seed: int = 3) -> Path:
        """An embedding of this name, of two vectors."""
        size = float(self.state["cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"].std())
        vectors = torch.randn(2, width, generator=torch.Generator().manual_seed(seed)) * size
        path = self.folders["embedding"] / f"{name}.safetensors"
        safetensors_io.save(path, {"emb_params": vectors}, {})
        os.utime(self.folders["embedding"].parent)  # A1111 alone looks for new ones only when this changed
        return path

    @contextlib.contextmanager
    def given_back(self):
        """The tags are the WebUI's own loader's."""
        self.ours.server.post("/sdapi/v1/options", {"athanor_lora": False})
        try:
            yield
        finally:
            self.ours.server.post("/sdapi/v1/options", {"athanor_lora": True})


@pytest.fixture(scope="module")
def hosts(request, which_webui, webui):
    names = ("servers", "a1111_folders", "state")
    if which_webui != "a1111":
        names = ("patcher_servers", "patcher_folders", "patcher_state")
    servers, folders, state = (request.getfixturevalue(name) for name in names)
    pair = servers if which_webui != "a1111" else [Drawing(server) for server in servers]
    return Hosts(which_webui, webui, *pair, folders, state)


@pytest.fixture(scope="module", autouse=True)
def leaves_nothing(hosts):
    yield
    assert hosts.ours(fresh=True).away_from(hosts.alone()) == 0


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


def test_the_network_that_a_setting_adds(hosts):
    chosen = {"settings": {"sd_lora": "k_lora"}}
    one, other = hosts.ours(**chosen), hosts.alone(**chosen)
    assert one.away_from(other) <= 1 and one.away_from(hosts.ours()) > 2
    assert "<lora:k_lora:1" in one.infotext
    assert one.infotext == other.infotext or hosts.kind == "forge"  # which writes no hashes where it makes none


def test_an_embedding_inside_a_lora(hosts):
    tensors, metadata = safetensors_io.load(hosts.lora("athanor_bundle", seed=5))
    vectors = torch.randn(2, hosts.width, generator=torch.Generator().manual_seed(6))
    bundle = {**tensors, "bundle_emb.athanorinside.string_to_param.*": vectors * 0.5}
    safetensors_io.save(hosts.folders["lora"] / "athanor_bundle.safetensors", bundle, metadata or {})
    tag = "<lora:athanor_bundle:0.5>"
    named = hosts.ours(f"a drawing of athanorinside {tag}")
    assert named.away_from(hosts.ours(f"a drawing of {tag}")) > 2
    if hosts.kind != "forge":  # whose own loader does not read it
        assert named.away_from(hosts.alone(f"a drawing of athanorinside {tag}")) <= 1
    assert hosts.ours("a drawing of athanorinside").away_from(hosts.alone("a drawing of athanorinside")) == 0


def test_a_region_from_a_picture(hosts):
    folder = hosts.folder / "athanor" / "masks"
    there = folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    left = np.zeros((64, 64), np.uint8)
    left[:, :32] = 255
    Image.fromarray(left).save(folder / "athanor-half.png")
    try:
        tag = f"{PROMPT} <lora:k_lora:te=0:unet=0.8:mask="
        drawn = hosts.ours(f"{tag}athanor-half>")
        assert drawn.away_from(hosts.ours(f"{tag}left>")) == 0 and drawn.away_from(hosts.ours()) > 2
        missing = hosts.ours(f"{tag}athanor-hal>")
        assert missing.away_from(hosts.ours()) == 0 and 'did you mean \\"athanor-half\\"?' in missing.infotext
    finally:
        (folder / "athanor-half.png").unlink()
        if not there:
            shutil.rmtree(folder.parent)
    assert "only the UNet's part" in hosts.ours(f"{PROMPT} <lora:k_lora:1:mask=left>").infotext


def test_img2img(hosts):
    given = {"init_images": hosts.alone().encoded, "denoising_strength": 0.7, "steps": 6}
    tagged = hosts.ours(LORA, **given)
    assert tagged.away_from(hosts.alone(LORA, **given)) <= 1 and tagged.away_from(hosts.ours(**given)) > 2
    halves = f"{PROMPT} <lora:k_lora:0.7:stop=0.5> <lora:k_lora:0.7:start=0.5>"
    assert hosts.ours(halves, **given).away_from(tagged) <= 1
    assert hosts.ours(f"{LORA} <lora:k_lora:-0.7:start=0.5>", **given).away_from(tagged) > 2
    split = hosts.ours(f"{PROMPT} <lora:k_lora:0.7:for=part>", "blurry <lora:k_lora:0.7>", **given)
    assert split.away_from(tagged) <= 1
    assert hosts.ours(**given).away_from(hosts.alone(**given)) == 0


def test_a_model_of_an_unknown_kind_is_left_to_the_hosts_own_loader(hosts):
    if hosts.kind == "reforge":
        pytest.skip("reForge's models are told apart by their parts, which cannot be disguised")
    before = hosts.ours.server.get("/neighbour/model")
    drawn = hosts.ours(f"{LORA} (foreign)")
    assert "<lora:k_lora:0.7> went to the WebUI's own loader" in drawn.infotext
    assert "Lora hashes: " in drawn.infotext or hosts.kind == "forge"  # which writes none where it makes none
    with hosts.given_back():
        expected = hosts.ours(f"{LORA} (foreign)", fresh=True)
    assert drawn.away_from(expected) == 0 and drawn.away_from(hosts.ours(f"{PROMPT} (foreign)")) > 2
    hosts.ours(fresh=True)
    assert hosts.ours.server.get("/neighbour/model") == before


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
        tag = hosts.ours("a drawing of <ti:athanorwide:0.5>", fresh=True)
        assert 'The embedding "athanorwide" is for' in tag.infotext
    finally:
        for path in paths:
            path.unlink()
        os.utime(hosts.folders["embedding"].parent)


def test_a_new_and_a_changed_embedding_are_seen_at_once(hosts):
    text = "a drawing of athanornew"
    nothing = hosts.ours(text, fresh=True)
    path = hosts.embedding("athanornew", hosts.width)
    first = hosts.ours(text, fresh=True)
    assert first.away_from(nothing) > 0 and "TI hashes: " in first.infotext
    hosts.embedding("athanornew", hosts.width, seed=9)
    second = hosts.ours(text, fresh=True)
    assert second.away_from(first) > 0 and second.infotext != first.infotext  # another hash
    path.unlink()
    os.utime(hosts.folders["embedding"].parent)
    assert hosts.ours(text, fresh=True).away_from(nothing) == 0


def test_given_files_draw_as_the_hosts_own_loader(request, hosts):
    """Files that a trainer or LyCORIS itself made for this checkpoint: put a folder of them behind --files."""
    folder = request.config.getoption("--files")
    if not folder:
        pytest.skip("needs files: --files DIR")
    differences = {}
    for path in sorted(Path(folder).glob("*.safetensors")):
        shutil.copyfile(path, hosts.folders["lora"] / path.name)
        text = f"{PROMPT} <lora:{path.stem}:0.7>"
        one, other = hosts.ours(text), hosts.alone(text)
        differences[path.stem] = one.away_from(other), one.away_from(hosts.ours())
    for path in sorted(Path(folder).glob("embeddings/*.safetensors")):
        shutil.copyfile(path, hosts.folders["embedding"] / path.name)
        os.utime(hosts.folders["embedding"].parent)
        text = f"a drawing of a {path.stem} on a blue background"
        plain = hosts.ours("a drawing of a on a blue background")
        one = hosts.ours(text)
        other = hosts.alone(text)
        differences[path.stem] = one.away_from(other), one.away_from(plain)
    print(differences)
    assert differences
    assert all(apart <= 1 and acts > 2 for apart, acts in differences.values()), differences


def test_nothing_of_ours_was_in_an_error(hosts):
    said = hosts.ours.server.said()
    assert "athanor_extension" not in said and "Error calling" not in said and "corrupted" not in said
