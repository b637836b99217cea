"""What only a graphics card can show; skipped without one. `pytest tests/test_on_gpu.py` on a machine that has CUDA, or
`python tests/stand_in_card PYTHON -m pytest tests/test_on_gpu.py` where PYTHON's torch was built for it."""

from __future__ import annotations

import math

import pytest
import torch
from embedded_helpers import apart, array, make_studio, one, write_lora
from injection_helpers import write_adapter
from injection_models import random_lora, unet_inputs
from safetensors.torch import load_file
from tiny_models import tiny_modules
from training_helpers import events_of, job_values, make_pictures, run_trainer, write_job

from extension.hosts.embedded.engine import Studio
from extension.hosts.embedded.places import EMBEDDED_BASE, Places
from extension.injection import AdapterFiles, Injection, constant_use

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a graphics card (CUDA)")


class Processing:
    """Stands for a host's processing object."""


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("base_dtype", ["auto", "fp8"])
def test_a_lora_is_trained_and_resumed(tmp_path, precision, base_dtype):
    data = make_pictures(tmp_path / "data")
    values = job_values(EMBEDDED_BASE, data, device="cuda", precision=precision, base_dtype=base_dtype, steps=6,
                        state_every=3, learning_rate=1e-3)  # fmt: skip
    run = tmp_path / "run"
    done = run_trainer("run", write_job(tmp_path / "job.yaml", values), "--run", run)
    assert done.returncode == 0, done.stdout + done.stderr
    losses = [event["loss"] for event in events_of(run, "step")]
    assert len(losses) == 6 and all(map(math.isfinite, losses))
    tensors = load_file(str(next(run.glob("*.safetensors"))))
    ups = [tensor for name, tensor in tensors.items() if name.endswith("lora_up.weight")]
    assert any(tensor.abs().max() > 0 for tensor in ups)


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_dreambooth_with_fused_backward_and_bf16_weights(tmp_path, optimizer):
    data = make_pictures(tmp_path / "data")
    values = job_values(EMBEDDED_BASE, data, method="dreambooth", device="cuda", fused_backward=True,
                        weights_dtype="bf16", optimizer=optimizer, max_grad_norm=0, output="lora")  # fmt: skip
    values.pop("rank")
    run = tmp_path / "run"
    done = run_trainer("run", write_job(tmp_path / "job.yaml", values), "--run", run)
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(run.glob("*.safetensors"))


@pytest.fixture
def full_float32():
    """Without TF32, which rounds float32 products to 10 bits."""
    former = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = former


def _outputs(model, uses, merged):
    injection, owner = Injection("sd1", {"unet": model.unet}), Processing()
    arguments = {name: value.cuda() for name, value in unet_inputs(model, 2).items()}
    arguments = {n: v.to(model.unet.dtype) if v.is_floating_point() else v for n, v in arguments.items()}
    with torch.no_grad():
        if uses:
            injection.begin(owner, uses, merged=merged)
        out = model.unet(**arguments).sample
        injection.end(owner)
        assert torch.equal(model.unet(**arguments).sample, _plain(model, arguments))
    return out.double()


def _plain(model, arguments):
    return model.unet(**arguments).sample


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-5), ("float16", 5e-3), ("bfloat16", 4e-2)])
def test_bank_and_merged_copy_agree_with_the_float64_formula(tmp_path, dtype, tolerance, full_float32):
    model = tiny_modules("sd1", unet_widths=(32, 32, 32, 32))
    paths = [write_adapter(tmp_path / f"{seed}.safetensors", random_lora(model, "sd1", seed=seed)) for seed in (1, 2)]
    uses = [constant_use(AdapterFiles().get(path), 0.4) for path in paths]
    model.unet.cuda().double()
    wanted = _outputs(model, uses, merged=False)
    base = _outputs(model, [], merged=False)
    model.unet.to(getattr(torch, dtype))
    size = (wanted - base).abs().max()
    assert size > 0
    for merged in (False, True):
        got = _outputs(model, uses, merged)
        assert (got - wanted).abs().mean() <= tolerance * wanted.abs().mean(), f"merged={merged}"


def test_the_host_draws_on_the_gpu_as_on_the_processor(tmp_path):
    cpu = make_studio(tmp_path / "cpu")
    gpu = Studio(EMBEDDED_BASE, Places(tmp_path / "gpu"), device="cuda")
    for studio in (cpu, gpu):
        write_lora(studio.places.adapters / "noise.safetensors", cpu, text=True)
        studio.library.rescan()
    plain, tagged = "a red circle on a blue background", "a red circle on a blue background <lora:noise:0.6>"
    assert apart(one(gpu, plain), one(gpu, tagged)) > 10
    for prompt in (plain, tagged):
        away = abs(array(one(cpu, prompt)) - array(one(gpu, prompt)))
        assert away.mean() < 2, prompt
