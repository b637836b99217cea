"""What a base is, what is refused, and in which words."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from trainers.bases import prediction
from trainers.bases.detect import inspect_base, inspect_vae
from trainers.bases.loader import load_base
from trainers.errors import InputError
from trainers.formats import safetensors_io
from trainers.formats.families import FAMILIES

CONV_IN = "model.diffusion_model.input_blocks.0.0.weight"


def refusal(path) -> str:
    with pytest.raises(InputError) as caught:
        inspect_base(path)
    (problem,) = caught.value.problems
    assert "\n" not in problem
    assert str(path) in problem or str(path.parent) in problem
    return problem


def void(_) -> None:
    """Drops a value, for use in a lambda."""


def changed(tiny_base, tmp_path, family, change):
    """A copy of a tiny model after `change(tensors)`."""
    tensors, metadata = safetensors_io.load(tiny_base(family))
    metadata = change(tensors) or metadata
    path = tmp_path / "changed.safetensors"
    safetensors_io.save(path, tensors, metadata)
    return path


@pytest.mark.parametrize("layout", ["ldm", "diffusers"])
@pytest.mark.parametrize("name", list(FAMILIES))
def test_families_are_found(tiny_base, name, layout):
    info = inspect_base(tiny_base(name, layout))
    assert (info.family, info.layout, info.prediction) == (name, layout, "epsilon")
    assert info.channels[0] == 32
    assert set(info.parameters) == {*FAMILIES[name].components, "vae"}
    assert all(info.stored_bytes[part] >= 4 * count for part, count in info.parameters.items())
    assert set(info.stored_dtypes.values()) == {"F32"}


def test_counts_are_those_of_the_modules(tiny_base, loaded_base):
    info, base = inspect_base(tiny_base("sdxl")), loaded_base("sdxl")
    for name in ("unet", "text_encoder", "text_encoder_2", "vae"):
        assert info.parameters[name] == sum(p.numel() for p in base.component(name).parameters())


@pytest.mark.parametrize(
    ("channels", "word"), [(9, "inpainting"), (8, "InstructPix2Pix"), (5, "depth"), (7, "upscaling"), (6, "6 input")]
)
def test_unets_with_other_inputs_are_refused(tiny_base, tmp_path, channels, word):
    def widen(tensors):
        tensors[CONV_IN] = torch.zeros(32, channels, 3, 3)

    assert word in refusal(changed(tiny_base, tmp_path, "sd1", widen))


def test_a_refiner_is_refused(tiny_base, tmp_path):
    def refiner(tensors):
        for name in [name for name in tensors if name.startswith("conditioner.embedders.0.")]:
            del tensors[name]
        for name in [name for name in tensors if name.startswith("conditioner.embedders.1.")]:
            tensors[name.replace("embedders.1.", "embedders.0.")] = tensors.pop(name)

    assert "refiner" in refusal(changed(tiny_base, tmp_path, "sdxl", refiner))


@pytest.mark.parametrize(
    ("key", "word"),
    [
        ("model.diffusion_model.double_blocks.0.img_attn.qkv.weight", "Flux"),
        ("double_blocks.0.img_attn.qkv.weight", "Flux"),
        ("model.diffusion_model.joint_blocks.0.context_block.attn.qkv.weight", "Stable Diffusion 3"),
        ("lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight", "LoRA"),
        ("unet.down_blocks.0.attentions.0.proj_in.lora_A.weight", "LoRA"),
        ("first_stage_model.encoder.conv_in.weight", "autoencoder"),
        ("emb_params", "textual inversion"),
        ("down_blocks.0.resnets.0.conv1.weight", "UNet alone"),
        ("something", "no model of a known family"),
    ],
)
def test_other_files_are_named(tmp_path, key, word):
    path = tmp_path / "other.safetensors"
    safetensors_io.save(path, {key: torch.zeros(2, 2)})
    assert word in refusal(path)


def test_an_incomplete_or_foreign_unet_is_refused(tiny_base, tmp_path):
    missing = "model.diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q.weight"
    assert "not whole" in refusal(changed(tiny_base, tmp_path, "sd1", lambda t: void(t.pop(missing))))
    extra = "model.diffusion_model.input_blocks.1.1.transformer_blocks.1.attn1.to_q.weight"
    assert "does not have" in refusal(changed(tiny_base, tmp_path, "sd1", lambda t: t.update({extra: torch.ones(1)})))


def test_a_model_without_text_encoder_is_refused(tiny_base, tmp_path):
    def strip(tensors):
        for name in [name for name in tensors if name.startswith("cond_stage_model.")]:
            del tensors[name]

    assert "no text encoder" in refusal(changed(tiny_base, tmp_path, "sd1", strip))


def test_a_small_vocabulary_is_refused(tiny_base, tmp_path):
    name = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"
    assert "1000 words" in refusal(
        changed(tiny_base, tmp_path, "sd1", lambda t: t.update({name: torch.ones(1000, 32)}))
    )


def test_missing_truncated_and_unsuitable_paths_are_refused(tiny_base, tmp_path):
    assert "no such base model" in refusal(tmp_path / "none.safetensors")
    whole = tiny_base("sd1").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    assert "not a whole safetensors file" in refusal(tmp_path / "cut.safetensors")
    (tmp_path / "page.safetensors").write_bytes(b"<!DOCTYPE html><html>not found</html>")
    assert "not a whole safetensors file" in refusal(tmp_path / "page.safetensors")
    (tmp_path / "empty").mkdir()
    assert "no folder 'unet'" in refusal(tmp_path / "empty")


def test_damaged_folders_are_refused(tiny_base, tmp_path):
    def copy(name):
        return shutil.copytree(tiny_base("sd1", "diffusers"), tmp_path / name)

    folder = copy("a")
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    assert "no weights" in refusal(folder)
    folder = copy("b")
    (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionInpaintPipeline"}')
    assert "inpainting" in refusal(folder)
    folder = copy("c")
    (folder / "model_index.json").write_text("{")
    assert "cannot be read" in refusal(folder)
    folder = copy("d")
    shutil.rmtree(folder / "text_encoder")
    assert "'text_encoder' is missing" in refusal(folder)
    folder = copy("e")
    index = folder / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    index.write_text('{"weight_map": {"a": "../../secret-1.safetensors"}}')
    assert "secret-1.safetensors: this part of the model is missing" in refusal(folder)


def test_shards_are_joined(tiny_base, tmp_path):
    folder = shutil.copytree(tiny_base("sd1", "diffusers"), tmp_path / "sharded")
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors, _ = safetensors_io.load(file)
    file.unlink()
    names = sorted(tensors)
    halves = {"x-1.safetensors": names[: len(names) // 2], "x-2.safetensors": names[len(names) // 2 :]}
    for shard, part in halves.items():
        safetensors_io.save(folder / "unet" / shard, {name: tensors[name] for name in part})
    table = {name: shard for shard, part in halves.items() for name in part}
    (folder / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))
    base = load_base(folder, parts=("unet",))
    assert torch.equal(base.unet.state_dict()[names[0]], tensors[names[0]])


def test_a_ckpt_is_read_like_a_safetensors_file(tiny_base, tmp_path):
    from tiny_models import make_tiny

    path = make_tiny("sd1", tmp_path / "a.ckpt", dtype=torch.float16)
    info = inspect_base(path)
    assert (info.family, info.stored_dtypes["unet"]) == ("sd1", "F16")
    one, other = load_base(path), load_base(tiny_base("sd1"))
    for a, b in zip(one.unet.parameters(), other.unet.parameters(), strict=True):
        assert torch.equal(a, b.half().float())


def test_a_ckpt_with_code_is_refused(tmp_path):
    import os

    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "attacked"),)

    torch.save({"state_dict": {CONV_IN: torch.ones(1)}, "x": Attack()}, tmp_path / "evil.ckpt")
    assert "could run code" in refusal(tmp_path / "evil.ckpt")
    assert not (tmp_path / "attacked").exists()


def test_old_text_encoder_names_without_their_level_are_read(tiny_base, tmp_path):
    def flatten(tensors):
        for name in [name for name in tensors if ".transformer.text_model." in name]:
            tensors[name.replace(".text_model.", ".")] = tensors.pop(name)

    path = changed(tiny_base, tmp_path, "sd1", flatten)
    one, other = load_base(path, parts=("text",)), load_base(tiny_base("sd1"), parts=("text",))
    assert all(
        torch.equal(a, b)
        for a, b in zip(one.text_encoders[0].parameters(), other.text_encoders[0].parameters(), strict=True)
    )


class TestPrediction:
    def test_metadata(self, tiny_base, tmp_path):
        path = changed(tiny_base, tmp_path, "sdxl", lambda t: {"modelspec.prediction_type": "v"})
        info = inspect_base(path)
        assert (info.prediction, info.prediction_source) == ("v", "metadata")

    def test_marker_tensors(self, tiny_base, tmp_path):
        def mark(tensors):
            tensors.update(v_pred=torch.tensor([]), ztsnr=torch.tensor([]))

        info = inspect_base(changed(tiny_base, tmp_path, "sdxl", mark))
        assert (info.prediction, info.prediction_source, info.zero_terminal_snr) == ("v", "key", True)

    def test_side_file(self, tiny_base, tmp_path):
        path = changed(tiny_base, tmp_path, "sd2", lambda t: None)
        path.with_suffix(".yaml").write_text("model:\n  params:\n    parameterization: v\n")
        assert inspect_base(path).prediction_source == "side file"
        assert inspect_base(path).prediction == "v"
        path.with_suffix(".yaml").write_text("[")
        assert inspect_base(path).prediction_source == "default"

    def test_scheduler_of_a_folder(self, tmp_path):
        from tiny_models import make_tiny

        folder = make_tiny("sd2", tmp_path / "v", "diffusers", prediction="v")
        info = inspect_base(folder)
        assert (info.prediction, info.prediction_source) == ("v", "scheduler")

    def test_an_sd2_file_is_asked(self, tiny_base):
        info = load_base(tiny_base("sd2")).info
        assert (info.prediction, info.prediction_source) == ("epsilon", "measured")

    @pytest.mark.parametrize(("answer", "expected"), [(0.5, "epsilon"), (-1.5, "v")])
    def test_what_a_model_answers_decides(self, answer, expected):
        class Model(torch.nn.Linear):
            def forward(self, latent, time, text):
                return type("Out", (), {"sample": torch.full_like(latent, answer)})

        assert prediction.measure(Model(1, 1), torch.zeros(1, 77, 8)) == expected

    def test_the_option_wins(self, tiny_base):
        base = load_base(tiny_base("sd1"), prediction="v", parts=())
        assert (base.prediction, base.info.prediction_source) == ("v", "option")
        with pytest.raises(InputError, match="prediction: 'x0'"):
            load_base(tiny_base("sd1"), prediction="x0", parts=())
        with pytest.raises(InputError, match="family: 'sd9'"):
            load_base(tiny_base("sd1"), family="sd9")


@pytest.fixture(scope="module")
def other_model(tmp_path_factory):
    """Another tiny SD1: `(file, folder)`."""
    from tiny_models import make_tiny

    folder = tmp_path_factory.mktemp("other")
    return make_tiny("sd1", folder / "other.safetensors", seed=5), make_tiny("sd1", folder / "o", "diffusers", seed=5)


class TestSeparateVae:
    @pytest.mark.parametrize("form", ["bare", "prefixed", "folder", "file", "model", "ckpt"])
    def test_every_form(self, tiny_base, tmp_path, other_model, form):
        other, folder = other_model
        tensors, _ = safetensors_io.load(other)
        vae = {name: tensor for name, tensor in tensors.items() if name.startswith("first_stage_model.")}
        bare = {name.removeprefix("first_stage_model."): tensor for name, tensor in vae.items()}
        paths = {
            "folder": folder / "vae",
            "file": folder / "vae" / "diffusion_pytorch_model.safetensors",
            "model": other,
        }
        if form == "ckpt":
            torch.save({"state_dict": bare}, tmp_path / "vae.pt")
            paths["ckpt"] = tmp_path / "vae.pt"
        elif form not in paths:
            paths[form] = tmp_path / "vae.safetensors"
            safetensors_io.save(paths[form], bare if form == "bare" else vae)
        base = load_base(tiny_base("sd1"), vae=paths[form], parts=("vae",))
        wanted = load_base(other, parts=("vae",)).vae.state_dict()
        assert all(torch.equal(tensor, wanted[name]) for name, tensor in base.vae.state_dict().items())

    def test_what_is_no_autoencoder_is_refused(self, tmp_path):
        safetensors_io.save(tmp_path / "a.safetensors", {"x": torch.ones(1)})
        with pytest.raises(InputError, match="not an autoencoder"):
            inspect_vae(tmp_path / "a.safetensors")

    def test_a_model_without_one_says_so(self, tiny_base, tmp_path):
        def strip(tensors):
            for name in [name for name in tensors if name.startswith("first_stage_model.")]:
                del tensors[name]

        path = changed(tiny_base, tmp_path, "sd1", strip)
        assert not inspect_base(path).has_vae
        with pytest.raises(InputError, match="has no autoencoder"):
            load_base(path, parts=("vae",))
