"""The memory plan: its formula against what autograd really holds, and its choices."""

from __future__ import annotations

import pytest
import torch

from trainers.engine import activations, memory
from trainers.errors import InputError
from trainers.spec import Job

PARAMETERS = {
    "sd1": {"unet": 859_520_964, "text_encoder": 123_060_480, "vae": 83_653_863},
    "sdxl": {
        "unet": 2_567_463_684, "text_encoder": 123_060_480, "text_encoder_2": 694_659_840, "vae": 83_653_863,
    },
}  # fmt: skip
GIB = 2**30


def _job(**values):
    defaults = {
        "method": "lora", "optimizer": "adamw", "ema": 0.0, "batch_size": 1, "vae_batch_size": 1, "sample_prompts": [],
        "precision": "bf16", "base_dtype": "auto", "gradient_checkpointing": "auto", "train_text_encoder": False,
    }  # fmt: skip
    return Job({**defaults, **values})


def _plan(free=None, family="sd1", resolution=512, device="cuda", **values):
    return memory.make_plan(
        family=family, parameters=PARAMETERS[family], trainable=3_000_000, job=_job(**values), resolution=resolution,
        device_type=device, free_bytes=free,
    )  # fmt: skip


# --- the formula


def _unet(family, widths):
    from diffusers import UNet2DConditionModel
    from peft import LoraConfig, inject_adapter_in_model

    shared = {"block_out_channels": widths, "cross_attention_dim": 32}
    if family == "sd1":
        unet = UNet2DConditionModel(**shared, attention_head_dim=8)
    else:
        unet = UNet2DConditionModel(
            **shared, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 10), attention_head_dim=(1, 1, 2), use_linear_projection=True,
            addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=80,
        )  # fmt: skip
    unet.requires_grad_(False)
    kinds = (torch.nn.Linear, torch.nn.Conv2d)
    sites = [n for n, m in unet.named_modules() if ".attentions." in n and isinstance(m, kinds)]
    return inject_adapter_in_model(LoraConfig(r=4, lora_alpha=4, target_modules=sites), unet).train()


def _held(unet, height, width, dtype, sdxl):
    own = {parameter.untyped_storage().data_ptr() for parameter in unet.parameters()}
    seen, alive = {}, []

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
            alive.append(storage)
        return tensor

    extra = {"text_embeds": torch.zeros(1, 32, dtype=dtype), "time_ids": torch.zeros(1, 6)} if sdxl else None
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16),
    ):
        unet(
            torch.randn(1, 4, height, width, dtype=dtype), torch.zeros(1, dtype=torch.long),
            encoder_hidden_states=torch.randn(1, 77, 32, dtype=dtype), added_cond_kwargs=extra,
        )  # fmt: skip
    return sum(seen.values())


def _to_bfloat16(unet):
    for name, parameter in unet.named_parameters():
        if "lora_" not in name:
            parameter.data = parameter.data.bfloat16()


@pytest.mark.parametrize(
    ("family", "widths", "size"),
    [("sd1", (32, 32, 64, 64), (16, 24)), ("sdxl", (32, 32, 64), (8, 12))],
)
def test_the_formula_against_what_is_held(family, widths, size):
    unet = _unet(family, widths)
    sdxl = family == "sdxl"
    pieces = list(activations.unet_pieces(family, widths, *size))
    counted = activations.held_numbers(pieces, checkpointing=False)
    full = _held(unet, *size, torch.float32, sdxl)
    assert counted * 4 == pytest.approx(full, rel=0.1)
    unet.enable_gradient_checkpointing()
    kept = sum(piece.kept for piece in pieces) * 4
    assert kept == pytest.approx(_held(unet, *size, torch.float32, sdxl), rel=0.3)
    unet.disable_gradient_checkpointing()
    _to_bfloat16(unet)
    small = _held(unet, *size, torch.bfloat16, sdxl)
    assert counted * activations.bytes_per_number(2, "cpu") == pytest.approx(small, rel=0.25)


def test_the_formula_in_sixteen_bits_on_cuda(monkeypatch):
    """CUDA's autocast runs norms in float32; the CPU's does not, so they are cast here."""
    from torch.nn import functional

    for name in ("group_norm", "layer_norm"):
        norm = getattr(functional, name)
        monkeypatch.setattr(
            functional, name, lambda x, n, w, b, eps, norm=norm: norm(x.float(), n, w.float(), b.float(), eps)
        )
    unet = _unet("sd1", (32, 32, 64, 64))
    _to_bfloat16(unet)
    counted = activations.held_numbers(list(activations.unet_pieces("sd1", (32, 32, 64, 64), 16, 16)), False)
    held = _held(unet, 16, 16, torch.bfloat16, False)
    assert counted * activations.bytes_per_number(2, "cuda") == pytest.approx(held, rel=0.15)


def test_widths_follow_from_the_number_of_parameters():
    assert activations.unet_widths("sd1", PARAMETERS["sd1"]["unet"]) == (320, 640, 1280, 1280)
    assert activations.unet_widths("sd1", 8_600_000)[0] == pytest.approx(32, rel=0.1)


# --- the choices


def test_with_room_nothing_is_slowed_down():
    plan = _plan(free=80 * GIB)
    assert (plan.precision, plan.base_dtype, plan.gradient_checkpointing) == ("bf16", "bf16", False)
    assert plan.fits and not plan.reasons
    assert plan.compute_dtype == plan.storage_dtype == plan.load_dtype == torch.bfloat16
    unknown = _plan(free=None)
    assert unknown.fits and not unknown.gradient_checkpointing


def test_less_room_gives_the_least_slow_plan_that_fits():
    order = []
    previous = None
    for free in range(20 * GIB, GIB // 4, -GIB // 16):
        plan = _plan(free=free)
        choice = (plan.base_dtype, plan.gradient_checkpointing)
        if choice != previous:
            order.append(choice)
        previous = choice
        if plan.fits:
            assert plan.peak_bytes <= 0.92 * free
    assert order[0] == ("bf16", False)
    assert order[1] == ("bf16", True)
    assert order[-1][0] == "fp8"
    plan = _plan(free=GIB // 2)
    assert not plan.fits
    assert any("Warning" in line for line in plan.lines())


def test_what_the_job_says_is_kept():
    for kept in ("fp32", "bf16", "fp8"):
        for twice in ("on", "off"):
            plan = _plan(free=GIB, base_dtype=kept, gradient_checkpointing=twice)
            assert (plan.base_dtype, plan.gradient_checkpointing) == (kept, twice == "on")
            assert memory.smaller(plan) is None
    assert _plan(base_dtype="fp32").load_dtype == torch.float32


def test_reasons_say_what_was_needed():
    plan = _plan(free=4 * GIB, resolution=768)
    assert plan.gradient_checkpointing
    assert "gradient checkpointing is on" in plan.reasons[0]
    assert "4.0 GiB are free" in plan.reasons[0]


def test_smaller_goes_down_to_the_smallest():
    plan = _plan(free=80 * GIB)
    seen = [plan.peak_bytes]
    while (plan := memory.smaller(plan)) is not None:
        seen.append(plan.peak_bytes)
        assert plan.reasons
    assert len(seen) >= 3
    assert seen == sorted(seen, reverse=True)


def test_fp32_on_the_cpu_may_keep_the_base_in_fp16():
    plan = _plan(free=int(5.5 * GIB), device="cpu", precision="fp32")
    assert plan.precision == "fp32"
    assert plan.base_dtype == "fp16"
    with pytest.raises(InputError, match="fp16"):
        _plan(device="cpu", precision="fp16")


@pytest.mark.parametrize(
    "change",
    [
        {"resolution": 768}, {"batch_size": 2}, {"train_text_encoder": True}, {"precision": "fp32"}, {"ema": 0.99},
        {"optimizer": "prodigy"}, {"family": "sdxl"},
    ],
)  # fmt: skip
def test_more_of_anything_takes_more(change):
    assert dict(_plan(**change).stages)["training"] > dict(_plan().stages)["training"]


def test_lines_and_items():
    plan = _plan(free=24 * GIB, sample_prompts=["a cat"])
    labels = [label for label, _ in plan.items]
    assert len(set(labels)) == len(labels)
    assert dict(plan.items)["base weights"] == 2 * PARAMETERS["sd1"]["unet"]
    text = "\n".join(plan.lines())
    assert "activations" in text and "expected peak" in text and "drawing pictures" in text
    assert memory.human(3 * GIB) == "3.0 GiB" and memory.human(2**20) == "1 MiB"


@pytest.mark.parametrize(("family", "side", "held"), [("sd1", 64, 1765.8), ("sdxl", 128, 12863.2)])
def test_the_formula_at_full_size(family, side, held):
    """MiB that autograd holds in fp32 for the published widths and rank 16, counted once with FakeTensorMode."""
    pieces = list(activations.unet_pieces(family, activations.UNET_WIDTHS[family], side, side))
    assert activations.held_numbers(pieces, False) * 4 / 2**20 == pytest.approx(held, rel=0.1)


def test_applying_a_plan():
    class Base:
        text_encoders = ()

    base = Base()
    base.unet = _unet("sd1", (32, 32, 32, 32))
    _plan(base_dtype="fp8", gradient_checkpointing="on", device="cpu").apply(base)
    assert base.unet.is_gradient_checkpointing
    stored = {p.dtype for n, p in base.unet.named_parameters() if ".attentions." in n and "base_layer.weight" in n}
    assert stored == {memory.FP8}
    out = base.unet(torch.randn(1, 4, 16, 16), torch.zeros(1), encoder_hidden_states=torch.randn(1, 77, 32)).sample
    out.sum().backward()
    grads = [parameter.grad for parameter in base.unet.parameters() if parameter.requires_grad]
    assert all(gradient is not None for gradient in grads)
    plain = Base()
    plain.unet = _unet("sd1", (32, 32, 32, 32))
    classes = [type(module) for module in plain.unet.modules()]
    _plan(device="cpu").apply(plain)
    assert [type(module) for module in plain.unet.modules()] == classes


def test_what_is_trained_becomes_float32():
    from peft import LoraConfig, inject_adapter_in_model

    class Base:
        text_encoders = ()
        unet = torch.nn.ModuleDict({"a": torch.nn.Linear(8, 8, dtype=torch.bfloat16)}).requires_grad_(False)

    inject_adapter_in_model(LoraConfig(r=2, target_modules=["a"]), Base.unet)
    _plan(device="cpu").apply(Base)
    dtypes = {p.dtype for p in Base.unet.parameters() if p.requires_grad}
    assert dtypes == {torch.float32}
    assert Base.unet["a"].base_layer.weight.dtype == torch.bfloat16


def test_free_memory_of_this_machine():
    free = memory.free_bytes(torch.device("cpu"))
    assert free > 0


def test_a_trained_text_encoder_is_checkpointed_with_the_same_gradients():
    from peft import LoraConfig, inject_adapter_in_model
    from transformers import CLIPTextConfig, CLIPTextModel

    class Base:
        unet = None

    config = CLIPTextConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2, vocab_size=100
    )
    torch.manual_seed(0)
    text = CLIPTextModel(config).requires_grad_(False)
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["q_proj", "fc1"], init_lora_weights=False), text)
    base = Base()
    base.text_encoders = [text]
    tokens = torch.arange(77)[None] % 100
    gradients, held = [], []
    for twice in ("off", "on"):
        _plan(device="cpu", precision="fp32", gradient_checkpointing=twice).apply(base)
        seen = {}
        with torch.autograd.graph.saved_tensors_hooks(lambda t, seen=seen: _noted(t, seen), lambda t: t):
            loss = text(tokens).last_hidden_state.square().sum()
        held.append(sum(seen.values()))
        loss.backward()
        gradients.append([p.grad.clone() for p in text.parameters() if p.requires_grad])
        text.zero_grad()
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert held[1] < held[0] / 2


def _noted(tensor, seen):
    seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return tensor


# --- whole models, and words


def test_a_whole_model_is_counted_once_and_fits_where_it_should():
    """What learns is not a copy beside the base, and with the step inside the backward pass gradients never add up."""
    options = {"optimizer": "adafactor", "fused_backward": True, "weights_dtype": "bf16", "method": "dreambooth"}
    job = _job(**options, precision="bf16")
    unet = PARAMETERS["sdxl"]["unet"]

    def plan(free, **changes):
        return memory.make_plan(
            family="sdxl", parameters=PARAMETERS["sdxl"], trainable=unet, job=job.replace(**changes), resolution=1024,
            device_type="cuda", free_bytes=free,
        )  # fmt: skip

    small = plan(12 * GIB)
    items = dict(small.items)
    assert small.fits and items["base weights"] == 0 and items["trained weights"] == 2 * unet
    assert items["gradients"] < GIB < 2 * unet
    apart = dict(plan(80 * GIB, fused_backward=False, weights_dtype="fp32").items)
    assert apart["gradients"] == apart["trained weights"] == 4 * unet


def test_text_encoders_stay_while_a_word_is_taught():
    texts = sum(size for name, size in PARAMETERS["sdxl"].items() if name.startswith("text"))
    word, adapter = (dict(_plan(80 * GIB, "sdxl", 1024, vectors=vectors).items) for vectors in (4, None))
    assert word["base weights"] - adapter["base weights"] == 2 * texts
