"""`inspect` reads our files and others', and refuses hostile ones."""

from __future__ import annotations

import json

import pytest
import torch
from adapter_samples import random_lora
from tiny_models import make_tiny

from trainers.errors import InputError
from trainers.formats import adapters, safetensors_io
from trainers.formats.families import FAMILIES
from trainers.formats.metadata import TrainingFacts, finish, modelspec, ss_metadata
from trainers.tools.inspect import describe, lines

JOB = {
    "comment": "a note",
    "seed": 7,
    "optimizer": "adamw",
    "optimizer_args": ["eps=1e-6"],
    "schedule": "cosine",
    "warmup": 0,
    "upscale": False,
    "min_snr_gamma": 5.0,
    "author": "Ada",
    "trigger": "zkw ball",
    "timestep_min": 0,
    "timestep_max": 999,
    "max_chunks": 3,
}


def facts(family: str, **more) -> TrainingFacts:
    return TrainingFacts(
        family=family,
        prediction="epsilon",
        output_name="ball",
        session_id=123,
        started_at=1_700_000_000.0,
        steps=40,
        clip_skip=1,
        rank=4,
        alpha=2.0,
        tag_frequency={"10_ball": {"a ball": 9, "orange": 4}, "2_other": {"orange": 3}},
        dataset_dirs={"10_ball": {"n_repeats": 10, "img_count": 9}},
        **more,
    )


def shown(path) -> str:
    found = describe(path)
    json.dumps(found)
    text = lines(found)
    assert all("\n" not in line for line in text)
    return "\n".join(text)


@pytest.fixture(scope="module")
def lora_file(loaded_base, tmp_path_factory):
    tensors = adapters.to_kohya(random_lora(loaded_base("sd1"), mixed=True), torch.float16)
    metadata = {**ss_metadata(JOB, facts("sd1")), **modelspec(JOB, facts("sd1"))}
    path = tmp_path_factory.mktemp("lora") / "ball.safetensors"
    safetensors_io.save(path, tensors, finish(tensors, metadata))
    return path


class TestAdapters:
    def test_our_own(self, lora_file):
        found = describe(lora_file)
        assert found["types"] == {"lora": 264}
        assert (found["kind"], found["family"], found["naming"], found["dtype"]) == ("adapter", "sd1", "kohya", "F16")
        assert found["layers"] == {"unet": 192, "text_encoder": 72}
        assert found["ranks"] == {"4": 211, "6": 53}
        assert found["alphas"] == {"2": 264}
        assert found["hash_matches"] is True
        assert found["unknown_keys"] == []
        assert found["tags"][:2] == [("a ball", 9), ("orange", 7)]
        assert found["run"]["trigger"] == "zkw ball"
        text = shown(lora_file)
        assert "LoRA for Stable Diffusion 1.x (kohya names)" in text
        assert "192 of the UNet, 72 of the text encoder" in text
        assert "as stated in the file" in text

    @pytest.mark.parametrize("form", ["diffusers", "peft"])
    def test_other_namings(self, loaded_base, tmp_path, form):
        family = FAMILIES["sdxl"]
        entries = random_lora(loaded_base("sdxl"), components=["text_encoder_2"], mixed=True)
        path = tmp_path / "a.safetensors"
        if form == "diffusers":
            safetensors_io.save(path, *adapters.to_diffusers(family, entries))
        else:
            path = tmp_path / "folder"
            adapters.save_peft(path, adapters.to_peft(family, entries))
        found = describe(path)
        assert (found["family"], found["naming"], found["types"]) == ("sdxl", form, {"lora": 192})
        shown(path)

    @pytest.mark.parametrize(
        ("suffixes", "kind"),
        [
            ({"hada_w1_a": (8, 4), "hada_w1_b": (4, 8), "hada_w2_a": (8, 4), "hada_w2_b": (4, 8)}, "loha"),
            ({"lokr_w1": (2, 2), "lokr_w2_a": (8, 4), "lokr_w2_b": (4, 8)}, "lokr"),
            ({"oft_blocks": (4, 8, 8)}, "oft"),
            ({"diff": (8, 8)}, "full"),
            ({"w_norm": (8,), "b_norm": (8,)}, "norm"),
            ({"weight": (8,), "on_input": ()}, "ia3"),
            ({"a1.weight": (4, 8), "a2.weight": (8, 4), "b1.weight": (4, 8), "b2.weight": (8, 4)}, "glora"),
        ],
    )
    def test_other_kinds(self, tmp_path, suffixes, kind):
        site = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
        safetensors_io.save(
            tmp_path / "a.safetensors", {f"{site}.{part}": torch.ones(shape) for part, shape in suffixes.items()}
        )
        assert describe(tmp_path / "a.safetensors")["types"] == {kind: 1}
        shown(tmp_path / "a.safetensors")

    def test_layers_that_only_others_train(self, tmp_path):
        mid = "lora_unet_mid_block_attentions_0"
        norms = {f"{mid}_norm.w_norm": torch.ones(8), f"{mid}_norm.b_norm": torch.ones(8)}
        safetensors_io.save(tmp_path / "a.safetensors", norms)
        found = describe(tmp_path / "a.safetensors")
        assert (found["types"], found["layers"]) == ({"norm": 1}, {"other": 1})
        norms[f"{mid}_proj_in.diff"] = torch.ones(8, 8)
        safetensors_io.save(tmp_path / "b.safetensors", norms)
        found = describe(tmp_path / "b.safetensors")
        assert (found["types"], found["unknown_keys"]) == ({"full": 1, "norm": 1}, [])
        shown(tmp_path / "b.safetensors")

    def test_a_changed_file_is_noticed(self, lora_file, tmp_path):
        raw = bytearray(lora_file.read_bytes())
        raw[-1] ^= 1
        (tmp_path / "a.safetensors").write_bytes(raw)
        assert describe(tmp_path / "a.safetensors")["hash_matches"] is False
        assert "NOT as stated" in shown(tmp_path / "a.safetensors")

    def test_hostile_metadata_do_no_harm(self, tmp_path):
        metadata = {
            "ss_output_name": "evil\x1b[2J\x07\nname",
            "ss_tag_frequency": '{"a": {"b": "many"}}',
            "modelspec.title": "x" * 100_000,
            "ss_base_model_version": "[" * 1000,
        }
        site = "lora_te_text_model_encoder_layers_0_mlp_fc1"
        tensors = {f"{site}.lora_down.weight": torch.ones(2, 8), f"{site}.lora_up.weight": torch.ones(8, 2)}
        safetensors_io.save(tmp_path / "a.safetensors", tensors, metadata)
        text = shown(tmp_path / "a.safetensors")
        assert "\x1b" not in text
        assert len(text) < 3000
        for tags in ("[" * 5000, "[1]", '{"a": 1}', "null", "{"):
            safetensors_io.save(tmp_path / "a.safetensors", tensors, {"ss_tag_frequency": tags})
            assert describe(tmp_path / "a.safetensors")["tags"] == []


class TestEmbeddings:
    @pytest.mark.parametrize(
        ("tensors", "family", "tokens"),
        [
            ({"emb_params": (3, 768)}, "sd1", 3),
            ({"emp_params": (2, 1024)}, "sd2", 2),
            ({"clip_l": (4, 768), "clip_g": (4, 1280)}, "sdxl", 4),
            ({"<my-thing>": (768,)}, "sd1", 1),
        ],
    )
    def test_safetensors(self, tmp_path, tensors, family, tokens):
        safetensors_io.save(tmp_path / "a.safetensors", {name: torch.ones(shape) for name, shape in tensors.items()})
        found = describe(tmp_path / "a.safetensors")
        assert (found["kind"], found["family"], found["tokens"]) == ("embedding", family, tokens)
        shown(tmp_path / "a.safetensors")

    def test_webui_pickle(self, tmp_path):
        content = {"string_to_token": {"*": 265}, "string_to_param": {"*": torch.ones(2, 768)}, "name": "x", "step": 9}
        torch.save({**content, "sd_checkpoint": None, "sd_checkpoint_name": "base"}, tmp_path / "a.pt")
        found = describe(tmp_path / "a.pt")
        assert (found["kind"], found["tokens"], found["run"]["steps"]) == ("embedding", 2, "9")
        shown(tmp_path / "a.pt")

    def test_diffusers_pickle(self, tmp_path):
        torch.save({"<cat>": torch.ones(768)}, tmp_path / "a.bin")
        assert describe(tmp_path / "a.bin")["placeholder"] == "<cat>"


def test_hypernetwork(tmp_path):
    part = {"linear.0.weight": torch.ones(8, 4), "linear.0.bias": torch.ones(8)}
    torch.save(
        {4: (part, part), 8: (part, part), "step": 3, "name": "h", "layer_structure": [1, 2, 1]}, tmp_path / "h.pt"
    )
    found = describe(tmp_path / "h.pt")
    assert (found["kind"], found["widths"], found["parameters"]) == ("hypernetwork", [4, 8], 160)
    assert "[1, 2, 1]" in shown(tmp_path / "h.pt")


def test_aesthetic_gradient(tmp_path):
    torch.save(torch.ones(1, 768), tmp_path / "a.pt")
    assert describe(tmp_path / "a.pt")["kind"] == "aesthetic gradient"
    shown(tmp_path / "a.pt")


class TestBases:
    @pytest.mark.parametrize("layout", ["ldm", "diffusers"])
    def test_base(self, tiny_base, layout):
        found = describe(tiny_base("sdxl", layout))
        assert (found["kind"], found["family"], found["layout"]) == ("base", "sdxl", layout)
        assert "second text encoder" in shown(tiny_base("sdxl", layout))

    def test_ckpt(self, tmp_path):
        path = make_tiny("sd1", tmp_path / "a.ckpt")
        assert describe(path)["kind"] == "base"

    def test_vae(self, tiny_base):
        file = tiny_base("sd1", "diffusers") / "vae" / "diffusion_pytorch_model.safetensors"
        assert describe(file)["kind"] == "vae"
        shown(file)

    def test_a_model_that_cannot_be_trained_is_still_described(self, tmp_path):
        name = "model.diffusion_model.input_blocks.0.0.weight"
        safetensors_io.save(tmp_path / "a.safetensors", {name: torch.ones(320, 9, 3, 3)})
        assert "inpainting" in describe(tmp_path / "a.safetensors")["problem"]
        assert "inpainting" in shown(tmp_path / "a.safetensors")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x02", b"<html>", b"\xff" * 100])
@pytest.mark.parametrize("ending", [".safetensors", ".pt", ".ckpt", ".png", ""])
def test_hostile_files_are_refused_in_one_sentence(tmp_path, content, ending):
    path = tmp_path / f"a{ending}"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        describe(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_missing_files_are_refused(tmp_path):
    for path in (tmp_path / "none", tmp_path / "a\0b", tmp_path / ("x" * 5000)):
        with pytest.raises(InputError):
            describe(path)


class TestMetadata:
    def test_every_field_is_text_and_every_field_of_the_list_is_there(self):
        metadata = ss_metadata(JOB, facts("sd1", model_name="base.safetensors", model_hash="abc", model_sha256="d"))
        assert all(isinstance(value, str) for value in metadata.values())
        assert metadata["ss_bucket_no_upscale"] == "True"
        assert metadata["ss_v2"] == "False"
        assert metadata["ss_optimizer"] == "adamw(eps=1e-6)"
        assert metadata["ss_noise_offset"] == "None"
        assert json.loads(metadata["ss_tag_frequency"])["10_ball"]["a ball"] == 9
        listed = """session_id training_started_at output_name training_comment seed steps epoch learning_rate
        text_encoder_lr unet_lr optimizer lr_scheduler lr_warmup_steps max_train_steps max_grad_norm
        gradient_accumulation_steps gradient_checkpointing num_train_images num_validation_images num_reg_images
        num_batches_per_epoch num_epochs batch_size_per_device total_batch_size resolution color_aug flip_aug
        random_crop shuffle_caption enable_bucket bucket_no_upscale min_bucket_reso max_bucket_reso keep_tokens
        dataset_dirs
        reg_dataset_dirs tag_frequency bucket_info datasets network_module network_dim network_alpha network_dropout
        network_args mixed_precision v2 base_model_version clip_skip max_token_length cache_latents sd_model_name
        sd_model_hash new_sd_model_hash noise_offset multires_noise_iterations multires_noise_discount
        adaptive_noise_scale zero_terminal_snr min_snr_gamma scale_weight_norms ip_noise_gamma debiased_estimation
        loss_type huber_schedule huber_c prior_loss_weight caption_dropout_rate caption_dropout_every_n_epochs
        caption_tag_dropout_rate face_crop_aug_range"""
        assert {f"ss_{name}" for name in listed.split()} <= set(metadata)

    @pytest.mark.parametrize(
        ("family", "prediction", "version", "architecture"),
        [
            ("sd1", "epsilon", "sd_v1", "stable-diffusion-v1/lora"),
            ("sd2", "epsilon", "sd_v2", "stable-diffusion-v2-512/lora"),
            ("sd2", "v", "sd_v2_v", "stable-diffusion-v2-768-v/lora"),
            ("sdxl", "epsilon", "sdxl_base_v1-0", "stable-diffusion-xl-v1-base/lora"),
        ],
    )
    def test_versions(self, family, prediction, version, architecture):
        made = facts(family)
        made.prediction = prediction
        assert ss_metadata(JOB, made)["ss_base_model_version"] == version
        spec = modelspec(JOB, made)
        assert spec["modelspec.architecture"] == architecture
        assert spec["modelspec.prediction_type"] == prediction
        must = ("sai_model_spec", "implementation", "title", "resolution", "date", "author", "trigger_phrase")
        assert {f"modelspec.{name}" for name in must} <= set(spec)
        assert "modelspec.timestep_range" not in spec

    def test_a_job_can_be_given_itself(self):
        from trainers.spec import parse

        job = parse({"method": "lora", "name": "x", "base": "b", "data": "d", "steps": 3})
        assert ss_metadata(job, facts("sd1"))["ss_seed"] == "1"
        assert modelspec(job, facts("sd1"))["modelspec.title"] == "ball"
