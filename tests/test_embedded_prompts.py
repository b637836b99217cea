"""Prompt syntax of the embedded host: weights, editing, chunks, infotext; no model is loaded."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from extension.hosts.embedded import editing
from extension.hosts.embedded.attention import read_attention
from extension.hosts.embedded.chunks import MARK_CLOSE, MARK_OPEN, Words, cut_prompt
from extension.hosts.embedded.conditioning import emphasise
from extension.hosts.embedded.infotext import quote, read_infotext, to_png, unquote, write_infotext
from extension.hosts.embedded.pasted import fields_of
from extension.injection.embeddings import Embedding
from trainers.bases.text import CHUNK, COMMA_ID, chunk_tokens

# What A1111 documents about weights, and what its parser is seen to do with odd input.
WEIGHTS = {
    "normal text": [("normal text", 1)],
    "an (important) word": [("an ", 1), ("important", 1.1), (" word", 1)],
    "a ((very)) [small] thing": [("a ", 1), ("very", 1.21), (" ", 1), ("small", 1 / 1.1), (" thing", 1)],
    "a (cat:1.5) and (dog: 0.5 )": [("a ", 1), ("cat", 1.5), (" and ", 1), ("dog", 0.5)],
    "((a:2) b:3)": [("a", 6), (" b", 3)],
    "(unbalanced": [("unbalanced", 1.1)],
    "[open": [("open", 1 / 1.1)],
    "closed)": [("closed)", 1)],
    "time 12:30": [("time 12:30", 1)],
    "[a:1.5)": [("a:1.5)", 1 / 1.1)],
    r"\(a\) \[b\] \\": [("(a) [b] \\", 1)],
    "a\\b": [("ab", 1)],
    "(a)(b)": [("ab", 1.1)],
    "": [("", 1)],
    "(a:nonsense)": [("a:nonsense", 1.1)],
    "(a:1.2.3)": [("a:1.2.3)", 1.1)],
}


@pytest.mark.parametrize("text", WEIGHTS)
def test_weights(text):
    read = read_attention(text)
    assert [one.text for one in read] == [piece for piece, _ in WEIGHTS[text]]
    assert [one.weight for one in read] == pytest.approx([weight for _, weight in WEIGHTS[text]])


def test_break_ends_a_chunk_and_keeps_the_weight_around_it():
    read = read_attention("(red BREAK blue:1.2) BREAKER")
    assert [(one.text, one.weight, one.breaks) for one in read] == [
        ("red", 1.2, False),
        ("", 1, True),
        ("blue", 1.2, False),
        (" BREAKER", 1, False),
    ]


EDITED = {
    "[a:b:0.5]": ["a"] * 5 + ["b"] * 5,
    "x [b:3]": ["x "] * 3 + ["x b"] * 7,
    "x [b::3]": ["x b"] * 3 + ["x "] * 7,
    "[a|b]": ["a", "b"] * 5,
    "[a:[b:c:4]:2]": ["a"] * 2 + ["b"] * 2 + ["c"] * 6,
    "[(a:2):b:5]": ["(a:2)"] * 5 + ["b"] * 5,
    "(x [a:b:1]:1.3)": ["(x a:1.3)"] + ["(x b:1.3)"] * 9,
    "[less] [open": ["[less] [open"] * 10,
    r"\[a:b:2\]": [r"\[a:b:2\]"] * 10,
    "[a:b:c]": ["[a:b:c]"] * 10,
}


@pytest.mark.parametrize("text", EDITED)
def test_editing(text):
    tree = editing.parse(text)
    assert [editing.text_at(tree, step, 10) for step in range(10)] == EDITED[text]


def test_editing_counts_on_in_the_hires_pass():
    tree = editing.parse("[a:b:1.5]")
    assert {editing.text_at(tree, step, 10) for step in range(10)} == {"a"}
    assert [editing.text_at(tree, step, 4, True, 10) for step in range(4)] == ["a", "a", "b", "b"]


@given(st.text(alphabet="ab[]():|\\0.5 <>AND", max_size=60))
def test_no_text_is_too_odd(text):
    tree = editing.parse(text)
    assert "".join(one.text for one in read_attention(editing.text_at(tree, 3, 10))) is not None
    if not any(isinstance(item, (editing.Switch, editing.Alternation)) for item in tree):
        assert editing.text_at(tree, 0, 10) == text


def test_deep_nesting_and_long_text_take_little_time():
    deep = "[" * 20_000 + "a" + ":b:3]" * 20_000
    editing.text_at(editing.parse(deep), 1, 10)
    assert all(abs(one.weight) <= 1e4 for one in read_attention("(" * 20_000 + "a" + ")" * 20_000))


# --- chunks; the "tokens" of these texts are the numbers in it


def numbers(text: str) -> list[int]:
    return [int(word) for word in text.split()]


NO_WORDS = Words(numbers, [])


def test_chunks_break_where_the_trainers_break():
    draws = torch.Generator().manual_seed(0)
    for _ in range(50):
        tokens = torch.randint(260, 275, (int(torch.randint(1, 260, (1,), generator=draws)),), generator=draws).tolist()
        chunks = cut_prompt(" ".join(map(str, tokens)), numbers, NO_WORDS)
        assert [chunk.tokens for chunk in chunks] == chunk_tokens(tokens)
        assert all(len(chunk.ids(True)) == len(chunk.multipliers()) == 77 for chunk in chunks)


def test_weights_follow_tokens_that_move_to_the_next_chunk():
    text = f"{'5 ' * 65}{COMMA_ID} (6 7 8:1.5) {'9 ' * 20}"
    first, second = cut_prompt(text, numbers, NO_WORDS)
    assert len(first.tokens) == 66 and second.tokens[:3] == [6, 7, 8]
    assert second.weights[:4] == [1.5, 1.5, 1.5, 1.0]


def _embedding(name: str, count: int) -> Embedding:
    return Embedding(name, {"text_encoder": torch.ones(count, 4)})


def test_an_embedding_takes_the_place_of_its_name_and_stays_whole():
    words = Words(numbers, [_embedding("11 12", 3), _embedding("11", 5)])
    (chunk,) = cut_prompt("7 (11 12:1.2) 11", numbers, words)
    assert [(one.position, one.embedding.count) for one in chunk.placed] == [(2, 3), (5, 5)]
    assert chunk.tokens == [7, *[0] * 8] and chunk.weights == [1, 1.2, 1.2, 1.2, *[1] * 5]
    full = cut_prompt(f"{'5 ' * 73} 11 12", numbers, words)
    assert [len(one.tokens) for one in full] == [73, 3] and full[1].placed[0].position == 1


def test_a_marked_embedding_is_weighed_like_emphasis_and_left_out_at_zero():
    item = _embedding("9", 2)
    text = f"1 {MARK_OPEN}0{MARK_CLOSE} 2"
    (chunk,) = cut_prompt(text, numbers, NO_WORDS, {0: (item, 0.5)})
    assert chunk.tokens == [1, 0, 0, 2] and chunk.weights == [1, 0.5, 0.5, 1]
    assert cut_prompt(text, numbers, NO_WORDS, {0: (item, 0.0)})[0].tokens == [1, 2]


def test_break_pads_the_chunk_and_an_empty_prompt_is_one_chunk():
    assert [one.tokens for one in cut_prompt("1 2 BREAK 3", numbers, NO_WORDS)] == [[1, 2], [3]]
    assert [one.tokens for one in cut_prompt("", numbers, NO_WORDS)] == [[]]
    assert CHUNK == 75


def test_emphasis_keeps_the_mean_and_survives_a_mean_of_zero():
    hidden = torch.rand(77, 8) + 0.1
    weights = torch.ones(77)
    assert emphasise(hidden, weights) is hidden
    weights[3] = 1.5
    made = emphasise(hidden, weights)
    assert made.mean().item() == pytest.approx(hidden.mean().item(), rel=1e-5)
    assert (made[3] / made[4]).mean() > (hidden[3] / hidden[4]).mean()
    centred = torch.tensor([[1.0, -1.0]]).repeat(77, 1)
    assert torch.isfinite(emphasise(centred, weights)).all()


# --- infotext


def test_infotext_goes_there_and_back():
    settings = {
        "Steps": 20,
        "Sampler": "DPM++ 2M",
        "Size": "64x96",
        "Seed": 5,
        "Lora hashes": "a: 12ab, b: 34cd",
        "Athanor": 'said: "x", twice\nover',
        "None": None,
    }
    text = write_infotext("a (red:1.2) thing,\nsecond line", "blue\nand green", settings)
    read = read_infotext(text)
    assert read["Prompt"] == "a (red:1.2) thing,\nsecond line" and read["Negative prompt"] == "blue\nand green"
    assert (read["Size-1"], read["Size-2"]) == ("64", "96")
    assert read["Lora hashes"] == "a: 12ab, b: 34cd" and read["Athanor"] == 'said: "x", twice\nover'
    assert "None" not in read


def test_an_infotext_of_another_program_is_read():
    text = (
        "masterpiece, <lora:x:0.8>\nNegative prompt: lowres\n"
        "Steps: 28, Sampler: DPM++ 2M Karras, CFG scale: 7, Seed: 965400086, Size: 512x768, Model hash: 45dee52b, "
        "Denoising strength: 0.4, Hires upscale: 2, Hires upscaler: Latent, "
        'Lora hashes: "x: 0123456789ab", Version: v1.10.1'
    )
    fields, unread = fields_of(read_infotext(text))
    assert not unread
    assert fields == {
        "prompt": "masterpiece, <lora:x:0.8>",
        "negative_prompt": "lowres",
        "steps": 28,
        "sampler_name": "DPM++ 2M",
        "scheduler": "Karras",
        "cfg_scale": 7.0,
        "seed": 965400086,
        "width": 512,
        "height": 768,
        "denoising_strength": 0.4,
        "hr_scale": 2.0,
        "hr_upscaler": "Latent",
        "enable_hr": True,
    }
    assert fields_of(read_infotext("x\nSteps: many, Sampler: PLMS, Seed: 1"))[1] == ["Steps", "Sampler"]


@given(st.text(max_size=80))
def test_quoting_is_reversible(text):
    assert unquote(quote(text)) == text


@given(st.text(max_size=200))
def test_any_text_is_read_as_an_infotext(text):
    assert "Prompt" in read_infotext(text)


def test_a_prompt_without_settings_is_a_prompt():
    assert read_infotext("a: b, c: d")["Prompt"] == "a: b, c: d"


def test_the_settings_are_in_the_png():
    from io import BytesIO

    from PIL import Image

    picture = Image.open(BytesIO(to_png(Image.new("RGB", (8, 8)), "a prompt ü\nSteps: 1")))
    assert picture.info["parameters"] == "a prompt ü\nSteps: 1"
