"""Laws of the grammar: round trips, agreement with the host's reading, and time in proportion to length."""

from __future__ import annotations

import math
import re
import time
from collections import defaultdict
from dataclasses import replace

import pytest

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import example, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from extension.prompt import (  # noqa: E402
    ALWAYS,
    KINDS,
    PRESETS,
    REGIONS,
    Blocks,
    Curve,
    Edge,
    Region,
    Strength,
    Tag,
    Window,
    effective,
    format_tag,
    parse_batch,
    parse_prompt,
)
from extension.prompt.blocks import TABLES  # noqa: E402
from extension.prompt.options import OPTION_NAMES  # noqa: E402
from extension.prompt.parts import split_parts  # noqa: E402

settings.register_profile("prompt", max_examples=60, deadline=None)
settings.load_profile("prompt")

weights = st.floats(-100, 100).map(lambda weight: round(weight, 4) + 0.0)
positions = st.one_of(st.floats(0, 1), st.floats(0, 200)).map(lambda position: round(position, 4) + 0.0)
names = st.text(
    st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp"), exclude_characters=":><"), min_size=1
).filter(lambda name: name.strip() and name.partition("=")[0].strip().lower() not in OPTION_NAMES)


@st.composite
def curves(draw):
    points = draw(st.lists(st.tuples(positions, weights), min_size=1, max_size=5))
    if len(points) == 1:
        return Curve.flat(points[0][1])
    points.sort(key=lambda point: point[0])
    return Curve(tuple(points), in_steps=points[-1][0] > 1)


@st.composite
def windows(draw):
    if draw(st.booleans()):
        places = draw(st.lists(st.integers(0, 999), min_size=2, max_size=2, unique=True))
        edges = [Edge(float(place), True) for place in sorted(places)]
    else:
        places = draw(st.lists(st.integers(0, 10**6), min_size=2, max_size=2, unique=True))
        edges = [Edge(place / 10**6, False) for place in sorted(places)]
    return draw(st.sampled_from([ALWAYS, Window(*edges), Window(edges[0], None), Window(None, edges[1])]))


blocks = st.one_of(
    st.sampled_from(sorted(PRESETS)).map(lambda preset: Blocks(preset=preset)),
    st.sampled_from(sorted(TABLES)).flatmap(
        lambda length: st.lists(weights, min_size=length, max_size=length).map(lambda values: Blocks(tuple(values)))
    ),
)
regions = st.sampled_from(
    [*(Region(name, box) for name, box in REGIONS.items()), Region("face 1.png"), Region("a/b=c.png")]
)


@st.composite
def tags(draw):
    kind = draw(st.sampled_from(sorted(KINDS)))
    adapter = kind in ("lora", "lyco")
    te = draw(curves())
    hires = draw(st.none() | curves().map(lambda curve: Strength(curve, curve)))
    if adapter and hires is not None:
        hires = Strength(hires.te, draw(curves()))
    return Tag(
        kind,
        draw(names),
        te=te,
        unet=draw(curves()) if adapter else te,
        dyn=draw(st.none() | st.integers(0, 999)) if adapter else None,
        window=draw(windows()),
        blocks=draw(st.none() | blocks) if adapter else None,
        hires=hires,
        scope="all" if kind == "ti" else draw(st.sampled_from(["all", "picture", "part"])),
        region=None if kind == "ti" else draw(st.none() | regions),
        live=draw(st.booleans()) if adapter else False,
    )


@given(tags())
def test_a_tag_survives_being_written_and_read(tag):
    text = format_tag(tag)
    parsed = parse_prompt(f"before {text} after")
    assert parsed.errors == ()
    assert parsed.tags == (tag,)
    assert format_tag(parsed.tags[0]) == text


@given(st.lists(st.one_of(st.text(st.characters(exclude_characters="<>\\")), tags()), max_size=6))
def test_tags_are_taken_out_of_any_text(pieces):
    pieces = [piece for piece in pieces if isinstance(piece, str) or piece.kind != "ti"]
    text = "".join(piece if isinstance(piece, str) else format_tag(piece) for piece in pieces)
    parsed = parse_prompt(text)
    assert parsed.clean_text == "".join(piece for piece in pieces if isinstance(piece, str))
    assert len(parsed.tags) == sum(not isinstance(piece, str) for piece in pieces)
    for tag in parsed.tags:
        assert text[slice(*tag.span)] == tag.source_text


FRAGMENTS = st.sampled_from(
    [
        *(f"<{kind}:" for kind in ("lora", "lyco", "ti", "hypernet", "LoRA", "other")),
        *(f"{option}=" for option in sorted(OPTION_NAMES)),
        *"<>:=@,;-.\\ \n\x00猫\u202e٣\ud800()[]01",
        *("AND", "part", "left", "ALL", "0.5", "-1", "nan", "inf", "1e999"),
    ]
)
soup = st.one_of(st.text(), st.lists(FRAGMENTS, max_size=30).map("".join))


@settings(max_examples=200)
@given(soup, st.booleans())
def test_no_text_breaks_it(text, negative):
    parsed = parse_prompt(text, negative)
    for tag in parsed.tags:
        assert tag.name.strip() and text[slice(*tag.span)] == tag.source_text
        for step in range(4):
            assert all(math.isfinite(weight) for weight in effective(tag, step, 4, hires=bool(step % 2)))
        assert parse_prompt(format_tag(tag)).tags == (replace(tag, part=0, negative=False),)
    for error in parsed.errors:
        assert 0 <= error.start <= error.end <= len(text)
        assert error.message and "\n" not in error.message and len(error.message) < 400
    parse_batch([text, "x"], [text])


@settings(max_examples=200)
@given(soup)
@example("a<b <3 <unknown:x:1> \\<3")
def test_text_without_tags_is_returned_unchanged(text):
    if not any(f"<{kind}:" in text for kind in KINDS):
        parsed = parse_prompt(text)
        assert parsed.clean_text == text and parsed.tags == ()


@settings(max_examples=200)
@given(soup)
def test_removal_is_the_hosts(text):
    """For the kinds that the host knows, what is left is what its own expression would leave."""
    text = text.replace("\\", "")
    known = re.compile(r"<(lora|lyco|hypernet):([^>]+)>")
    assert parse_prompt(text, kinds=("lora", "lyco", "hypernet")).clean_text == known.sub("", text)


def a1111_reading(arguments: str) -> tuple[str, float, float, int | None]:
    """How A1111 v1.10.1 reads the part after `<lora:`; raises where it does."""
    positional, named = [], {}
    for item in arguments.split(":"):
        if item.count("=") == 1:
            key, _, value = item.partition("=")
            named[key] = value
        else:
            positional.append(item)
    te = float(positional[1]) if len(positional) > 1 else 1.0
    te = float(named.get("te", te))
    unet = float(positional[2]) if len(positional) > 2 else te
    unet = float(named.get("unet", unet))
    dyn = int(positional[3]) if len(positional) > 3 else None
    return positional[0], te, unet, int(named["dyn"]) if "dyn" in named else dyn


ARGUMENTS = st.lists(
    st.sampled_from(
        ["0.5", "-1", " 2 ", "1e-2", "x", "", "te=0.3", "unet=.7", "dyn=4", "8", "foo=1", "te=x", "a=b=c", "1_0"]
    ),
    max_size=6,
)


@settings(max_examples=300)
@given(ARGUMENTS)
def test_what_a1111_accepts_means_the_same(arguments):
    text = ":".join(["name", *arguments])
    parsed = parse_prompt(f"<lora:{text}>")
    try:
        name, te, unet, dyn = a1111_reading(text)
    except (ValueError, IndexError):
        assert parsed.tags == () and parsed.errors
        return
    if [argument for argument in arguments if argument.count("=") != 1][2:3] == ["-1"]:
        return  # a negative number of ranks is refused here
    (tag,) = parsed.tags
    assert (tag.name, tag.te.constant, tag.unet.constant, tag.dyn) == (name, te, unet, dyn)
    assert all(error.tag_used for error in parsed.errors)


WEIGHT_AT_THE_END = re.compile(r"\s*:\s*([+-]?(\d+\.?\d*|\.\d+))\s*\Z")


@given(
    st.lists(
        st.sampled_from(["AND", " ", ":", "1", ".5", "-", "+", "a", "\n", "AN", "_", "²", "٣", "cat"]), max_size=10
    ).map("".join)
)
def test_parts_are_the_hosts(text):
    expected = []
    for piece in re.split(r"\bAND\b", text):
        weight = WEIGHT_AT_THE_END.search(piece)
        expected.append((piece[: weight.start()], float(weight[1])) if weight else (piece.rstrip(), 1.0))
    assert [(part.text, part.weight) for part in split_parts(text)] == expected


PIECES = ["<lora:", "\\<lora:", "<", "<lora:x:", "\\", "<lora:>", "<lora:x>", "<LoRA:x>", "\\<lora:x>"]
PIECES += ["AND ", " :1", "<lora:x:0@0,1@1:lbw=ALL:foo=1>", "<lora:<", "<ti:x>", "@,", " "]


@pytest.mark.parametrize("piece", PIECES)
def test_a_megabyte_does_not_hang(piece):
    """Work that grew with the square of the length would take hours here; a busy machine takes a second or two."""
    text = piece * (1_000_000 // len(piece))
    assert seconds(text) < 30
    parse_prompt(f"<lora:x:{text[:300_000]}>")


def seconds(text: str) -> float:
    began = time.process_time()
    parse_prompt(text)
    return time.process_time() - began


def test_many_tags_are_refused_with_one_sentence():
    parsed = parse_prompt("<lora:x>" * 5000)
    assert len(parsed.tags) == 1000 and parsed.clean_text == ""
    assert len(parsed.errors) == 1 and "more than 1000 tags" in parsed.errors[0].message
    assert len(parse_prompt("<lora:>" * 5000).errors) == 1001


def test_equal_tags_are_equal_wherever_they_stand():
    seen = defaultdict(int)
    for tag in parse_prompt("<lora:x:0.5> and <lora:x:te=0.5> AND").tags:
        seen[tag] += 1
    assert list(seen.values()) == [2]
