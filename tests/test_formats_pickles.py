"""Pickles are read without running what is in them."""

from __future__ import annotations

import collections
import contextlib
import os
import pickle
import zipfile

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from trainers.errors import InputError
from trainers.formats import pickles


class Attack:
    """Writes a file when it is unpickled."""

    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return os.mkdir, (self.target,)


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("place", ["value", "inside"])
def test_a_pickle_with_code_is_refused_and_does_nothing(tmp_path, old, place):
    path, target = tmp_path / "evil.ckpt", tmp_path / "attacked"
    content = Attack(target) if place == "value" else {"state_dict": {"a": torch.ones(2), "b": Attack(target)}}
    torch.save(content, path, _use_new_zipfile_serialization=not old)
    for read in (pickles.read_index, pickles.load_tensors, pickles.read_content_index, pickles.load_content):
        with pytest.raises(InputError) as caught:
            read(path)
        assert "could run code" in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not target.exists()


@pytest.mark.parametrize("name", ["builtins.eval", "os.system", "torch.hub.load", "torch.load", "numpy.load"])
def test_every_function_that_is_no_tensor_is_refused(tmp_path, name):
    module, _, function = name.rpartition(".")
    code = b"\x80\x02c" + module.encode() + b"\n" + function.encode() + b"\nX\x01\x00\x00\x00x\x85R."
    path = tmp_path / "a.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", code)
    with pytest.raises(InputError, match="could run code"):
        pickles.load_content(path)


@pytest.mark.parametrize("old", [False, True])
def test_a_checkpoint_is_read(tmp_path, old):
    path = tmp_path / "a.ckpt"
    weight = torch.randn(4, 6)
    state = collections.OrderedDict(
        a=weight, b=weight.t()[1:3], c=torch.tensor(3), d=torch.ones(2, dtype=torch.float16)
    )
    content = {"state_dict": state, "epoch": 3, "global_step": 4, "note": "x", "p": torch.nn.Parameter(torch.ones(1))}
    torch.save(content, path, _use_new_zipfile_serialization=not old)
    index = pickles.read_index(path)
    assert {name: info.shape for name, info in index.items()} == {"a": (4, 6), "b": (2, 4), "c": (), "d": (2,)}
    assert index["d"].dtype == "F16"
    tensors = pickles.load_tensors(path)
    assert all(torch.equal(tensors[name], state[name]) for name in state)
    assert pickles.load_tensors(path, {"a"}.__contains__).keys() == {"a"}
    assert pickles.load_content(path)["epoch"] == 3


def test_bookkeeping_of_training_libraries_is_passed_over(tmp_path):
    path = tmp_path / "a.ckpt"
    content = pickle.dumps({"state_dict": {}, "x": 1}, 2)
    lightning = b"cpytorch_lightning.callbacks.model_checkpoint\nModelCheckpoint\n)\x81}X\x04\x00\x00\x00bestK\x01sb"
    code = content[:-1] + b"X\x09\x00\x00\x00callbacks" + lightning + b"s."
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", code)
    assert pickles.load_content(path)["x"] == 1


@pytest.mark.parametrize("length", [0, 3, 10, 200, -20, -400])
@pytest.mark.parametrize("old", [False, True])
def test_truncated_files_are_refused(tmp_path, length, old):
    path = tmp_path / "a.pt"
    torch.save({"a": torch.ones(50)}, path, _use_new_zipfile_serialization=not old)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(InputError):
        pickles.load_tensors(path)


def test_a_tensor_that_reaches_beyond_its_storage_is_refused(tmp_path):
    path, other = tmp_path / "a.pt", tmp_path / "b.pt"
    torch.save({"a": torch.ones(300)}, path)
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(other, "w") as changed:
        for name in archive.namelist():
            content = archive.read(name)
            if name.endswith("data.pkl"):
                content = content.replace((300).to_bytes(2, "little"), (60000).to_bytes(2, "little"))
            changed.writestr(name, content)
    with pytest.raises(InputError, match="damaged"):
        pickles.load_tensors(other)


@pytest.mark.parametrize("old", [False, True])
def test_a_table_that_contains_itself_is_no_trap(tmp_path, old):
    path = tmp_path / "a.pt"
    content = {"a": torch.ones(1)}
    content["state_dict"] = content
    content["list"] = [content]
    torch.save(content, path, _use_new_zipfile_serialization=not old)
    for read in (pickles.read_index, pickles.load_tensors, pickles.load_content, pickles.read_content_index):
        try:
            read(path)
        except InputError as refused:
            assert "nested" in str(refused)


@settings(max_examples=200, deadline=None)
@example(b"\x8e\x00\x00\x00\x00\x00\x00\x00")
@given(st.binary(max_size=200))
def test_any_bytes_as_pickle_are_read_or_refused(tmp_path_factory, code):
    path = tmp_path_factory.getbasetemp() / "fuzz.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + code + b".")
    for read in (pickles.read_index, pickles.load_content):
        with contextlib.suppress(InputError):
            read(path)
