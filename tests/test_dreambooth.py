"""Training the base's own weights: which of them, what is written, and that the base's file stays as it is."""

from __future__ import annotations

import hashlib

import diffusers
import pytest
import torch
from injection_models import Processing, unet_inputs
from training_helpers import events_of, job_values, killed_and_resumed, make_pictures

from extension.injection import AdapterFiles, Injection, constant_use
from trainers import running, spec
from trainers.bases.loader import load_base, module_for
from trainers.engine.fused import round_stochastically
from trainers.errors import InputError
from trainers.formats.adapters import read_adapter
from trainers.formats.safetensors_io import load
from trainers.formats.sites import all_sites
from trainers.methods import dreambooth


@pytest.fixture
def train(tiny_base, tmp_path):
    """`train("sd1", steps=2, …)` -> (exit code, run folder)."""
    pictures = make_pictures(tmp_path / "pictures", 3, caption="a zog on a table")

    def run(family="sd1", folder="run", **changes):
        values = {**job_values(tiny_base(family), pictures, steps=2, save_dtype="fp32", learning_rate=1e-3), **changes}
        for name in ("rank", "alpha"):
            values.pop(name, None)
        values |= {"method": "dreambooth", "name": "zog"}
        return running.start(spec.parse(values), tmp_path / folder), tmp_path / folder

    return run


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def opens_in_diffusers(path, config):
    """`from_single_file` with the configuration of a local folder, no hub: every part says the same there."""
    kind = "StableDiffusionXLPipeline" if (config / "text_encoder_2").exists() else "StableDiffusionPipeline"
    theirs = getattr(diffusers, kind).from_single_file(path, config=str(config), local_files_only=True)
    ours, said = load_base(path), []
    texts = [getattr(theirs, name, None) for name in ("text_encoder", "text_encoder_2")]
    for model, encoders in ((ours, ours.text_encoders), (theirs, [one for one in texts if one is not None])):
        with torch.no_grad():
            said.append([model.unet(**unet_inputs(model)).sample, model.vae.decode(torch.ones(1, 4, 8, 8)).sample])
            said[-1] += [one(torch.arange(77)[None], output_hidden_states=True).hidden_states[-2] for one in encoders]
    for mine, other in zip(*said, strict=True):
        torch.testing.assert_close(mine.float(), other.float(), rtol=1e-3, atol=1e-3)


ROUNDED = {"precision": "bf16", "base_dtype": "bf16"}
"""How a graphics card computes: with a base that was rounded. What is written must not be."""


@pytest.mark.parametrize(("family", "how"), [("sd1", {}), ("sd1", ROUNDED), ("sd2", ROUNDED), ("sdxl", {})])
def test_checkpoint_has_every_tensor_and_only_what_learned_differs(train, tiny_base, family, how):
    base = tiny_base(family)
    before = digest(base)
    code, folder = train(
        family, trained_layers="cross_attention", train_text_encoder=False, validation_split=0.4, **how
    )
    assert code == 0 and digest(base) == before
    one, other = load(base)[0], load(folder / "zog.safetensors")[0]
    assert set(other) >= {name for name in one if name.startswith("model.diffusion_model.")}
    changed = {name for name in one if name in other and not torch.equal(one[name].float(), other[name].float())}
    assert changed and all(".attn2." in name for name in changed)
    first, last = (events_of(folder, "validation")[i] for i in (0, -1))
    assert first["loss"] == first["base_loss"] == last["base_loss"] != last["loss"]
    opens_in_diffusers(folder / "zog.safetensors", tiny_base(family, "diffusers"))


def test_text_encoder_and_chosen_blocks(train, tiny_base):
    code, folder = train(blocks=["mid", "text"])
    assert code == 0
    one, other = load(tiny_base("sd1"))[0], load(folder / "zog.safetensors")[0]
    changed = {name for name in one if name in other and not torch.equal(one[name].float(), other[name].float())}
    roots = {".".join(name.split(".")[:3]) for name in changed}
    assert roots == {"model.diffusion_model.middle_block", "cond_stage_model.transformer.text_model"}
    assert not any("token_embedding" in name for name in changed)


def test_opens_in_diffusers(train):
    code, folder = train(output="diffusers")
    assert code == 0
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folder / "zog", local_files_only=True)
    picture = pipeline("a zog", num_inference_steps=2, height=64, width=64, output_type="np").images
    assert picture.shape == (1, 64, 64, 3)


def test_a_checkpoint_in_half_precision_has_its_autoencoder_and_opens_in_diffusers(train, tiny_base):
    code, folder = train(save_dtype="fp16", trained_layers="attention")
    assert code == 0
    tensors = load(folder / "zog.safetensors")[0]
    assert {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()} == {torch.float16}
    assert any(name.startswith("first_stage_model.decoder.") for name in tensors)
    opens_in_diffusers(folder / "zog.safetensors", tiny_base("sd1", "diffusers"))


@pytest.mark.parametrize("how", [{}, ROUNDED])
def test_the_difference_on_the_base_is_the_trained_model(train, tiny_base, how):
    """Biases, norms and the UNet's ends too."""
    code, folder = train(folder="difference", output="difference", train_text_encoder=False, **how)
    assert code == 0
    code, whole = train(folder="whole", train_text_encoder=False, **how)
    assert code == 0
    base, trained = load_base(tiny_base("sd1")), load_base(whole / "zog.safetensors")
    injection, owner = Injection("sd1", {"unet": base.unet, "text_encoder": base.text_encoders[0]}), Processing()
    plain = base.unet(**unet_inputs(base)).sample
    generation = injection.begin(owner, [constant_use(AdapterFiles().get(folder / "zog.safetensors"))])
    assert generation.sentences("sd1") == []
    with torch.no_grad():
        added, wanted = (model.unet(**unet_inputs(model)).sample for model in (base, trained))
    injection.end(owner)
    assert (added - wanted).abs().max() < 1e-3 * (plain - wanted).abs().max()
    kinds = {name.rpartition(".")[2] for name in load(folder / "zog.safetensors")[0]}
    assert kinds == {"diff", "diff_b", "w_norm", "b_norm"}


def test_an_extracted_lora_holds_all_that_was_trained(train, tiny_base):
    """Of full rank it is the weights' difference, and what a LoRA has no place for stays as it was."""
    code, whole = train(folder="whole", steps=1, max_grad_norm=0)
    assert code == 0
    code, folder = train(folder="lora", output="lora", extracted_rank=1024, steps=1, max_grad_norm=0)
    assert code == 0
    base, trained = load_base(tiny_base("sd1")), load_base(whole / "zog.safetensors")
    entries = read_adapter(folder / "zog.safetensors").entries
    sites = all_sites(base.family)
    assert set(entries) == {site.name for site in sites}
    away = []
    for site in sites:
        entry, (before, after) = entries[site.name], (module_for(model, site).weight for model in (base, trained))
        delta = entry["lora_up"].flatten(1) @ entry["lora_down"].flatten(1) * entry["alpha"] / len(entry["lora_down"])
        wanted = (after - before).float()
        away.append(((delta.reshape(before.shape) - wanted).norm() / wanted.norm()).item())
    # Adam's first step is a sign; where a norm of single channels follows, the gradient is rounding alone.
    assert sorted(away)[len(away) * 9 // 10] < 0.02


def test_low_rank_is_the_best_of_its_rank():
    torch.manual_seed(0)
    matrix = torch.randn(7, 5)
    down, up = dreambooth.low_rank(matrix, 2)
    s = torch.linalg.svdvals(matrix.double())
    assert down.shape == (2, 5) and up.shape == (7, 2)
    torch.testing.assert_close((matrix - up @ down).norm().double() ** 2, (s[2:] ** 2).sum(), rtol=1e-5, atol=1e-6)


def test_class_pictures_are_drawn_when_there_are_too_few(train, tmp_path):
    own = make_pictures(tmp_path / "class", 1, caption="a thing")
    names = sorted(path.name for path in own.iterdir())
    code, folder = train(
        class_prompt="a thing", class_pictures=3, regularisation_data=str(own), sample_steps=2, batch_size=2
    )
    assert code == 0 and sorted(path.name for path in own.iterdir()) == names
    drawn = sorted(path.name for path in (folder / "class").glob("*.png"))
    assert len(drawn) == 3 and (folder / "class" / "00000.txt").read_text() == "a thing"
    assert load(folder / "zog.safetensors")[1]["ss_num_reg_images"] == "3"


def test_resumes_to_the_same_bytes(train, monkeypatch):
    options = dict(optimizer="adafactor", trained_layers="attention", ema=0.9)
    whole, broken = killed_and_resumed(train, monkeypatch, **options)
    assert (whole / "zog.safetensors").read_bytes() == (broken / "zog.safetensors").read_bytes()


def test_rounding_keeps_the_mean():
    value = torch.full((200_000,), 1.0 + 2**-10)  # an eighth of the way to the next bfloat16
    draw = torch.randint(0, 65536, value.shape, dtype=torch.int32, generator=torch.Generator().manual_seed(0))
    rounded = round_stochastically(value, draw).float()
    assert set(rounded.unique().tolist()) == {1.0, 1.0 + 2**-7}
    assert abs(rounded.mean().item() - value[0].item()) < 1e-4
    special = torch.tensor([float("inf"), float("nan"), -0.0])
    assert torch.equal(
        round_stochastically(special, torch.full((3,), 65535, dtype=torch.int32)).isfinite(), special.isfinite()
    )


def test_fused_backward_gives_the_same_weights(train):
    options = dict(max_grad_norm=0, steps=2)
    code, plain = train(folder="plain", **options)
    code_fused, fused = train(folder="fused", fused_backward=True, **options)
    assert code == code_fused == 0
    one, other = (load(folder / "zog.safetensors")[0] for folder in (plain, fused))
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-4, atol=2e-6)
    assert set(events_of(fused, "step")[0]["lr"]) == set(events_of(plain, "step")[0]["lr"])


@pytest.mark.parametrize("optimizer", ["adafactor", "adamw"])
def test_bf16_weights_resume_to_the_same_bytes(train, monkeypatch, optimizer):
    options = dict(
        optimizer=optimizer, trained_layers="attention", fused_backward=True, weights_dtype="bf16", max_grad_norm=0,
        save_dtype="bf16",
    )  # fmt: skip
    whole, broken = killed_and_resumed(train, monkeypatch, **options)
    assert (whole / "zog.safetensors").read_bytes() == (broken / "zog.safetensors").read_bytes()


def test_a_gradient_that_is_not_finite_reaches_no_weight_in_the_fused_backward(train, monkeypatch):
    from trainers.engine import step as steps

    real = steps.sample_losses

    def once_infinite(session, batch, drawn):
        if session.optimizer.steps == 1 and not seen:
            seen.append(session.parameters()[0].register_hook(lambda gradient: gradient * float("inf")))
        elif seen:
            seen[0].remove()
        return real(session, batch, drawn)

    seen = []
    monkeypatch.setattr(steps, "sample_losses", once_infinite)
    code, folder = train(fused_backward=True, max_grad_norm=0, steps=4)
    assert code == 0 and [event["step"] for event in events_of(folder, "skipped")] == [2]
    assert all(torch.isfinite(t).all() for t in load(folder / "zog.safetensors")[0].values())


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"fused_backward": True}, "max_grad_norm"),
        ({"weights_dtype": "bf16"}, "weights_dtype"),
        ({"fused_backward": True, "max_grad_norm": 0, "optimizer": "prodigy"}, "optimizer"),
        ({"blocks": ["middle"]}, "blocks"),
        ({"base_dtype": "fp8"}, "base_dtype"),
        ({"prior_target": "base"}, "prior_target"),
        ({"class_prompt": "a dog"}, "class_pictures"),
        ({"output": "diffusers", "name": "state"}, "name"),
        ({"train_unet": False, "train_text_encoder": False}, "train_unet"),
    ],
)
def test_refusals(changes, field):
    values = {"method": "dreambooth", "base": "b", "data": "d", "name": "zog", "steps": 1, **changes}
    with pytest.raises(InputError, match=field):
        spec.parse(values)
