"""`<ti:name:0.8>` in hosts that know emphasis: the embedding's name in the text, with its weight of the moment."""

from __future__ import annotations

from extension.injection.embeddings import EmbeddingStore
from extension.prompt import ParsedPrompt, Tag, effective, embedding_text
from extension.prompt.formatting import format_number


def weighted_text(parsed: ParsedPrompt, store: EmbeddingStore, step: float, total: int, hires: bool = False) -> str:
    """The clean text in which every `<ti:…>` stands as its embedding's name and weight at one step.

    With weight 0, outside its window, or when there is no such embedding, the name is left out.
    """
    text = parsed.clean_text
    for tag in reversed([tag for tag in parsed.tags if tag.kind == "ti"]):
        start, end = tag.clean_span
        text = text[:start] + _shown(tag, store, step, total, hires) + text[end:]
    return text


def _shown(tag: Tag, store: EmbeddingStore, step: float, total: int, hires: bool) -> str:
    weight = effective(tag, step, total, hires).unet
    item = store.get(tag.name.strip())
    if item is None or weight == 0:
        return ""
    name = embedding_text(item.name)
    return name if weight == 1 else f"({name}:{format_number(round(weight, 6))})"


def changes(parsed: ParsedPrompt) -> bool:
    """Whether some embedding of this prompt has another weight at another step."""
    return any(
        tag.kind == "ti" and (tag.te.constant is None or tag.window.start or tag.window.stop) for tag in parsed.tags
    )
