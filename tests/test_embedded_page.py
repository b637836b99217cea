"""The embedded host's page without a browser, and how the program starts."""

from __future__ import annotations

import socket

import pytest
from embedded_helpers import make_studio, served, write_lora

pytest.importorskip("gradio")
requests = pytest.importorskip("requests")

from extension.hosts.embedded import page_job  # noqa: E402
from extension.hosts.embedded.page import build_page  # noqa: E402
from extension.hosts.embedded.page_form import _with_lora, _with_word, build_form  # noqa: E402
from extension.hosts.embedded.request import settle  # noqa: E402
from extension.hosts.embedded.server import free_port, main, make_app  # noqa: E402
from trainers.errors import InputError  # noqa: E402


@pytest.fixture(scope="module")
def studio(tmp_path_factory):
    studio = make_studio(tmp_path_factory.mktemp("data"))
    write_lora(studio.places.adapters / "noisy.safetensors", studio)
    return studio


@pytest.fixture
def form():
    import gradio as gr

    with gr.Blocks():
        return build_form(False, (64, 64), lambda: ([], []))


def _values(form, **given):
    return [given.get(name, getattr(component, "value", None)) for name, component in form.fields.items()]


def test_the_page_is_served_beside_the_api(studio):
    with served(make_app(studio)) as port:
        page = requests.get(f"http://127.0.0.1:{port}/", timeout=60)
        assert page.status_code == 200 and "Athanor" in page.text
        assert requests.get(f"http://127.0.0.1:{port}/sdapi/v1/samplers", timeout=60).status_code == 200


def test_half_a_seed_is_refused_and_not_rounded(form):
    given = {name: form.fields[name].preprocess(value) for name, value in (("seed", 1.5), ("width", 64.5))}
    with pytest.raises(InputError) as refused:
        settle(form.request(_values(form, **given)), (64, 64))
    assert refused.value.problems == ["seed: 1.5 is not a whole number.", "width: 64.5 is not a whole number."]


def test_the_page_loads_no_font_or_script_from_elsewhere(studio):
    page = build_page(studio)
    assert "fonts.googleapis" not in str(getattr(page, "config", ""))


def test_drawing_shows_progress_then_pictures_settings_and_sentences(studio, form):
    values = _values(form, prompt="a red circle <lora:nosy>", steps=30, seed=3, strip=True)
    updates = list(page_job.generate(studio, form, *values))
    assert any("Step" in str(update[0]) for update in updates[:-1])
    status, gallery, strip, infotext, notes, kept = updates[-1]
    assert "1 picture" in status and gallery["value"][0].endswith("-3.png") and strip["visible"]
    assert infotext.startswith("a red circle <lora:nosy>\nSteps: 30") and kept[0]["infotext"] == infotext
    assert "&lt;lora:nosy&gt;" in notes and "noisy" in notes and "<lora" not in notes
    assert page_job.read_settings(gallery["value"][0])[0] == infotext


def test_what_will_not_do_is_a_sentence_on_the_page(studio, form):
    *_, last = page_job.generate(studio, form, *_values(form, prompt="x", width=60))
    assert "multiple of 8" in last[4] and "athanor-problem" in last[4]


def test_settings_of_a_picture_go_into_the_form(form):
    text = "a red circle\nNegative prompt: blue\nSteps: 9, Sampler: Heun, Seed: 4, Size: 64x96, Model: x"
    updates = page_job.use_settings(form, text)
    new = {name: one.get("value") for name, one in zip(form.fields, updates, strict=False) if "value" in one}
    assert (new["prompt"], new["steps"], new["sampler_name"], new["height"]) == ("a red circle", 9, "Heun", 96)
    assert "Steps could not be read" in page_job.use_settings(form, text.replace("9", "nine"))[-1]


def test_names_are_put_at_the_end_of_the_prompt():
    assert _with_lora("a cat", "x", 0.8) == "a cat <lora:x:0.8>" and _with_lora("", "x", None) == "<lora:x:1>"
    assert _with_word("a cat,", "x") == "a cat, x" and _with_word("", "x") == "x" and _with_word("a", None) == "a"


def test_a_model_that_is_not_there_is_a_sentence(tmp_path, capsys):
    given = ["--base", str(tmp_path / "none.safetensors"), "--data-dir", str(tmp_path), "--no-browser"]
    assert main(given) == 1
    said = capsys.readouterr().err
    assert "there is no such base model" in said and "Traceback" not in said


def test_a_port_that_is_taken_is_a_sentence():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(InputError, match="cannot be used"):
            free_port("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(InputError, match="65535"):
        free_port("127.0.0.1", 70000)
    with pytest.raises(InputError, match="no address"):
        free_port("no.such.name.invalid", 8000)
