"""`python -m trainers inspect FILE`: what a file is and what is in it.

Reads headers wherever it can; nothing in a file is trusted or run.
"""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any

from trainers.bases.source import PICKLE_ENDINGS
from trainers.errors import InputError
from trainers.formats import pickles, safetensors_io
from trainers.tools import describe_adapter, describe_others

Description = dict[str, Any]


def describe(path: Path | str) -> Description:
    """A plain table (JSON can hold it) that says what the file is.

    Always has `file`, `bytes`, `kind` ("adapter", "embedding", "hypernetwork", "aesthetic gradient", "vae", "base" or
    "other"), `title`, `metadata` and `run` (the facts of its training run); the rest depends on the kind.

    Raises:
        InputError: missing, damaged, or of no known kind.
    """
    path = Path(path)
    try:
        if not path.exists():
            raise InputError(f"{path}: there is no such file.")
        found, metadata = _describe_folder(path) if path.is_dir() else _describe_file(path)
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) if path.is_dir() else None
        about = {"file": str(path), "bytes": size or path.stat().st_size, **found, "metadata": metadata}
        return {**about, "words": words} if (words := describe_others.learned_words(metadata)) else about
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: this file cannot be read ({error}).") from None


def _describe_folder(path: Path) -> tuple[Description, dict[str, str]]:
    if (path / "adapter_config.json").is_file() or any(path.glob("*/adapter_config.json")):
        return describe_adapter.describe_folder(path), {}
    return describe_others.base_model(path), {}


def _describe_file(path: Path) -> tuple[Description, dict[str, str]]:
    size = safetensors_io.check_file(path)
    if size == 0:
        raise InputError(f"{path}: this file is empty.")
    if path.suffix.lower() in PICKLE_ENDINGS or (path.suffix.lower() != ".safetensors" and pickles.is_pickle(path)):
        content = pickles.read_content_index(path)
        found = describe_others.from_pickle(content)
        if found:
            return found, {}
        tensors, metadata = pickles.read_index(path), {}
    else:
        header = safetensors_io.read_header(path)
        tensors, metadata = header.tensors, header.metadata
    found = (
        describe_adapter.describe_tensors(path, tensors, metadata)
        or describe_others.embedding_from_tensors(tensors, metadata)
        or describe_others.autoencoder(tensors)
    )
    return found or _base(path, tensors), metadata


def _base(path: Path, tensors) -> Description:
    try:
        return describe_others.base_model(path)
    except InputError as error:
        if any(name.startswith("model.diffusion_model.") for name in tensors):
            return describe_others.refused_base(error)
        raise


# --- as text


def _clean(value: Any, limit: int = 200) -> str:
    """Text for a terminal: control characters of a file's metadata must not reach it."""
    text = "".join(letter if unicodedata.category(letter)[0] != "C" else " " for letter in str(value))
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _size(count: int) -> str:
    for unit, width in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= width:
            return f"{count / width:.1f} {unit}"
    return f"{count} bytes"


def _counted(table: dict[str, int], most: int = 4) -> str:
    shown = [f"{value} ({count} layers)" if len(table) > 1 else str(value) for value, count in table.items()]
    return ", ".join(shown[:most]) + (", …" if len(shown) > most else "")


_PART_NAMES = {
    "unet": "UNet",
    "text_encoder": "text encoder",
    "text_encoder_2": "second text encoder",
    "vae": "VAE",
    "other": "norms and ends",
}


def _adapter_rows(found: Description) -> list[tuple[str, str]]:
    layers = ", ".join(f"{count} of the {_PART_NAMES[part]}" for part, count in found["layers"].items())
    rows = [("layers", layers)]
    if found["ranks"]:
        rows.append(("rank", _counted(found["ranks"])))
    if found["alphas"]:
        rows.append(("alpha", _counted(found["alphas"])))
    if found.get("embeddings"):
        rows.append(("embeddings", ", ".join(found["embeddings"])))
    if found["unknown_keys"]:
        rows.append(("not understood", f"{len(found['unknown_keys'])} keys, such as {found['unknown_keys'][0]}"))
    if found.get("model_hash"):
        states = {True: "as stated in the file", False: "NOT as stated in the file", None: "not stated in the file"}
        rows.append(("hash", f"{found['model_hash'][:12]} ({states[found['hash_matches']]})"))
    if found["tags"]:
        rows.append(("frequent tags", ", ".join(f"{tag} ({count})" for tag, count in found["tags"])))
    return rows


def _base_rows(found: Description) -> list[tuple[str, str]]:
    rows = [("predicts", f"{found['prediction']} (known from: {found['prediction_source']})")]
    for part, count in found["parameters_by_part"].items():
        stored, dtype = _size(found["stored_bytes"][part]), found["dtypes"][part]
        rows.append((_PART_NAMES[part], f"{count:,} values, {stored}, {dtype}"))
    rows.append(("UNet channels", ", ".join(map(str, found["channels"]))))
    return rows


def _headline(found: Description) -> str:
    parts = [found["title"]]
    if found.get("family_title"):
        parts.append(f"for {found['family_title']}" if found["kind"] == "adapter" else found["family_title"])
    elif found.get("family"):
        parts.append(f"for {found['family']}")
    if found.get("naming"):
        parts.append(f"({found['naming']} names)")
    return " ".join(parts)


def lines(description: Description) -> list[str]:
    """The description as lines of text, safe to print on a terminal."""
    found = description
    rows = [("what", _headline(found)), ("size", _size(found["bytes"]))]
    if found.get("problem"):
        rows.append(("note", found["problem"]))
    if "tokens" in found:
        rows.append(("vectors", f"{found['tokens']} of width {found['width']}"))
    elif "width" in found:
        rows.append(("width", str(found["width"])))
    if "widths" in found:
        rows.append(("widths", ", ".join(map(str, found["widths"]))))
    if found.get("parameters"):
        rows.append(("values", f"{found['parameters']:,}" + (f" ({found['dtype']})" if found.get("dtype") else "")))
    rows += _adapter_rows(found) if found["kind"] == "adapter" else []
    rows += _base_rows(found) if found["kind"] == "base" else []
    rows += [(name.replace("_", " "), value) for name, value in found.get("settings", {}).items()]
    rows += [(name.replace("_", " "), value) for name, value in found["run"].items()]
    rows += [(f"vector {number} is near", ", ".join(words)) for number, words in enumerate(found.get("words", []), 1)]
    width = max(len(name) for name, _ in rows)
    return [_clean(found["file"], 1000), *(f"  {_clean(name):<{width}}  {_clean(value, 400)}" for name, value in rows)]
