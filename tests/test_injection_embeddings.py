"""Every form of embedding file; the store sees changes; what is wrong is said."""

from __future__ import annotations

import base64
import json
import os
import pickle
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from extension.injection.adapter_file import read_index
from extension.injection.embeddings import EmbeddingStore, bundled_embeddings, read_embedding
from trainers.errors import InputError
from trainers.formats import safetensors_io

VECTORS = torch.arange(2 * 768, dtype=torch.float32).reshape(2, 768) / 1000
A1111 = {
    "string_to_token": {"*": 265},
    "string_to_param": {"*": VECTORS},
    "name": "other",
    "step": 12,
    "sd_checkpoint": None,
    "sd_checkpoint_name": "base",
}


def as_json(value):
    return {"TORCHTENSOR": value.tolist()} if isinstance(value, torch.Tensor) else value


def test_pickles(tmp_path):
    torch.save(A1111, tmp_path / "one.pt")
    found = read_embedding(tmp_path / "one.pt")
    assert (found.name, found.count, found.step, found.checkpoint) == ("one", 2, 12, "base")
    assert torch.equal(found.vectors["text_encoder"], VECTORS)
    torch.save({"<cat-toy>": VECTORS[0].half()}, tmp_path / "learned_embeds.bin")
    assert read_embedding(tmp_path / "learned_embeds.bin").vectors["text_encoder"].shape == (1, 768)
    torch.save(
        {**A1111, "string_to_param": torch.nn.ParameterDict({"*": torch.nn.Parameter(VECTORS)})}, tmp_path / "old.pt"
    )
    assert torch.equal(read_embedding(tmp_path / "old.pt").vectors["text_encoder"], VECTORS)


@pytest.mark.parametrize("name", ["emb_params", "emp_params", "anything"])
def test_safetensors(tmp_path, name):
    safetensors_io.save(tmp_path / "x.safetensors", {name: VECTORS.to(torch.bfloat16)})
    found = read_embedding(tmp_path / "x.safetensors")
    assert found.vectors["text_encoder"].dtype == torch.float32 and found.count == 2


def test_sdxl(tmp_path):
    safetensors_io.save(tmp_path / "x.safetensors", {"clip_l": VECTORS, "clip_g": torch.ones(2, 1280)})
    found = read_embedding(tmp_path / "x.safetensors")
    assert {name: tuple(v.shape) for name, v in found.vectors.items()} == {
        "text_encoder": (2, 768),
        "text_encoder_2": (2, 1280),
    }
    assert found.problem({"text_encoder": 768, "text_encoder_2": 1280}) is None
    assert "SDXL (768 and 1280 wide); this model has SD1 (768 wide)" in found.problem({"text_encoder": 768})
    safetensors_io.save(tmp_path / "half.safetensors", {"clip_g": torch.ones(2, 1280)})
    with pytest.raises(InputError, match="clip_l"):
        read_embedding(tmp_path / "half.safetensors")


def test_text_in_a_png(tmp_path):
    info = PngImagePlugin.PngInfo()
    info.add_text("sd-ti-embedding", base64.b64encode(json.dumps(A1111, default=as_json).encode()).decode())
    Image.new("RGB", (8, 8)).save(tmp_path / "p.png", pnginfo=info)
    found = read_embedding(tmp_path / "p.png")
    assert found.name == "other" and torch.allclose(found.vectors["text_encoder"], VECTORS)
    bad = PngImagePlugin.PngInfo()
    bad.add_text("sd-ti-embedding", "!!!")
    Image.new("RGB", (8, 8)).save(tmp_path / "bad.png", pnginfo=bad)
    with pytest.raises(InputError, match="damaged"):
        read_embedding(tmp_path / "bad.png")


def picture_with_strips(data):
    """A picture with the data in the low bits of two strips beside it, as A1111 lays them out."""
    stream = np.frombuffer(zlib.compress(json.dumps(data, default=as_json).encode(), 9), np.uint8)
    height = 64
    stream = np.resize(stream, (stream.size // (height * 3) + 2) * height * 3)
    state, pattern = 0, []
    for _ in range(stream.size):
        state = (1664525 * state + 1013904223) % 2**32
        pattern.append(state % 255)
    pattern = np.array(pattern, dtype=np.uint8) & 0x0F

    def strip(half):
        return ((half ^ pattern) | 0x50).reshape(height, -1, 3).astype(np.uint8)

    black = np.zeros((height, 1, 3), np.uint8)
    middle = np.full((height, 20, 3), 0x77, np.uint8)
    return Image.fromarray(np.concatenate([strip(stream & 0x0F), black, middle, black, strip(stream >> 4)], axis=1))


def test_pixels_of_a_png(tmp_path):
    small = {**A1111, "string_to_param": {"*": VECTORS[:, :40]}}
    picture_with_strips(small).save(tmp_path / "p.png")
    found = read_embedding(tmp_path / "p.png")
    assert found.name == "other" and torch.allclose(found.vectors["text_encoder"], VECTORS[:, :40])
    Image.effect_noise((64, 64), 80).save(tmp_path / "plain.png")
    assert read_embedding(tmp_path / "plain.png") is None
    Image.new("RGB", (4, 4)).save(tmp_path / "black.png")
    assert read_embedding(tmp_path / "black.png") is None


class Evil:
    def __reduce__(self):
        return os.system, ("true",)


@pytest.mark.parametrize(
    "name", ["evil.pt", "cut.pt", "cut.safetensors", "cut.png", "two.safetensors", "nan.safetensors"]
)
def test_bad_files_are_named(tmp_path, name):
    path = tmp_path / name
    if name == "evil.pt":
        path.write_bytes(pickle.dumps({"string_to_param": Evil()}, protocol=2))
    elif name == "two.safetensors":
        safetensors_io.save(path, {"a": VECTORS, "b": VECTORS})
    elif name == "nan.safetensors":
        safetensors_io.save(path, {"emb_params": VECTORS * float("nan")})
    else:
        path.write_bytes(b"PK\x03\x04 not whole" if name == "cut.pt" else b"\x89PNG" if name == "cut.png" else b"abc")
    with pytest.raises(InputError) as problem:
        read_embedding(path)
    assert name in str(problem.value)


def test_bundled(tmp_path):
    keys = {
        "bundle_emb.first.string_to_param.*": VECTORS,
        "bundle_emb.se.cond.clip_l": VECTORS,
        "bundle_emb.se.cond.clip_g": torch.ones(2, 1280),
    }
    safetensors_io.save(tmp_path / "lora.safetensors", keys)
    found = {one.name: one for one in bundled_embeddings(read_index(tmp_path / "lora.safetensors"))}
    assert set(found) == {"first", "se.cond"}
    assert set(found["se.cond"].vectors) == {"text_encoder", "text_encoder_2"}
    assert torch.equal(found["first"].vectors["text_encoder"], VECTORS)


def test_store_sees_new_changed_and_removed_files(tmp_path):
    store = EmbeddingStore([tmp_path])
    assert not store.rescan() and store.names() == []
    (tmp_path / "sub").mkdir()
    path = tmp_path / "sub" / "Thing.safetensors"
    safetensors_io.save(path, {"emb_params": VECTORS})
    assert store.rescan() and store.names() == ["Thing"]
    first = store.get("thing")
    assert not store.rescan() and store.get("THING") is first
    safetensors_io.save(path, {"emb_params": VECTORS + 1})
    os.utime(path, ns=(1, 2))
    assert store.rescan() and not torch.equal(store.get("thing").vectors["text_encoder"], VECTORS)
    path.unlink()
    assert store.rescan() and store.get("thing") is None


def test_store_reports(tmp_path):
    safetensors_io.save(tmp_path / "cat.safetensors", {"emb_params": VECTORS})
    safetensors_io.save(tmp_path / "wide.safetensors", {"emb_params": torch.ones(1, 1024)})
    safetensors_io.save(tmp_path / "many.safetensors", {"emb_params": torch.ones(76, 768)})
    (tmp_path / "broken.pt").write_bytes(b"PK\x03\x04")
    (tmp_path / "a").mkdir()
    safetensors_io.save(tmp_path / "a" / "Cat.safetensors", {"emb_params": VECTORS})
    os.symlink(tmp_path, tmp_path / "a" / "loop")
    store = EmbeddingStore([tmp_path])
    store.rescan()
    text = "\n".join(store.reports({"text_encoder": 768}, {"cat</w>"}))
    assert "broken.pt" in text
    assert '"wide" is for SD2 (1024 wide); this model has SD1 (768 wide)' in text
    assert '"many" has 76 vectors' in text
    assert "already has the name" in text
    assert '"cat" takes the place of the word' in text or '"Cat" takes the place of the word' in text
