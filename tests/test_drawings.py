"""The drawings, and the checker that says what a drawing shows."""

from __future__ import annotations

import re

import numpy as np
import pytest
from PIL import Image, ImageFilter

from assets.recipe.checker import judge, nearest_colour
from assets.recipe.drawings import COLOURS, HELD_OUT, TRAIN, UNRELATED, draw, is_held_out, sample_scene
from assets.recipe.shapes import SHAPES


def right(pictures_and_scenes) -> float:
    """The share of drawings judged right in everything."""
    answers = [
        (verdict.colour, verdict.shape, verdict.background) == (scene.colour, scene.shape, scene.background)
        for picture, scene in pictures_and_scenes
        for verdict in [judge(picture)]
    ]
    return sum(answers) / len(answers)


def singles(count: int):
    """Held-out drawings of one thing."""
    for index in range(count):
        picture, _, scene = draw(HELD_OUT, index, single=True, full=True)
        yield picture, scene


def test_a_drawing_is_a_function_of_its_number():
    first, second, other = draw(TRAIN, 5), draw(TRAIN, 5), draw(TRAIN, 6)
    assert (first[0] == second[0]).all() and first[1] == second[1] and first[2] == second[2]
    assert (first[0] != other[0]).any()


def test_held_out_combinations_are_never_trained_on():
    trained = {(s.shape, s.colour, s.background) for s in (draw(TRAIN, i)[2] for i in range(400))}
    asked = {(s.shape, s.colour, s.background) for s in (draw(HELD_OUT, i)[2] for i in range(400))}
    assert not trained & asked
    assert {combination[0] for combination in asked} == set(SHAPES)
    assert {combination[1] for combination in asked} == set(COLOURS)
    assert all(is_held_out(*combination) for combination in asked)


def test_full_captions_name_thing_colour_and_background():
    for index in range(300):
        _, words, scene = draw(HELD_OUT, index, single=True, full=True)
        assert scene.colour in words and scene.shape in words and scene.background in words, words


def test_captions_vary_and_never_name_the_balls():
    captions = [draw(TRAIN, index)[1] for index in range(600)]
    assert len(set(captions)) > 500
    words = set(re.findall(r"[a-z]+", " ".join(captions)))
    assert not words & {"basketball", "football", "ball", "balls"}


def test_things_stay_inside_and_do_not_touch():
    for index in range(300):
        scene = sample_scene(np.random.default_rng([UNRELATED, 900, index]))
        for thing in scene.things:
            assert abs(thing.x) + thing.radius <= 1.001 and abs(thing.y) + thing.radius <= 1.001
        for a, b in zip(scene.things, scene.things[1:], strict=False):
            assert np.hypot(a.x - b.x, a.y - b.y) > a.radius + b.radius


def test_the_palette_is_well_separated():
    for name, colour in COLOURS.items():
        assert nearest_colour(np.array(colour)) == name
        others = [np.abs(np.array(colour) - np.array(o)).sum() for n, o in COLOURS.items() if n != name]
        assert min(others) > 80


def test_the_checker_is_right_on_clean_drawings():
    assert right(singles(250)) >= 0.98


@pytest.mark.parametrize("damage", ["blurred", "noisy", "coarse"])
def test_the_checker_is_right_on_damaged_drawings(damage):
    """As drawings come out of an autoencoder or a model: soft, a little noisy."""
    rng = np.random.default_rng(0)

    def damaged(picture: np.ndarray) -> np.ndarray:
        if damage == "noisy":
            return np.clip(picture + rng.normal(0, 10, picture.shape), 0, 255).astype(np.uint8)
        image = Image.fromarray(picture)
        if damage == "blurred":
            return np.asarray(image.filter(ImageFilter.GaussianBlur(1.0)))
        return np.asarray(image.resize((32, 32), Image.Resampling.BOX).resize((64, 64), Image.Resampling.BILINEAR))

    assert right((damaged(picture), scene) for picture, scene in singles(120)) >= 0.95


@pytest.mark.parametrize("shape", SHAPES)
def test_the_checker_does_not_take_one_shape_for_another(shape):
    drawings = [(picture, scene) for picture, scene in singles(400) if scene.shape == shape]
    assert len(drawings) > 20
    assert right(drawings) >= 0.97


def test_the_checker_sees_no_thing_where_there_is_none():
    verdict = judge(np.full((64, 64, 3), COLOURS["blue"], np.uint8))
    assert (verdict.colour, verdict.shape, verdict.background) == ("", "", "blue")


def test_the_checker_knows_no_shape_in_a_scrawl():
    rng = np.random.default_rng(3)
    picture = np.full((64, 64, 3), COLOURS["white"], np.uint8)
    picture[10:54, 30:34] = COLOURS["red"]
    for row in range(10, 54, 8):
        start = int(rng.integers(6, 26))
        picture[row : row + 2, start : start + 36] = COLOURS["red"]
    assert judge(picture).shape == ""
