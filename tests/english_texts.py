"""Finds what the tab still says in English while it speaks another language: texts that are seen, titles, labels."""

from __future__ import annotations

import re
from typing import Any

NAMES = (
    "Athanor", "LoRA", "LoCon", "LoHa", "LoKr", "DoRA", "BOFT", "OFT", "DreamBooth", "Textual Inversion",
    "Hypernetwork", "Aesthetic Gradient", "Stable Diffusion", "SDXL", "SD1", "SD2", "CLIP", "UNet", "VAE", "GPU",
    "WebUI", "GiB", "GB", "MB", "KB", "px", "PNG", "YAML", "job.yaml", "PSNR", "Adam", "AdamW", "SNR",
)  # fmt: skip
"""Names of methods, models, units and formats, which are the same in every language."""

# What a person wrote or called something, and what the server says in sentences of its own.
_THEIRS = (
    "code, pre, .athanor-pieces, .athanor-taglist, .athanor-folders, .athanor-datahead h3, .athanor-picture b, "
    ".athanor-strip img, .athanor-entry b"
)
_SAID = ".athanor-said, .athanor-checks, .athanor-sharing, .athanor-fine"
_FIND = """([theirs, said]) => {
  const found = [], root = document.getElementById("athanor");
  const isSeen = (element) => (element.closest("select") || element).checkVisibility({ visibilityProperty: true });
  const dataOf = (node) => (node.nodeType === 3 ? node.data : "");
  const textOf = (element) => [...element.childNodes].map(dataOf).join("").trim();
  for (const element of [root, ...root.querySelectorAll("*")]) {
    if (element.closest(theirs) || element.matches("article") || !isSeen(element)) continue;
    const own = textOf(element), isChoice = element.tagName === "OPTION" && own === element.value;
    const labels = ["placeholder", "title", "aria-label"].map((name) => element.getAttribute(name) || "");
    for (const text of [isChoice ? "" : own, ...labels]) {
      if (/[A-Za-z]/.test(text)) found.push([text, Boolean(element.closest(said))]);
    }
  }
  return found;
}"""


def english_texts(page: Any, names: tuple[str, ...] = ()) -> tuple[list[str], list[str]]:
    """(texts of the page, sentences that came from the server) that are English, each once.

    Args:
        names: what the test called its files and words.
    """
    found: tuple[list[str], list[str]] = ([], [])
    for text, is_said in page.evaluate(_FIND, [_THEIRS, _SAID]):
        if is_english(text, names) and text not in found[is_said]:
            found[is_said].append(text)
    return found


def is_english(text: str, names: tuple[str, ...] = ()) -> bool:
    """Whether a word is left that is neither a name, nor an option's or file's, nor quoted; inside Chinese, three."""
    rest = re.sub(r"“[^”]*”|`[^`]*`|\S*[_/\\=<>]\S*|\S+\.\w+", " ", text)
    for name in sorted((*NAMES, *names), key=len, reverse=True):
        rest = re.sub(rf"(?<![A-Za-z]){re.escape(name)}(?![a-z])", " ", rest)
    if re.search(r"[\u4e00-\u9fff]", rest):
        return bool(re.search(r"(?:[A-Za-z]{2,}[ ,;-]+){2}[A-Za-z]{2,}", rest))
    return bool(re.search(r"[A-Za-z]{2,}", rest))
