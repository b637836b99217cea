"""Which tags act on which rows of a batch."""

from __future__ import annotations

import pytest

from extension.prompt import parse_batch


def names(batch, picture, part):
    return "".join(tag.name for tag in batch.for_row(picture, part))


def test_the_first_picture_speaks_for_all():
    batch = parse_batch(["<lora:a> one", "<lora:b> two"], ["<lora:n> bad"])
    assert [prompt.clean_text for prompt in batch.prompts] == [" one", " two"]
    assert names(batch, 0, 0) == names(batch, 1, 0) == "a"
    assert names(batch, 0, None) == names(batch, 1, None) == "an"
    (unused,) = batch.errors
    assert unused.picture == 1 and not unused.negative and "for=picture" in unused.error.message
    assert not batch.uniform


def test_for_picture_and_for_part():
    batch = parse_batch(
        ["x<lora:p:for=picture> AND <lora:q:for=part>y", "<lora:r:for=picture>z AND w<lora:s:for=part>"]
    )
    assert batch.errors == ()
    assert [names(batch, 0, 0), names(batch, 0, 1), names(batch, 0, None)] == ["p", "pq", "p"]
    assert [names(batch, 1, 0), names(batch, 1, 1), names(batch, 1, None)] == ["r", "rs", "r"]


def test_one_prompt_repeated_does_not_add_up():
    batch = parse_batch(["<lora:a:0.5><lora:b:oops>"] * 4, ["x"] * 4)
    assert len(batch.active) == 1 and batch.uniform
    assert len(batch.errors) == 1


def test_negative_tags():
    batch = parse_batch(["a AND b", "c"], ["<lora:n:for=part>", "<lora:m:for=picture>"])
    assert [names(batch, picture, 0) for picture in (0, 1)] == ["", ""]
    assert [names(batch, picture, None) for picture in (0, 1)] == ["n", "m"]


def test_default_scope_is_a_setting():
    batch = parse_batch(["<lora:a>", "<lora:b> AND <lora:c:for=all>"], default_scope="part")
    assert [names(batch, 0, 0), names(batch, 1, 0), names(batch, 1, 1)] == ["a", "b", ""]
    batch = parse_batch(["<lora:a>", "<lora:b>"], ["<lora:n>", ""], default_scope="picture")
    assert [names(batch, 0, None), names(batch, 1, None)] == ["an", "b"]
    assert batch.errors == ()


def test_numbers_of_prompts_must_agree():
    assert parse_batch([]).active == ()
    with pytest.raises(ValueError, match="2 negative prompts for 3 pictures"):
        parse_batch(["a", "b", "c"], ["x", "y"])
    with pytest.raises(ValueError, match="default_scope"):
        parse_batch(["a"], default_scope="everyone")
