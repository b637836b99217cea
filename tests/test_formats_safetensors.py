"""Reading hostile safetensors headers, and writing reproducible, whole files."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import struct
import subprocess
import sys

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainers.errors import InputError
from trainers.formats import hashes, safetensors_io

TENSORS = {
    "b.weight": torch.arange(12, dtype=torch.float32).reshape(3, 4),
    "a.weight": torch.ones(5, dtype=torch.float16),
    "empty": torch.zeros(0, 3),
    "scalar": torch.tensor(2.5),
    "count": torch.tensor([1, 2, 3]),
    "half": torch.randn(3, 3).to(torch.bfloat16),
}


def raw_file(path, header, body=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + body)
    return path


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


HOSTILE = {
    "empty file": (b"", b"", None),
    "huge header length": (b"{}", b"", 2**63),
    "header length past the end": (b"{}", b"", 5000),
    "not json": (b"{not json", b"", None),
    "not text": (b"\xff\xfe\xfd\xfc", b"", None),
    "a list": ([1, 2], b"", None),
    "a number for a tensor": ({"a": 3}, b"", None),
    "unknown dtype": ({"a": entry("F7")}, bytes(8), None),
    "dtype is a list": ({"a": entry(["F32"])}, bytes(8), None),
    "negative shape": ({"a": entry(shape=(-2,))}, bytes(8), None),
    "float shape": ({"a": entry(shape=(2.0,))}, bytes(8), None),
    "true as shape": ({"a": entry(shape=(True, 2))}, bytes(8), None),
    "shape too large": ({"a": entry(shape=(2**40, 2**40), offsets=(0, 8))}, bytes(8), None),
    "wrong size": ({"a": entry(shape=(3,))}, bytes(8), None),
    "offsets swapped": ({"a": entry(offsets=(8, 0))}, bytes(8), None),
    "offsets beyond the end": ({"a": entry(shape=(2**20,), offsets=(0, 2**22))}, bytes(8), None),
    "three offsets": ({"a": entry(offsets=(0, 4, 8))}, bytes(8), None),
    "overlap": ({"a": entry(), "b": entry(offsets=(4, 12))}, bytes(12), None),
    "gap": ({"a": entry(), "b": entry(offsets=(12, 20))}, bytes(20), None),
    "rest after the last tensor": ({"a": entry()}, bytes(9), None),
    "truncated": ({"a": entry()}, bytes(7), None),
    "metadata not text": ({"__metadata__": {"a": 1}}, b"", None),
    "metadata a list": ({"__metadata__": ["a"]}, b"", None),
    "name twice": (b'{"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]},"a":{}}', bytes(4), None),
    "deep nesting": (b'{"a":' + b"[" * 100_000, b"", None),
}


@pytest.mark.parametrize("name", list(HOSTILE))
def test_hostile_headers_are_refused_in_one_sentence(tmp_path, name):
    header, body, length = HOSTILE[name]
    path = raw_file(tmp_path / "hostile.safetensors", header, body, length)
    if name == "empty file":
        path.write_bytes(b"")
    for read in (safetensors_io.read_header, safetensors_io.load):
        with pytest.raises(InputError) as caught:
            read(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 400 + len(str(path))


def test_missing_files_folders_and_pipes_are_refused(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        safetensors_io.read_header(tmp_path / "none.safetensors")
    with pytest.raises(InputError, match="folder"):
        safetensors_io.read_header(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(InputError, match="not a regular file"):
            safetensors_io.read_header(tmp_path / "pipe")


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_damaged_byte_never_gives_anything_but_a_file_or_a_refusal(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "fuzz.safetensors"
    whole = safetensors.torch.save({"a": torch.ones(4), "b": torch.zeros(2, 2)}, {"key": "value"})
    kind = data.draw(st.sampled_from(["flip", "cut", "insert"]))
    position = data.draw(st.integers(0, len(whole) - 1))
    if kind == "cut":
        damaged = whole[:position]
    elif kind == "insert":
        damaged = whole[:position] + data.draw(st.binary(min_size=1, max_size=4)) + whole[position:]
    else:
        damaged = whole[:position] + bytes([data.draw(st.integers(0, 255))]) + whole[position + 1 :]
    path.write_bytes(damaged)
    try:
        tensors, _ = safetensors_io.load(path)
    except InputError:
        return
    # What we accept, the reference implementation accepts, with the same values.
    reference = safetensors.torch.load(damaged)
    assert tensors.keys() == reference.keys()
    assert all(
        torch.equal(tensors[name].view(-1).view(torch.uint8), reference[name].view(-1).view(torch.uint8))
        for name in tensors
    )


@pytest.mark.parametrize("mapped", [False, True])
def test_round_trip_and_agreement_with_the_reference_writer(tmp_path, mapped):
    path = tmp_path / "a.safetensors"
    safetensors_io.save(path, TENSORS, {"name": "Zürich", "about": "x"})
    tensors, metadata = safetensors_io.load(path, mapped=mapped)
    assert metadata == {"name": "Zürich", "about": "x"}
    reference = safetensors.torch.load_file(path)
    for name, tensor in TENSORS.items():
        assert torch.equal(tensors[name], tensor)
        assert torch.equal(reference[name], tensor)
        assert tensors[name].dtype == tensor.dtype


def test_equal_saves_are_equal_bytes_whatever_the_order(tmp_path):
    one, other = tmp_path / "1.safetensors", tmp_path / "2.safetensors"
    safetensors_io.save(one, TENSORS, {"a": "1", "b": "2"})
    safetensors_io.save(other, dict(reversed(TENSORS.items())), {"b": "2", "a": "1"})
    assert one.read_bytes() == other.read_bytes()
    assert list(json.loads(one.read_bytes()[8:].split(b"}}")[0] + b"}}")["__metadata__"]) == ["a", "b"]


def test_a_view_of_a_larger_tensor_is_written_alone(tmp_path):
    large = torch.arange(100.0).reshape(10, 10)
    safetensors_io.save(tmp_path / "v.safetensors", {"v": large.t()[2:4]})
    assert torch.equal(safetensors_io.load(tmp_path / "v.safetensors")[0]["v"], large.t()[2:4])


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    safetensors_io.save(path, {"a": torch.ones(3)})
    before = path.read_bytes()

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="no room left"):
        safetensors_io.save(path, {"a": torch.zeros(3)})
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]


def test_hashes_agree_with_an_independent_computation(tmp_path):
    tensors = {f"layer{i}": torch.randn(200, 200) for i in range(10)}
    metadata = {"ss_b": "2", "ss_a": "1", "modelspec.title": "x" * 1000}
    body = safetensors.torch.save(tensors, {"ss_a": "1", "ss_b": "2"})
    (length,) = struct.unpack("<Q", body[:8])
    expected = hashlib.sha256(body[8 + length :]).hexdigest()
    assert hashes.model_hash(tensors) == expected
    assert hashes.legacy_hash(tensors, metadata) == hashlib.sha256(body[0x100000:0x110000]).hexdigest()[:8]
    path = tmp_path / "a.safetensors"
    safetensors_io.save(path, tensors, metadata)
    assert hashes.file_body_sha256(path) == expected
    assert hashes.file_sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert hashes.checkpoint_legacy_hash(path) == hashlib.sha256(path.read_bytes()[0x100000:0x110000]).hexdigest()[:8]


def test_a_small_file_has_the_legacy_hash_of_nothing():
    assert hashes.legacy_hash({"a": torch.ones(3)}, {}) == "e3b0c442"


def test_formats_import_neither_diffusers_nor_transformers():
    code = (
        "import pkgutil, importlib, sys, trainers.formats as f\n"
        "[importlib.import_module('trainers.formats.' + m.name) for m in pkgutil.iter_modules(f.__path__)]\n"
        "bad = {'diffusers', 'transformers', 'peft', 'accelerate', 'open_clip', 'trainers.bases'} & set(sys.modules)\n"
        "sys.exit(str(bad) if bad else 0)\n"
    )
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
