"""Every text of the page in every language there is, and how the page comes to speak it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import pytest

from extension.ui import assets, texts

LANGUAGES = texts.languages()
TERMS = {"token": "词元", "vector": "向量", "base model": "基底模型", "UNet": "噪声预测器", "trigger word": "触发词"}


def test_texts_are_found():
    found = texts.page_texts()
    known = (
        "Train",
        "{0} of {1} tokens",
        "about {0} (estimate)",
        "rank",
        "Weight decay.",
        "The adapter",
        "GiB",
        "waiting",
    )
    for text in (*known, "A person", "to see whether it learns", "predicts velocity (v)", "{0}, without captions"):
        assert text in found, text
    assert "photo of {0} {1}" not in found  # captions are read by models, not by persons


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_text_of_the_page_and_of_the_schema_is_translated(language):
    assert texts.missing(language) == []
    gaps = {
        text: said for text, said in texts.localization(language).items()
        if sorted(re.findall(r"{\d}", text)) != sorted(re.findall(r"{\d}", said)) or not said.strip()
    }  # fmt: skip
    assert gaps == {}


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_translation_is_left_over(language):
    assert sorted(set(texts.localization(language)) - set(texts.page_texts())) == []


def test_the_fields_words_are_used():
    said = texts.localization("zh_CN")
    for word, term in TERMS.items():
        assert any(word.lower() in text.lower() and term in translated for text, translated in said.items()), word


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
@pytest.mark.parametrize(
    ("wanted", "browser", "expected"),
    [
        ("auto", ["zh-CN", "en"], "训练"),
        ("auto", ["en", "zh-CN"], None),
        ("zh_CN", ["en"], "训练"),
        ("en", ["zh"], None),
    ],
)
def test_the_page_speaks_the_language_of_the_option_or_the_browser(wanted, browser, expected):
    script = (
        "globalThis.window = {};"
        f"Object.defineProperty(globalThis, 'navigator', {{value: {{languages: {json.dumps(browser)}}}}});"
        f"{assets.localization_script(wanted)}"
        "console.log(JSON.stringify(window.localization.Train || null));"
    )
    done = subprocess.run(["node", "-"], input=script, capture_output=True, check=True, text=True, encoding="utf-8")
    assert json.loads(done.stdout) == expected
