"""Every form of a tag, what stays text, and what is said about tags that cannot be read."""

from __future__ import annotations

import pytest

from extension.prompt import (
    Blocks,
    Curve,
    Edge,
    Strength,
    Weights,
    Window,
    combine,
    effective,
    embedding_text,
    format_tag,
    nearest,
    parse_prompt,
    printable,
    resolve,
)


def only(text: str, **options):
    """The one tag of `text`, which must read without complaint and leave nothing behind."""
    parsed = parse_prompt(text, **options)
    assert parsed.errors == ()
    assert len(parsed.tags) == 1
    return parsed.tags[0]


@pytest.mark.parametrize(
    ("text", "te", "unet", "dyn"),
    [
        ("<lora:cat>", 1.0, 1.0, None),
        ("<lora:cat:0.8>", 0.8, 0.8, None),
        ("<lora:cat:0.5:0.7>", 0.5, 0.7, None),
        ("<lora:cat:0.5:0.7:16>", 0.5, 0.7, 16),
        ("<lora:cat:te=0.5:unet=1:dyn=16>", 0.5, 1.0, 16),
        ("<lora:cat:te=0.5>", 0.5, 0.5, None),
        ("<lora:cat:unet=0.5>", 1.0, 0.5, None),
        ("<lora:cat:0.3:te=0.5>", 0.5, 0.5, None),
        ("<lora:cat:0.3:0.4:unet=0.9>", 0.3, 0.9, None),
        ("<lora:te=0.5:cat>", 0.5, 0.5, None),
        ("<lora:cat:te=0.5:te=0.6>", 0.6, 0.6, None),
        ("<lyco:cat:-1.5>", -1.5, -1.5, None),
        ("<lora:cat: 0.8 >", 0.8, 0.8, None),
        ("<lora:cat:1e-1:+.5>", 0.1, 0.5, None),
        ("<lora:cat:０.８>", 0.8, 0.8, None),
        ("<hypernet:cat:0.4>", 0.4, 0.4, None),
        ("<ti:cat:0.4>", 0.4, 0.4, None),
    ],
)
def test_weights_as_a1111_reads_them(text, te, unet, dyn):
    tag = only(text)
    assert (tag.name, tag.te.constant, tag.unet.constant, tag.dyn) == ("cat", te, unet, dyn)
    assert tag.source_text == text and tag.span == (0, len(text))


@pytest.mark.parametrize(
    "name",
    [
        "my cat",
        "cat.v1.2",
        "猫 娘",
        "ねこ",
        "Кот",
        "cat (v2)",
        "[x]",
        "a=b",
        "a=b=c",
        "l'été",
        "a<b",
        " padded ",
        "sub/dir",
        "😺",
    ],
)
def test_names_are_kept_as_typed(name):
    tag = only(f"<lora:{name}:0.5>")
    assert tag.name == name and tag.te.constant == 0.5


def test_options_of_our_own():
    tag = only("<lora:x:1:start=0.2:stop=0.8:lbw=outd:hr=0.4:for=part:mask=Left:live=1>")
    assert tag.window == Window(Edge(0.2, False), Edge(0.8, False))
    assert tag.blocks == Blocks(preset="OUTD")
    assert tag.hires == Strength(Curve.flat(0.4), Curve.flat(0.4))
    assert (tag.scope, tag.live, tag.region.name, tag.region.box) == ("part", True, "left", (0, 0, 0.5, 1))
    assert only("<lora:x:step=5-15>").window == Window(Edge(5, True), Edge(15, True))
    assert only("<lora:x:step=0.2-15>").window == Window(Edge(0.2, False), Edge(15, True))
    assert only("<lora:x:mask=my mask.png>").region.mask_file == "my mask.png"
    assert only("<lora:x: Start = 3>").window.start == Edge(3, True)


def test_hires_weights_as_loractl():
    assert only("<lora:x:0.5:hr=1>").strength(hires=True).te.constant == 1.0
    assert only("<lora:x:0.5>").strength(hires=True).te.constant == 0.5
    tag = only("<lora:x:0.5:hr=0.6:hrte=0.7>")
    assert (tag.hires.te.constant, tag.hires.unet.constant) == (0.7, 0.6)
    tag = only("<lora:x:0.5:hrunet=0.1>")
    assert (tag.hires.te.constant, tag.hires.unet.constant) == (0.5, 0.1)
    assert effective(only("<lora:x:0.5:hr=0.25>"), 3, 20, hires=True) == Weights(0.25, 0.25)
    assert effective(only("<lora:x:0.5:hr=0.25>"), 3, 20) == Weights(0.5, 0.5)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a<b",
        "I <3 you >_<",
        "<unknown:x:1>",
        "<lora>",
        "< lora:x>",
        "<lora :x>",
        "<<<>>>",
        "\\<3 \\<unknown:x>",
        "(a:1.2) [b] {c|d} \\(e\\)",
        "a AND b :0.5",
        "<LORAX:x>",
        "\r\n\t \x00 <",
        "<lor",
    ],
)
def test_ordinary_text_stays_bit_for_bit(text):
    parsed = parse_prompt(text)
    assert (parsed.clean_text, parsed.tags, parsed.errors) == (text, (), ())


@pytest.mark.parametrize("text", ["<lora:>", "a <lora:x", "<LoRA:x>", "<lora:x <ti:y"])
def test_near_misses_stay_text_and_are_reported(text):
    parsed = parse_prompt(text)
    assert parsed.clean_text == text and parsed.tags == ()
    assert len(parsed.errors) == 1


def test_escapes():
    assert parse_prompt(r"see \<lora:x:1> here").clean_text == "see <lora:x:1> here"
    assert parse_prompt(r"see \<lora:x:1> here").tags == ()
    protected = parse_prompt(r"see \<lora:x:1> here", protect_escapes=True).clean_text
    assert protected == "see < lora:x:1> here"
    assert parse_prompt(protected).clean_text == protected
    two = parse_prompt(r"a\\<lora:x>b")
    assert two.clean_text == r"a\\b" and len(two.tags) == 1
    assert parse_prompt(r"\<lora:x \<lora:").clean_text == r"\<lora:x \<lora:"


def test_removal_leaves_what_is_around():
    parsed = parse_prompt("a photo, <lora:x:0.5> of <lyco:y> a cat\n<hypernet:z>")
    assert parsed.clean_text == "a photo,  of  a cat\n"
    assert [tag.clean_span for tag in parsed.tags] == [(9, 9), (13, 13), (20, 20)]


def test_embeddings_keep_their_place():
    parsed = parse_prompt("cat<ti:neg (v2):0.5>, <ti:a><ti:b>dog")
    assert parsed.clean_text == r"cat neg \(v2\), a  b dog"
    for tag in parsed.tags:
        start, end = tag.clean_span
        assert parsed.clean_text[start:end] == embedding_text(tag.name)
    assert parse_prompt("(<ti:a>:1.2)").clean_text == "(a:1.2)"


def test_kinds_can_be_left_to_the_host():
    parsed = parse_prompt("<lora:x><hypernet:y><ti:z>", kinds=("lora", "ti"))
    assert parsed.clean_text == "<hypernet:y> z"
    assert [tag.kind for tag in parsed.tags] == ["lora", "ti"]


@pytest.mark.parametrize(
    ("text", "piece", "words"),
    [
        ("<lora:x:abc>", "abc", "not a number"),
        ("<lora:x:0.5:>", "", "a number is missing"),
        ("<lora:x:nan>", "nan", "not a finite number"),
        ("<lora:x:te=-inf>", "-inf", "not a finite number"),
        ("<lora:x:1e999>", "1e999", "not a finite number"),
        ("<lora:x:99999>", "99999", "largest weight"),
        ("<lora:x:" + "9" * 50 + ">", "9" * 50, "too long"),
        ("<lora:x:dyn=1.5>", "1.5", "number of ranks"),
        ("<lora:x:dyn=-4>", "-4", "number of ranks"),
        ("<lora::1>", "", "names no file"),
        ("<lora: >", " ", "names no file"),
        ("<lora:te=1>", "<lora:te=1>", "names no file"),
        ("<lora:a\nb>", "a\nb", "control characters"),
        ("<lora:a <lora:b>", "<lora:a <lora:b>", "another tag begins inside"),
        ("<lora:x:start=1.5>", "1.5", "between 0.0 and 1.0"),
        ("<lora:x:start=five>", "five", "neither a step"),
        ("<lora:x:start=-1>", "-1", "neither a step"),
        ("<lora:x:step=5>", "5", "write it as 5-15"),
        ("<lora:x:step=15-5>", "<lora:x:step=15-5>", "ends before it begins"),
        ("<lora:x:start=0.5:stop=0.5>", "<lora:x:start=0.5:stop=0.5>", "ends before it begins"),
        ("<lora:x:lbw=1,2,3>", "1,2,3", "one of 12, 17, 20, 26"),
        ("<lora:x:lbw=OUTAL>", "OUTAL", 'did you mean "OUTALL"'),
        ("<lora:x:lbw=" + ",".join("R" * 17) + ">", ",".join("R" * 17), '"R" is not a number'),
        ("<lora:x:1:OUTD>", "OUTD", "written lbw="),
        ("<lora:x:for=me>", "me", "not one of all, picture, part"),
        ("<lora:x:live=yes>", "yes", "neither 1 nor 0"),
        ("<lora:x:mask=>", "", "a region is missing"),
        ("<lora:x:mask=../../etc/passwd>", "../../etc/passwd", "is a path"),
        ("<lora:x:mask=/etc/passwd>", "/etc/passwd", "is a path"),
        ("<lora:x:mask=..\\a>", "..\\a", "is a path"),
        ("<lora:x:1,2>", "1,2", "weight@position"),
        ("<lora:x:1@5,2>", "1@5,2", "needs a step"),
        ("<lora:x:1@-1,2@1>", "1@-1,2@1", "outside the run"),
        ("<lora:x:0@0,,1@1>", "0@0,,1@1", "a number is missing"),
        ("<lora:x:" + ",".join(["1@0"] * 201) + ">", ",".join(["1@0"] * 201), "at most 200 points"),
        ("<lora:" + "x" * 5000 + ">", "<lora:" + "x" * 5000 + ">", "longer than 4000"),
    ],
)
def test_an_unreadable_tag_is_taken_out_and_named(text, piece, words):
    parsed = parse_prompt(f"a {text} b")
    assert parsed.clean_text == "a  b"
    assert parsed.tags == ()
    (error,) = parsed.errors
    assert words in error.message
    assert f"a {text} b"[error.start : error.end] == piece
    assert error.text == text and not error.tag_used
    assert error.message.startswith("The tag <lora:") and error.message.endswith(".")


@pytest.mark.parametrize(
    ("text", "piece", "words"),
    [
        ("<lora:x:1:strat=0.2>", "strat=0.2", 'did you mean "start"?'),
        ("<lora:x:1:zzzz=0.2>", "zzzz=0.2", "there is no option"),
        ("<lora:x:1:1:8:9>", "9", "stands after everything"),
        ("<ti:x:1:2>", "2", "stands after everything"),
        ("<ti:x:lbw=ALL>", "ALL", "does nothing for ti"),
        ("<hypernet:x:dyn=oops>", "oops", "does nothing for hypernet"),
    ],
)
def test_what_a1111_ignores_is_ignored_and_reported(text, piece, words):
    parsed = parse_prompt(text)
    assert [tag.name for tag in parsed.tags] == ["x"]
    (error,) = parsed.errors
    assert error.tag_used and words in error.message and text[error.start : error.end] == piece


def test_and_parts():
    parsed = parse_prompt("a cat<lora:p> AND a dog <lora:q> :0.7 ANDY AND<lora:BOTH AND ONE>:bird: 2. ")
    assert [(part.text, part.weight) for part in parsed.parts] == [
        ("a cat", 1.0),
        (" a dog  :0.7 ANDY", 1.0),
        (":bird", 2.0),
    ]
    assert [tag.part for tag in parsed.tags] == [0, 1, 2]
    weights = parse_prompt("a :0.5 AND b: 2. AND c:-.5 AND d: x AND").parts
    assert [(part.text, part.weight) for part in weights] == [
        ("a", 0.5),
        (" b", 2.0),
        (" c", -0.5),
        (" d: x", 1.0),
        ("", 1.0),
    ]
    assert len(parse_prompt("a AND b <lora:x>", negative=True).parts) == 1
    assert parse_prompt("a AND b <lora:x>", negative=True).tags[0].part == 0


def test_the_same_adapter_twice_adds_up():
    tags = parse_prompt("<lora:a:0.5><lora:b><lora:a:0.25:1><lyco:a:-1><lora:a:0@0,1@1><lora:a:for=part>").tags
    combined = combine(tags)
    assert [(tag.name, tag.te.constant, tag.unet.constant) for tag in combined] == [
        ("a", -0.25, 0.5),
        ("b", 1.0, 1.0),
        ("a", None, None),
        ("a", 1.0, 1.0),
    ]
    (hires,) = combine(parse_prompt("<lora:a:0.5:hr=0.1><lora:a:0.25>").tags)
    assert (hires.te.constant, hires.hires.te.constant) == (0.75, 0.35)


def test_combining_changes_nothing_at_any_step():
    tags = parse_prompt("<lora:a:0.5><lora:a:0@0,2@1><lora:a:1:start=3><lora:a:0.25:hr=3><lora:a:0.5:step=2-4>").tags
    for hires in (False, True):
        for step in range(8):
            before = sum(effective(tag, step, 8, hires).unet for tag in tags)
            assert sum(effective(tag, step, 8, hires).unet for tag in combine(tags)) == pytest.approx(before)


def test_format_refuses_names_no_tag_can_hold():
    tag = only("<lora:x>")
    for name in ("a:b", "a>b", "", " ", "te=1"):
        with pytest.raises(ValueError, match="cannot hold"):
            format_tag(type(tag)("lora", name))


def test_nearest_and_resolve():
    known = ["my_cat_v2", "dog", "Landscape (old)", "deep/nested/name"]
    assert nearest("My Cat V2", known) == "my_cat_v2"
    assert nearest("my_cat_v3", known) == "my_cat_v2"
    assert nearest("dgo", known) == "dog"
    assert nearest("landscape", known) == "Landscape (old)"
    assert nearest("dog.safetensors", known) == "dog"
    assert nearest("zzzzzzzz", known) is None and nearest("", known) is None and nearest("x", []) is None
    assert resolve("dog", known) == "dog" and resolve(" dog ", known) == "dog"
    assert resolve("../dog", known) is None and resolve("Dog", known) is None


def test_messages_hide_nothing():
    (error,) = parse_prompt("<lora:x:\u202e1\x00>").errors
    assert "\u202e" not in error.message and "\\u202e" in error.message and "\x00" not in error.message
    assert printable("a" * 100) == "a" * 80 + "…"
