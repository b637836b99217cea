"""Generations over whole models: nested, failed, replaced, forgotten; afterwards no trace is left."""

# ruff: noqa: F811  (pytest takes fixtures by the name of an argument)

from __future__ import annotations

import copy
import gc
import pickle

import pytest
import torch
from injection_cases import assert_near, checksum, draw, files, merged, models, parts_of, setup, traces, written  # noqa: F401
from injection_helpers import write_adapter
from injection_models import Processing, random_lora, unet_inputs
from tiny_models import tiny_modules

from extension.injection import AdapterFiles, Injection, constant_use

torch.set_num_threads(1)


def test_nested_generations(setup):
    model, injection, one, other = setup
    plain, outer, inner = draw(model), Processing(), Processing()
    injection.begin(outer, [constant_use(one)])
    with_one = draw(model)
    injection.begin(inner, [constant_use(other, 0.5)], merged=True)
    assert (draw(model)[0] - with_one[0]).abs().max() > 1e-4
    innermost = Processing()
    injection.begin(innermost, [])
    assert torch.equal(draw(model)[0], plain[0])
    injection.end(innermost)
    injection.end(inner)
    assert all(torch.equal(a, b) for a, b in zip(draw(model), with_one, strict=True))
    injection.end(outer)
    assert traces(*parts_of(model).values()) == [] and injection.current is None


def test_ending_the_outer_ends_what_was_left_inside(setup):
    model, injection, one, other = setup
    outer, inner = Processing(), Processing()
    injection.begin(outer, [constant_use(one)])
    injection.begin(inner, [constant_use(other)])
    injection.end(outer)
    assert injection.current is None and traces(*parts_of(model).values()) == []


def test_exception_then_forgotten(setup):
    model, injection, one, _ = setup

    def generate():
        p = Processing()
        injection.begin(p, [constant_use(one)])
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError):
        generate()
    gc.collect()
    assert injection.current is None and traces(*parts_of(model).values()) == []


def test_exception_then_another_generation(setup):
    """The host may hold the processing object of a generation that failed; the next one does not nest in it."""
    model, injection, one, other = setup
    held = []

    def generate():
        p = Processing()
        held.append(p)
        injection.begin(p, [constant_use(one)])
        raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError) as caught:
        generate()
    del caught
    p = Processing()
    injection.begin(p, [constant_use(other)])
    injection.end(p)
    assert injection.current is None and traces(*parts_of(model).values()) == []


def test_same_owner_again_replaces(setup):
    """The hires pass activates again for the same processing object."""
    model, injection, one, other = setup
    p = Processing()
    injection.begin(p, [constant_use(one)])
    injection.begin(p, [constant_use(other)])
    second = draw(model)
    injection.end(p)
    q = Processing()
    injection.begin(q, [constant_use(other)])
    assert torch.equal(draw(model)[0], second[0])
    injection.end(q)
    assert injection.current is None


def test_two_models_in_memory(setup, models):
    _, injection, one, _ = setup
    other_model = tiny_modules("sd1", seed=4)
    plain = draw(other_model)
    p = Processing()
    injection.begin(p, [constant_use(one)])
    assert torch.equal(draw(other_model)[0], plain[0])
    injection.end(p)


def test_dropped_model_is_freed_while_attached(files, tmp_path):
    import weakref

    model = tiny_modules("sd1", seed=5)
    path = write_adapter(tmp_path / "x.safetensors", random_lora(model, "sd1"))
    injection, p = Injection("sd1", parts_of(model)), Processing()
    injection.begin(p, [constant_use(files.get(path))])
    watched = weakref.ref(model.unet)
    del model
    gc.collect()
    assert watched() is None
    injection.end(p)
    injection.detach()


def test_detach_in_the_middle(setup):
    model, injection, one, _ = setup
    plain, p = draw(model), Processing()
    injection.begin(p, [constant_use(one)], merged=True)
    injection.detach()
    assert traces(*parts_of(model).values()) == [] and injection.nbytes() == 0
    assert torch.equal(draw(model)[0], plain[0])
    injection.end(p)


def test_copies_and_pickles_of_the_host_model_are_not_ours(setup):
    model, injection, one, _ = setup
    plain, p = draw(model), Processing()
    injection.begin(p, [constant_use(one)])
    draw(model)
    copied = copy.deepcopy(model)
    loaded = pickle.loads(pickle.dumps(model.unet))
    injection.end(p)
    assert torch.equal(draw(copied)[0], plain[0])
    with torch.no_grad():
        assert torch.equal(loaded(**unet_inputs(model)).sample, plain[0])


def test_retrained_file_of_the_same_name(models, tmp_path):
    model, files = models("sd1"), AdapterFiles()
    path = write_adapter(tmp_path / "x.safetensors", random_lora(model, "sd1"))
    injection, p = Injection("sd1", parts_of(model)), Processing()
    injection.begin(p, [constant_use(files.get(path))])
    first = draw(model)
    injection.end(p)
    known = files.get(path)
    assert files.get(path) is known
    size = path.stat().st_size
    write_adapter(path, random_lora(model, "sd1", seed=8))
    assert path.stat().st_size == size
    injection.begin(p, [constant_use(files.get(path))])
    assert (draw(model)[0] - first[0]).abs().max() > 1e-4
    injection.end(p)


def test_another_value_only_changes_numbers(setup):
    """A changed weight builds nothing again."""
    _, injection, one, other = setup
    p = Processing()
    plan = injection.begin(p, [constant_use(one), constant_use(other)]).plan
    assert injection.begin(p, [constant_use(one, 0.3), constant_use(other, 0.7)]).plan is plan
    injection.end(p)
    assert injection.begin(p, [constant_use(one, 0.3), constant_use(other, 0.7)]).plan is plan
    injection.end(p)


def test_memory_is_the_size_of_the_file(models, files, tmp_path):
    model = models("sd1")
    entries = random_lora(model, "sd1")
    path = write_adapter(tmp_path / "x.safetensors", entries, torch.float16)
    numbers = sum(e["lora_down"].numel() + e["lora_up"].numel() for e in entries.values())
    injection, p = Injection("sd1", parts_of(model)), Processing()
    injection.begin(p, [constant_use(files.get(path))])
    assert injection.nbytes() == numbers * 2
    draw(model)
    assert injection.nbytes() == numbers * 4  # the base is float32
    injection.end(p)
