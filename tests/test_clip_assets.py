"""The CLIP that comes with the project: a real one, small, and its training goes on where it was stopped."""

from __future__ import annotations

import argparse

import torch
from PIL import Image
from transformers import CLIPImageProcessor, CLIPModel

from assets.recipe.clip import FOLDER, TextHalf, load_clip, pixels, retrieval
from assets.recipe.drawings import HELD_OUT, draw
from assets.recipe.train_clip import MOST_BYTES, Training
from trainers.bases.clip_vision import load_clip_vision


def test_captions_find_drawings_of_combinations_that_were_never_trained_on():
    found = retrieval(load_clip(), TextHalf(), rounds=4)
    assert found["among"] > 60
    assert found["caption_finds_drawing"] > 0.85 and found["drawing_finds_caption"] > 0.85


def test_the_folder_reads_as_any_clip_folder_does():
    assert (FOLDER / "model.safetensors").stat().st_size <= MOST_BYTES
    picture, _, _ = draw(HELD_OUT, 3)
    clip, own = load_clip_vision(FOLDER), load_clip()
    seen = torch.nn.functional.normalize(clip.embed([Image.fromarray(picture)]), dim=-1)
    torch.testing.assert_close(seen, own.pictures(pixels([picture])), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(clip.text_projection, own.text_projection.weight.detach())
    whole, shape = CLIPModel.from_pretrained(FOLDER), TextHalf().model.config
    theirs = whole.config.text_config
    assert (theirs.hidden_size, theirs.num_hidden_layers) == (shape.hidden_size, shape.num_hidden_layers)
    given = CLIPImageProcessor.from_pretrained(FOLDER)(Image.fromarray(picture), return_tensors="pt")
    seen_by_it = whole.eval().get_image_features(**given)
    seen_by_it = getattr(seen_by_it, "pooler_output", seen_by_it)
    assert torch.nn.functional.cosine_similarity(seen_by_it, seen)[0] > 0.999


def test_a_stopped_training_ends_with_the_same_weights(tmp_path):
    def train(name: str, stops: tuple[int, ...]) -> dict[str, torch.Tensor]:
        folder = tmp_path / name
        folder.mkdir()
        for stop in stops:
            training = Training(argparse.Namespace(work=folder, steps=3, batch=6))
            while training.step < stop:
                training.train_step()
            training.save()
        return training.model.state_dict()

    whole, parts = train("whole", (3,)), train("parts", (1, 3))
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())
