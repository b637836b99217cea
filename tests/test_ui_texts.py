"""Every text of the page in every language there is, and how the page comes to speak it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import pytest

from extension.hosts.a1111_languages import share_languages
from extension.ui import assets, sentences, texts

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
    assert set(texts.missing(language)) & set(texts.page_texts()) == set()
    gaps = {
        text: said for text, said in texts.localization(language).items()
        if sorted(re.findall(r"{\d}", text)) != sorted(re.findall(r"{\d}", said)) or not said.strip()
    }  # fmt: skip
    assert gaps == {}


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_translation_is_left_over(language):
    said = texts.said()
    left = set(texts.localization(language)) - set(texts.page_texts()) - set(said)
    assert len(left) < 0.1 * len(said), sorted(left)  # sentences are written where nobody thinks of languages


@pytest.mark.parametrize("language", LANGUAGES)
def test_nearly_every_sentence_of_trainers_and_routes_is_translated(language):
    assert len(texts.missing(language)) < 0.02 * len(texts.said()), texts.missing(language)


def test_sentences_are_looked_for_wherever_people_are_spoken_to():
    said = sentences.templates()
    for text in (
        "steps: give steps or epochs, so that the run knows when to end.",  # the schema of options
        "base_dtype: fp8 cannot be used with this torch on {0}; use bf16, fp16 or fp32.",  # a trainer at work
        "prediction: {0} is not one of {1}.",  # and what may follow it is a sentence of its own
        'Did you mean "{0}"?',
        "the WebUI takes parts of the model from several files (VAE / Text Encoder)",  # a host
        "an SDXL refiner",
        "{0} failed: {1}. The whole output is in {2}.",  # the set-up, shown by the tab
    ):
        assert text in said, text
    assert "Teach a Stable Diffusion model something new." not in said  # the command line's help
    assert not any(text.startswith(("model.", "https:", "(?i)")) for text in said)


def test_other_names_of_the_same_language_get_the_tabs_texts_too():
    ours = str(assets.ROOT / "localizations" / "zh_CN.json")
    same = ("zh-Hans (Stable)", "zh", "chinese-all-0620", "简体中文 (Stable)")
    others = ("zh_TW", "zh-Hant (Stable)", "ja_JP", "zhuang", "chinese_tw")
    table = {"zh_CN": [ours], **{name: [f"{name}.json"] for name in (*same, *others)}}
    for _ in range(2):  # the page is built again
        share_languages(table)
    assert table == {"zh_CN": [ours], **{name: [ours, f"{name}.json"] for name in same}} | {
        name: [f"{name}.json"] for name in others
    }


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


def test_phrases_are_still_said_somewhere():
    sources = "".join(
        path.read_text(encoding="utf-8") for folder in ("trainers", "extension", "installer")
        for path in (assets.ROOT / folder).rglob("*.py") if path.name != "sentences.py"
    )  # fmt: skip
    assert [phrase for phrase in sentences.PHRASES if phrase.replace("\\", "\\\\") not in sources] == []


SAID = {
    "3 pictures to learn from; fewer than 5. Add pictures: other places, light, distances and angles. A style needs 20 "
    "and more.": "可学的只有 3 张图片，少于 5 张。请增加图片：不同的地点、光线、距离和角度。画风需要 20 张以上。",
    "2 of 6 pictures have no caption: a. b.png, c d.png, e.png and 7 more. Write the missing captions, or set "
    "allow_missing_captions: true.": "6 张图片中有 2 张没有描述：a. b.png, c d.png, e.png 等，另有 7 个。"
    "请补上缺少的描述，或设置 allow_missing_captions: true。",
    "It does not attach, because the WebUI has another model loaded. The WebUI makes room and loads its model again "
    "afterwards.": "不能直接共用模型，因为 WebUI 载入的是另一个模型。WebUI 会腾出空间，之后再载入它的模型。",
    "猫.png: is damaged or cut short.": "猫.png：已损坏或不完整。",
    "The trainer was ended by the signal SIGKILL.": "训练程序被结束了，信号为 SIGKILL。",
    "D:\\a b\\flux.safetensors: this is a Flux model; Stable Diffusion 1.x, 2.x and XL base models can be trained.":
    "D:\\a b\\flux.safetensors：这是 Flux 模型；可以训练 Stable Diffusion 1.x、2.x 和 XL 的基底模型。",
    "rank: is empty; it takes a whole number from 1 to 1024.": "rank：为空；应为 1 到 1024 之间的整数。",
    "rank: 'x' will not do; it takes a whole number from 1 to 1024.": "rank：'x' 不行；应为 1 到 1024 之间的整数。",
    "kind: 'lroa' is not one of lora, loha. Did you mean \"lora\"?": 
    "kind：'lroa' 不在 lora, loha 之中。是不是“lora”？",
    "data: nothing in /猫 狗 can be used, of 2 pictures (a.png: the file is empty; b.png: it is damaged (x)).":
    "data：/猫 狗 里的 2 张图片都不能用（a.png：文件是空的; b.png：已损坏（x））。",
    "Installing the trainers' packages failed: the disk is full. The whole output is in /x/y.log.":
    "安装训练所需的软件包失败：磁盘已满。完整输出见 /x/y.log。",
    "data: since the job was queued, 1 picture removed (06.png); 4 caption files changed (a.txt, b.txt, c.txt and 1 "
    "more).":
    "data：任务排队之后，移除 1 张图片（06.png）; 改动 4 个描述文件（a.txt, b.txt, c.txt 等，另有 1 个）。",
    "Nobody ever wrote this. Every picture has a caption.": "Nobody ever wrote this. 每张图片都有描述。",
}  # fmt: skip


def _said(language: str, told: list[str]) -> list[str]:
    """What the page shows for what the server told it."""
    script = (assets.ROOT / "javascript" / "athanor_said.js").read_text(encoding="utf-8")
    translate = "athanor.t = (text, ...values) => (known[text] || text).replace(/\\{(\\d+)\\}/g, (_, n) => values[n]);"
    script = (
        f"globalThis.window = {{ localization: {json.dumps(texts.localization(language))} }};"
        f"{script} const athanor = window.athanor, known = window.localization; {translate}"
        f"console.log(JSON.stringify({json.dumps(told)}.map((each) => athanor.said(each))));"
    )
    done = subprocess.run(["node", "-"], input=script, capture_output=True, check=True, text=True, encoding="utf-8")
    return json.loads(done.stdout)


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_sentences_of_the_server_are_shown_in_the_persons_language_with_their_values():
    assert dict(zip(SAID, _said("zh_CN", list(SAID)), strict=True)) == SAID


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
@pytest.mark.parametrize("language", LANGUAGES)
def test_no_sentence_is_taken_for_another(language):
    known = texts.localization(language)
    whole = [text for text in sentences.templates() if text in known and text[-1] in ".!?"]
    filled = {re.sub(r"{(\d+)}", r"value\1", text): re.sub(r"{(\d+)}", r"value\1", known[text]) for text in whole}
    assert len(filled) > 300
    assert dict(zip(filled, _said(language, list(filled)), strict=True)) == filled
