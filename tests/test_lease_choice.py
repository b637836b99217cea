"""Which way a device is shared, and why; and what a host does before and after a training."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from extension.hosts import lease
from extension.hosts.a1111_lease import A1111Lender, tell_turns
from extension.jobs.environment import Environment
from extension.jobs.lease import (
    ATTACH,
    HAND_OVER,
    RECORD,
    SIDE_BY_SIDE,
    CannotLend,
    Holding,
    Leases,
    choose,
    memory_when,
)
from extension.jobs.turns import DRAWING_FILE, Turns
from trainers.engine.lock import is_locked
from trainers.formats import safetensors_io
from trainers.formats.families import FAMILIES

FITS = {"peak_bytes": 4 * 2**30, "free_bytes": 9 * 2**30, "fits": True}
TOO_MUCH = {"peak_bytes": 9 * 2**30, "free_bytes": 4 * 2**30, "fits": False}


@pytest.fixture
def base(tmp_path):
    file = tmp_path / "my model.safetensors"
    file.write_bytes(b"")
    return file


def job(file: Path, **changes):
    return {"method": "lora", "base": str(file), "gpu_sharing": "auto", **changes}


def test_the_hosts_own_model_is_attached_to(base):
    held = Holding(base, "cuda:0", 2**31)
    never = lambda: pytest.fail("not needed, and takes seconds")  # noqa: E731
    assert choose(job(base), "cuda:0", held, never).mode == ATTACH
    assert choose(job(base, gpu_sharing="attach"), "cuda:0", held, never).mode == ATTACH
    assert choose(job(base, gpu_sharing="hand_over"), "cuda:0", held, never).mode == HAND_OVER
    assert choose(job(base, gpu_sharing="side_by_side"), "cuda:0", held, never).mode == SIDE_BY_SIDE
    assert choose(job(base), "cuda:0", None, never).mode == SIDE_BY_SIDE
    elsewhere = choose(job(base), "cuda:1", held, never)
    assert elsewhere.mode == SIDE_BY_SIDE and "cuda:0" in elsewhere.reason
    look = choose({"method": "aesthetic_gradient"}, "cpu", Holding(base, "cpu", 2**31), never)
    assert look.mode == SIDE_BY_SIDE and "only a CLIP model" in look.reason


@pytest.mark.parametrize(
    "changes, why",
    [
        ({"method": "dreambooth"}, "DreamBooth"),
        ({"base": "other.safetensors"}, "another model loaded"),
        ({"method": "aesthetic_gradient", "base": ""}, "only a CLIP model"),
        ({"base_dtype": "fp8"}, "8 bits"),
        ({"kind": "dora"}, "dora"),
        ({"class_prompt": "a dog"}, "class"),
    ],
)
def test_what_cannot_attach_says_why_and_goes_another_way(base, changes, why):
    held = Holding(base, "cuda:0", 2**31)
    beside = choose(job(base, **changes), "cuda:0", held, lambda: FITS)
    assert beside.mode == SIDE_BY_SIDE and why in beside.reason and "9.0 GiB" in beside.reason
    instead = choose(job(base, **changes, gpu_sharing="attach"), "cuda:0", held, lambda: TOO_MUCH)
    assert instead.mode == HAND_OVER and why in instead.reason and "9.0 GiB" in instead.reason
    assert choose(job(base, **changes), "cuda:0", held, dict).mode == HAND_OVER


class FakeLender:
    """Notes what it is asked for."""

    def __init__(self, held: Holding | None) -> None:
        self.held, self.asked, self.refuses = held, [], ""

    def holding(self):
        return self.held

    def export(self, manifest, about):
        if self.refuses:
            raise CannotLend(self.refuses)
        self.asked.append("export")
        manifest.write_text("{}")
        return SimpleNamespace(nbytes=1, release=lambda: self.asked.append("release"))

    def free(self):
        self.asked.append("free")
        return 123

    def restore(self):
        self.asked.append("restore")


def runs(tmp_path, *names):
    made = [tmp_path / "runs" / name for name in names]
    for run in made:
        run.mkdir(parents=True)
    return made


def record(run: Path) -> dict:
    return json.loads((run / RECORD).read_text(encoding="utf-8"))


def test_what_was_lent_is_released_and_what_was_freed_comes_back(base, tmp_path):
    lender = FakeLender(Holding(base, "cpu", 1))
    leases = Leases(lender, lambda job: FITS)
    one, two, three = runs(tmp_path, "one", "two", "three")
    leases.begin(one, "a", "cpu", job(base))
    assert record(one)["mode"] == ATTACH and record(one)["attempt"] == "a" and leases.attached == [one]
    assert (one / record(one)["drawing"]).resolve() == (tmp_path / "runs" / DRAWING_FILE).resolve()
    leases.end(one)
    leases.end(one)
    assert lender.asked == ["export", "release"] and leases.attached == []

    leases.begin(two, "b", "cpu", job(base, gpu_sharing="hand_over", pause_while_drawing=False))
    assert record(two)["freed_bytes"] == 123 and record(two)["drawing"] == ""
    leases.begin(three, "c", "cpu", job(base, gpu_sharing="hand_over"))
    leases.end(two)
    assert lender.asked[2:] == ["free", "free"]  # the other one still needs the room
    leases.end(three)
    assert lender.asked[4:] == ["restore"]


def test_a_host_that_cannot_lend_after_all(base, tmp_path):
    lender = FakeLender(Holding(base, "cpu", 1))
    lender.refuses = "something is merged into the weights"
    (run,) = runs(tmp_path, "one")
    Leases(lender, lambda job: TOO_MUCH).begin(run, "a", "cpu", job(base))
    assert record(run)["mode"] == HAND_OVER and lender.refuses in record(run)["reason"]
    assert lender.asked == ["free"]


def test_a_host_that_fails_keeps_nobody_from_training(base, tmp_path):
    class Broken(FakeLender):
        def free(self):
            raise RuntimeError("out of order")

        def restore(self):
            raise RuntimeError("out of order")

    one, two = runs(tmp_path, "one", "two")
    leases = Leases(Broken(Holding(base, "cpu", 1)), lambda job: FITS)
    leases.begin(one, "a", "cpu", job(base, gpu_sharing="hand_over"))
    assert record(one)["mode"] == SIDE_BY_SIDE and "out of order" in record(one)["reason"]
    leases.lender.free = lambda: 5
    leases.begin(two, "b", "cpu", job(base, gpu_sharing="hand_over"))
    assert record(two)["mode"] == HAND_OVER
    leases.end(two)


# --- what a system and a model allow


def test_systems_that_cannot_share(monkeypatch):
    monkeypatch.setattr(lease.sys, "platform", "win32")
    assert "cannot be shared" in lease.system_problem("cuda")
    monkeypatch.setattr(lease.sys, "platform", "linux")
    monkeypatch.setattr(lease.torch.version, "hip", None)
    monkeypatch.setattr(lease.torch.cuda, "get_allocator_backend", lambda: "native")
    monkeypatch.setattr(lease.platform, "release", lambda: "6.6.87-microsoft-standard-WSL2")
    assert "WSL" in lease.system_problem("cuda")
    monkeypatch.setattr(lease.platform, "release", lambda: "6.8.0")
    assert lease.system_problem("cuda") == ""
    assert "xpu" in lease.system_problem("xpu")
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:64, expandable_segments: True")
    assert "expandable segments" in lease.system_problem("cuda")
    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF")
    monkeypatch.setattr(lease.torch.cuda, "get_allocator_backend", lambda: "cudaMallocAsync")
    assert "cudaMallocAsync" in lease.system_problem("cuda")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is shared on Linux only")
def test_sharing_is_tried_once_with_a_process_of_the_trainers(monkeypatch):
    monkeypatch.setattr(lease, "_tried", {})
    ours = Environment(Path(sys.executable), variables={"OMP_NUM_THREADS": "1"})
    assert lease.trial(ours, torch.device("cpu")) == ""
    with monkeypatch.context() as inner:
        inner.setattr(lease, "_tried_with", lambda *given: pytest.fail("it is known already"))
        assert lease.trial(ours, torch.device("cpu")) == ""
    lease._tried.clear()
    monkeypatch.setattr(lease.Shared, "description", lambda self: {"storages": [], "components": {}})
    assert "trial of sharing memory failed (KeyError" in lease.trial(ours, torch.device("cpu"))
    lease._tried.clear()
    assert "FileNotFoundError" in lease.trial(replace(ours, python=Path("/nowhere/python")), torch.device("cpu"))


def test_another_torch_is_told_before_anything_is_lent(monkeypatch, base):
    """What is known of a card stands in its way from then on: the model is handed over, or both keep a copy."""
    told = "a trial of sharing memory failed (the WebUI has torch 2.1.2 and the trainers have 2.13.0)"
    monkeypatch.setattr(lease, "_tried", {("cpu", "python"): told})
    problem = lease.tensors_problem({"unet": ("ldm", {"a": torch.zeros(2)})})
    assert problem == told
    choice = choose(job(base), "cuda:0", Holding(base, "cuda:0", 2**31, problem), lambda: TOO_MUCH)
    assert choice.mode == HAND_OVER and "torch 2.1.2" in choice.reason
    asked = []
    monkeypatch.setattr(lease, "trial", lambda environment, device: asked.append(str(device)))
    for held in (Holding(base, "cuda:1", 1), Holding(base, "cpu", 1), Holding(base, "cuda:0", 1, "no"), None):
        lease.try_first(Environment(), held)
    assert asked == ["cuda:1"]


def test_models_that_cannot_be_shared(monkeypatch):
    def problem(tensor):
        return lease.tensors_problem({"unet": ("ldm", {"a": torch.zeros(2), "b": tensor})})

    assert "not whole" in problem(torch.zeros(2, device="meta"))
    assert "float8" in problem(torch.zeros(2).to(torch.float8_e4m3fn))
    assert "uint8" in problem(torch.zeros(2, dtype=torch.uint8))
    monkeypatch.setattr(lease.shutil, "disk_usage", lambda path: SimpleNamespace(free=2**20))
    large = {"unet": ("ldm", {"a": torch.zeros(2**20)})}
    assert "1 MiB" in lease.room_problem(large) and "4 MiB" in lease.room_problem(large)
    large["unet"][1]["a"].share_memory_()
    assert lease.room_problem(large) == ""


def test_weights_that_are_not_the_files_are_not_lent(tiny_base):
    family, file = FAMILIES["sd1"], tiny_base("sd1")
    tensors, _ = safetensors_io.load(file)
    prefixes = {"unet": family.unet_prefix, "text_encoder": family.text_encoders[0].ldm_prefix}
    components = {
        name: ("ldm", {key[len(prefix) :]: t for key, t in tensors.items() if key.startswith(prefix)})
        for name, prefix in prefixes.items()
    }
    lease.check_clean(components, "sd1", file, "")
    with pytest.raises(CannotLend, match=r"mid\.layer"):
        lease.check_clean(components, "sd1", file, "mid.layer")
    for name, tensor in components["unet"][1].items():
        if "attn2.to_v" in name:
            tensor.add_(0.01)  # what an adapter that is merged does to one kind of layer
    with pytest.raises(CannotLend, match=r"attn2\.to_v"):
        lease.check_clean(components, "sd1", file, "")


def test_weights_that_are_lent_are_not_written_over():
    lender, model = A1111Lender(SimpleNamespace()), torch.nn.Linear(4, 4)
    former = model.weight.detach().clone()
    lender.before_writing(model)
    shared = lease.Shared({"unet": ("ldm", {"weight": model.weight.detach()})})
    lent, bias = model.weight.detach(), model.bias.data_ptr()
    lender._shared.append(shared)
    assert lender.is_lent and shared.holds(model.weight) and not shared.holds(model.bias)
    lender.before_writing(model)
    assert not shared.holds(model.weight) and torch.equal(model.weight, former) and model.bias.data_ptr() == bias
    with torch.no_grad():
        model.weight.zero_()
    assert torch.equal(lent, former)


def test_the_plan_is_told_for_the_way_that_is_taken(base):
    plan = {"peak_bytes": 9, "free_bytes": 5, "fits": False, "items": {"base weights": 6}}
    held = Holding(base, "cuda:0", 10)
    assert memory_when(SIDE_BY_SIDE, held, plan) == plan
    assert memory_when(ATTACH, held, plan)["peak_bytes"] == 3 and memory_when(ATTACH, held, plan)["fits"]
    assert memory_when(HAND_OVER, held, plan)["free_bytes"] == 15 and memory_when(HAND_OVER, held, plan)["fits"]
    assert not memory_when(HAND_OVER, replace(held, nbytes=1), plan)["fits"]


# --- turns


def test_a_lock_of_the_host_tells_when_it_is_held(tmp_path):
    class Lock:
        """As A1111's: its methods for `with` are the functions themselves."""

        def __init__(self):
            self._lock = threading.Lock()

        def acquire(self, blocking=True):
            return self._lock.acquire(blocking)

        def release(self):
            self._lock.release()

        __enter__ = acquire

        def __exit__(self, *_):
            self.release()

    lock, drawing = Lock(), tmp_path / DRAWING_FILE
    kind = type(lock)
    undo = tell_turns(lock, Turns(tmp_path))
    with lock:
        assert is_locked(drawing) and not lock.acquire(blocking=False)
    assert not is_locked(drawing)
    undo()
    assert type(lock) is kind
    with lock:
        assert not is_locked(drawing)


def test_a_host_that_dies_while_it_draws_stops_nobody(tmp_path):
    code = "import sys, time; from pathlib import Path; from extension.jobs.turns import Turns\n"
    code += "turns = Turns(Path(sys.argv[1])); turns.begin(); print('drawing', flush=True); time.sleep(600)"
    host = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert host.stdout.readline().strip() == "drawing" and is_locked(tmp_path / DRAWING_FILE)
    host.kill()
    host.wait()
    host.stdout.close()
    assert not is_locked(tmp_path / DRAWING_FILE)
