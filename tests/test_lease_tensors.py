"""A host's tensors as a base: every family, every naming, as views; and computing over another number format."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_models import tiny_modules

from trainers.bases import export, live_trial
from trainers.bases.detect import inspect_base
from trainers.bases.live import CannotAttach, live_base, read_description
from trainers.bases.loader import load_base
from trainers.bases.text import encode_prompts
from trainers.engine.attached import compute_over
from trainers.formats import live_tensors
from trainers.formats.families import FAMILIES
from trainers.formats.live_tensors import Mapped, Shared, _encoded

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is shared on Linux only")


def components_of(family: str, dtype: torch.dtype = torch.float32) -> dict:
    """What a WebUI with a single file's names has in memory, the embeddings' wrapper taken off."""
    modules = tiny_modules(family)
    encoders = zip(modules.family.text_encoders, modules.text_encoders, strict=True)
    parts = {"unet": export.unet_to_ldm(modules.family, export.canonical_state(modules.unet))}
    parts |= {e.component: export.text_to_ldm(e, export.canonical_state(m)) for e, m in encoders}
    parts["vae"] = export.vae_to_ldm(export.canonical_state(modules.vae))
    with torch.inference_mode():
        kept = {n: {k: t.clone().to(dtype) for k, t in part.items() if t.ndim} for n, part in parts.items()}
    return {name: ("ldm", {k: t for k, t in part.items() if t.is_floating_point()}) for name, part in kept.items()}


def attached(path, components, **more):
    """(what shares them, the base over them), as two processes have it."""
    shared = Shared(components)
    return shared, live_base({**shared.description(**more)}, inspect_base(path))


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_every_tensor_is_a_view_of_the_hosts(family, tiny_base):
    components = components_of(family)
    shared, live = attached(tiny_base(family), components)
    ours = load_base(live.info.path, info=live.info, dtype=None)
    file = load_base(tiny_base(family))
    for name in (*FAMILIES[family].components, "vae"):
        mine, theirs = ours.component(name).state_dict(), file.component(name).state_dict()
        assert all(torch.equal(mine[key], theirs[key]) for key in theirs)
    with torch.inference_mode():
        for _, tensors in components.values():
            for tensor in tensors.values():
                tensor.fill_(0.25)
    for name in (*FAMILIES[family].components, "vae"):
        for key, tensor in ours.component(name).named_parameters():
            # SDXL's projection lies the other way round in open_clip: this one matrix is a copy.
            assert key == "text_projection.weight" or bool((tensor == 0.25).all()), key
    assert live.nbytes <= shared.nbytes
    assert not any(parameter.is_inference() for parameter in ours.unet.parameters())


def test_a_base_in_another_format_is_computed_over_in_place(tiny_base):
    components = components_of("sd1", torch.float16)
    _, live = attached(tiny_base("sd1"), components)
    ours = load_base(live.info.path, info=live.info, dtype=None)
    pointers = {p.data_ptr() for module in (ours.unet, *ours.text_encoders) for p in module.parameters() if p.ndim > 1}
    for module in (ours.unet, *ours.text_encoders):
        compute_over(module, torch.float32)
    kept = {p.data_ptr() for module in (ours.unet, *ours.text_encoders) for p in module.parameters() if p.ndim > 1}
    assert kept == pointers
    same = load_base(tiny_base("sd1"), dtype=torch.float16)
    for module in (same.unet, *same.text_encoders):
        module.float()
    answers = []
    for base in (ours, same):
        hidden = encode_prompts(base, ["a ball, red"], 1)[0].hidden[None]
        latent = torch.linspace(-1, 1, 4 * 64).view(1, 4, 8, 8).requires_grad_()
        out = base.unet(latent, torch.tensor([300]), hidden).sample
        out.square().sum().backward()
        answers.append((hidden.detach(), out.detach(), latent.grad))
    assert answers[0][0].dtype == torch.float32
    assert all(torch.allclose(one, other, rtol=1e-4, atol=1e-5) for one, other in zip(*answers, strict=True))


def test_a_card_that_is_not_the_hosts_is_refused(monkeypatch, tmp_path):
    """CUDA's handles cannot be made here, so a description of them is."""
    ours, cards = (
        torch.__version__.partition("+")[0],
        [SimpleNamespace(name="One", uuid="1"), SimpleNamespace(name="Two", uuid="2")],
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(cards))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: cards[device.index])
    file = tmp_path / "host_tensors.json"
    storages = [{"kind": "cuda", "handle": [1, {"bytes": ""}]}, {"kind": "cuda", "handle": []}]
    described = {"version": 1, "torch": ours, "card": "Two 2", "components": {}, "storages": storages}

    def why(**changes):
        file.write_text(json.dumps({**described, **changes}))
        try:
            read_description(file)
        except CannotAttach as reason:
            return str(reason)
        return ""

    assert why() == ""
    assert "number the graphics cards differently" in why(card="One 1")
    assert "torch 2.1.2 and the trainers have" in why(torch="2.1.2")
    assert why(storages=[], torch="2.1.2") == ""  # nothing of a card is in it
    cards.pop()
    assert "do not see the graphics card" in why()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "do not see the graphics card" in why()
    assert live_trial.main(str(file)) == 1


@pytest.mark.parametrize(("readers", "wanted"), [(1, 0), (0, 0), (2, 1), (-1, -1)])
def test_a_reader_is_counted_out_only_where_it_has_not_done_so(monkeypatch, tmp_path, readers, wanted):
    """torch's counters for CUDA: a file with a head of 64 bytes, then an int64 for each storage."""
    file, place = tmp_path / "torch_1_2_0", 3
    handle = [0, b"memory", 8, 0, b"/torch_1_2_0", place, b"event", True]
    counters = np.memmap(file, np.int64, "w+", offset=64, shape=(5,))
    counters[place] = 1

    def release(name: bytes, index: int) -> None:
        assert name == b"/torch_1_2_0"
        counters[index] -= 1

    monkeypatch.setattr(live_tensors, "_COUNTERS", tmp_path)
    monkeypatch.setattr(live_tensors, "_share", lambda storage: {"kind": "cuda", "handle": [*map(_encoded, handle)]})
    monkeypatch.setattr(torch.UntypedStorage, "_release_ipc_counter_cuda", release)
    monkeypatch.setattr(torch.cuda, "ipc_collect", lambda: None)
    shared = Shared({"unet": ("ldm", {"weight": torch.ones(2)})})
    counters[place] = readers
    shared.release()
    assert counters[place] == wanted
    for strange in (7, 0):  # not what torch begins with, wherever it counts: nothing may stay counted in
        counters[place] = strange
        with pytest.raises(RuntimeError, match="counts the readers"):
            Shared({"unet": ("ldm", {"weight": torch.ones(2)})})
        assert counters[place] == strange - 1


def test_an_empty_storage_is_made_anew(tmp_path):
    shared = Shared({"unet": ("ldm", {"none": torch.zeros(0, 4), "some": torch.ones(2)})})
    found = Mapped(json.loads(json.dumps(shared.description()))).tensors("unet", ["none", "some"])
    assert found["none"].shape == (0, 4) and found["some"].tolist() == [1, 1]
    shared.release()


def test_what_is_not_the_files_model_is_refused(tiny_base):
    components = components_of("sd1")
    components["unet"][1].popitem()
    with pytest.raises(CannotAttach, match="unet"):
        attached(tiny_base("sd1"), components)
    components = components_of("sd1")
    del components["text_encoder"]
    with pytest.raises(CannotAttach, match="text_encoder"):
        attached(tiny_base("sd1"), components)
    components = components_of("sd1")
    name, tensor = next(iter(components["unet"][1].items()))
    components["unet"][1][name] = tensor.to(torch.int8)
    with pytest.raises(CannotAttach, match="int8"):
        attached(tiny_base("sd1"), components)


def test_a_separate_autoencoder_serves_only_who_asks_for_it(tiny_base, tmp_path):
    vae = tmp_path / "my vae.safetensors"
    vae.write_bytes(b"")
    _, live = attached(tiny_base("sd1"), components_of("sd1"), vae_file=str(vae))
    assert live.has_vae_for(str(vae)) and not live.has_vae_for(None) and not live.has_vae_for(str(tmp_path / "x"))
    _, live = attached(tiny_base("sd1"), components_of("sd1"), vae_file="")
    assert live.has_vae_for(None) and not live.has_vae_for(str(vae))
