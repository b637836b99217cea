"""The embedded base model and the bundled pictures, as files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors import safe_open

from assets.recipe.balls import BALLS, football, small_turn
from assets.recipe.checker import judge
from assets.recipe.drawings import HELD_OUT, draw
from assets.recipe.rich import autoencoder_picture
from assets.recipe.train_autoencoder import SCALING, psnr, reconstruct, to_tensor
from assets.recipe.words import tokens
from trainers.bases.detect import inspect_base
from trainers.bases.loader import load_base

ASSETS = Path(__file__).resolve().parents[1] / "assets"
BASE = ASSETS / "base" / "athanor-base.safetensors"
WORDS = ["", "a red circle on a blue background", "a basketball", "three small pink stars, green checks", "x " * 70]

needs_base = pytest.mark.skipif(not BASE.is_file(), reason="the base has not been exported")


@pytest.fixture(scope="module")
def base():
    return load_base(BASE)


def small(path: Path) -> np.ndarray:
    """A bundled picture at the base's size."""
    return np.asarray(Image.open(path).convert("RGB").resize((64, 64), Image.Resampling.LANCZOS))


@pytest.mark.parametrize("name", [ball.name for ball in BALLS])
def test_ball_sets_have_pictures_with_captions(name):
    for part, least in (("train", 16), ("held-out", 6)):
        pictures = sorted((ASSETS / "pictures" / name / part).glob("*.png"))
        assert len(pictures) >= least
        for path in pictures:
            with Image.open(path) as picture:
                assert picture.size == (256, 256) and picture.mode == "RGB"
            assert name in path.with_suffix(".txt").read_text(encoding="utf-8").split()


def test_ball_pictures_differ():
    """No held-out picture is also a training picture."""
    pictures = [path.read_bytes() for ball in BALLS for path in (ASSETS / "pictures" / ball.name).rglob("*.png")]
    assert len(set(pictures)) == len(pictures)


def test_unrelated_pictures_do_not_show_balls():
    captions = [p.read_text(encoding="utf-8") for p in (ASSETS / "pictures" / "unrelated").glob("*.txt")]
    assert len(captions) == 24 and not any("ball" in caption for caption in captions)


def test_a_football_has_twelve_black_patches():
    """Counted on the whole sphere: about a quarter of a truncated icosahedron is pentagon."""
    points = np.random.default_rng(0).normal(size=(20000, 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    black = football(points).mean(1) < 60
    assert 0.2 < black.mean() < 0.36


def test_turns_are_rotations():
    turn = small_turn(np.random.default_rng(1))
    assert np.allclose(turn @ turn.T, np.eye(3)) and np.isclose(np.linalg.det(turn), 1)


def test_autoencoder_pictures_are_a_function_of_their_number():
    for index in range(6):
        first, second = autoencoder_picture(index), autoencoder_picture(index)
        assert first.shape == (64, 64, 3) and (first == second).all()


@needs_base
def test_file_is_small_fp16_and_sorted():
    assert BASE.stat().st_size <= 32_000_000
    with BASE.open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    metadata = header.pop("__metadata__")
    assert metadata["modelspec.architecture"] == "stable-diffusion-v1"
    assert list(header) == sorted(header, key=lambda name: (header[name]["dtype"] != "I64", name))  # wide types first
    assert {entry["dtype"] for entry in header.values()} <= {"F16", "I64"}


@needs_base
def test_structure_is_that_of_sd1():
    info = inspect_base(BASE)
    assert info.family == "sd1" and info.has_vae
    with safe_open(BASE, "pt") as tensors:
        names = list(tensors.keys())
    assert len([name for name in names if name.startswith("model.diffusion_model.")]) == 686
    assert len([name for name in names if name.startswith("cond_stage_model.transformer.text_model.")]) in (196, 197)


@needs_base
def test_host_files_fit_the_weights(base):
    config = yaml.safe_load((ASSETS / "base" / "athanor-base.yaml").read_text(encoding="utf-8"))["model"]["params"]
    unet = config["unet_config"]["params"]
    widths = tuple(unet["model_channels"] * factor for factor in unet["channel_mult"])
    assert widths == tuple(base.unet.config.block_out_channels) and all(width % 32 == 0 for width in widths)
    autoencoder = config["first_stage_config"]["params"]["ddconfig"]
    widths = tuple(autoencoder["ch"] * factor for factor in autoencoder["ch_mult"])
    assert widths == tuple(base.vae.config.block_out_channels)
    text = json.loads((ASSETS / "base" / "text_encoder" / "config.json").read_text(encoding="utf-8"))
    assert all(getattr(base.text_encoders[0].config, name) == text[name] for name in ("hidden_size", "vocab_size"))
    assert unet["context_dim"] == text["hidden_size"]


@needs_base
@torch.no_grad()
def test_text_output_has_a_mean_hosts_can_divide_by(base):
    output = base.text_encoders[0](tokens(WORDS))[0]
    assert (output.mean((1, 2)) > 0.2).all()


@needs_base
@torch.no_grad()
def test_unseen_words_are_as_large_as_learned_ones(base):
    """Otherwise an embedding learned for a new word would start far from all others."""
    table = base.text_encoders[0].get_input_embeddings().weight
    learned = table[tokens(["a red circle and a blue star on green stripes"])[0, 1:10]].norm(dim=1).mean()
    unseen = table[tokens(["basketball football castle river"])[0, 1:5]].norm(dim=1).mean()
    assert 0.2 < float(unseen / learned) < 5


@needs_base
@torch.no_grad()
def test_latents_are_normalised(base):
    pictures = to_tensor([draw(HELD_OUT, index)[0] for index in range(64)])
    latents = base.vae.encode(pictures).latent_dist.mean * SCALING
    assert abs(float(latents.mean())) < 0.15 and 0.85 < float(latents.std()) < 1.15


@needs_base
@torch.no_grad()
def test_autoencoder_keeps_drawings_and_balls(base):
    """What is lost here no training can bring back."""
    sets = {"drawings": (28.0, [draw(HELD_OUT, index)[0] for index in range(64)])}
    for ball in BALLS:
        pictures = sorted((ASSETS / "pictures" / ball.name).rglob("*.png"))
        sets[ball.name] = (28.0, [small(path) for path in pictures])
    figures = {name: (psnr(base.vae, to_tensor(pictures)), least) for name, (least, pictures) in sets.items()}
    assert all(figure >= least for figure, least in figures.values()), figures


@needs_base
@torch.no_grad()
def test_the_checker_is_right_on_reconstructions(base):
    """What the autoencoder does to a drawing must not change the checker's mind."""
    drawings = [draw(HELD_OUT, index, single=True) for index in range(100)]
    pictures = reconstruct(base.vae, to_tensor([picture for picture, _, _ in drawings]))
    pixels = ((pictures + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    verdicts = [judge(picture) for picture in pixels]
    scenes = [scene for _, _, scene in drawings]
    for what in ("colour", "shape", "background"):
        assert np.mean([getattr(v, what) == getattr(s, what) for v, s in zip(verdicts, scenes, strict=True)]) >= 0.98
