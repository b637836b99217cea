"""The CLIP tokenizer, made from the vocabulary that the open_clip_torch package carries: nothing is downloaded.

open_clip itself is never imported (it would pull in torchvision); only its data file is read.
"""

from __future__ import annotations

import gzip
import importlib.metadata
import importlib.util
import json
import tempfile
from functools import lru_cache
from pathlib import Path

BEGIN, END = "<|startoftext|>", "<|endoftext|>"
VOCABULARY_SIZE = 49408
_FILE = "bpe_simple_vocab_16e6.txt.gz"
_MERGES = 49152 - 256 - 2


def vocabulary_file() -> Path:
    """Where CLIP's vocabulary is; raises `RuntimeError` where open_clip_torch is not installed."""
    spec = importlib.util.find_spec("open_clip")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (Path(folder) / _FILE).is_file():
            return Path(folder) / _FILE
    try:
        for entry in importlib.metadata.files("open_clip_torch") or ():
            if entry.name == _FILE:
                return Path(entry.locate())
    except importlib.metadata.PackageNotFoundError:
        pass
    raise RuntimeError("CLIP's vocabulary is missing: install open_clip_torch (pip install --no-deps open_clip_torch)")


def _byte_letters() -> list[str]:
    """The 256 bytes as printable letters, in the order of CLIP's vocabulary (printable bytes first)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    rest = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(rest))]


@lru_cache(maxsize=1)
def vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """`(token to id, merges)` of OpenAI's CLIP: 512 bytes, 48,894 merges, begin and end."""
    text = gzip.decompress(vocabulary_file().read_bytes()).decode("utf-8")
    lines = text.split("\n")[1 : _MERGES + 1]
    merges = [tuple(line.split()) for line in lines]
    letters = _byte_letters()
    tokens = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in merges), BEGIN, END]
    return {token: index for index, token in enumerate(tokens)}, merges


def write_vocabulary(folder: Path | str) -> None:
    """Writes `vocab.json` and `merges.txt` as transformers' slow CLIP tokenizer and diffusers folders have them."""
    tokens, merges = vocabulary()
    folder = Path(folder)
    (folder / "vocab.json").write_text(json.dumps(tokens, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges), ""]
    (folder / "merges.txt").write_text("\n".join(lines), encoding="utf-8", newline="\n")


def clip_tokenizer(pad_token: str = END):
    """A transformers CLIP tokenizer (the Rust one, the only one in transformers 5) with OpenAI's ids.

    Args:
        pad_token: what short prompts are filled with: the end token (CLIP-L) or `!`, token 0 (OpenCLIP).
    """
    import transformers

    names = {"bos_token": BEGIN, "eos_token": END, "unk_token": END, "pad_token": pad_token, "model_max_length": 77}
    if int(transformers.__version__.split(".")[0]) >= 5:
        tokens, merges = vocabulary()
        return transformers.CLIPTokenizer(vocab=dict(tokens), merges=list(merges), **names)
    with tempfile.TemporaryDirectory() as folder:
        write_vocabulary(folder)
        files = {"vocab_file": str(Path(folder) / "vocab.json"), "merges_file": str(Path(folder) / "merges.txt")}
        return transformers.CLIPTokenizerFast(**files, **names)
