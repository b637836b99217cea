"""kohya's dataset files (`[general]`, `[[datasets]]`, `[[datasets.subsets]]`): which of their settings mean what here.

A setting that would change the result and that is not supported is an error that names it; nothing is passed over in
silence. Settings of a subset win over those of its dataset, these over `[general]`, and all over the job.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from trainers.data.picture import PictureOptions
from trainers.data.sources import Source
from trainers.errors import InputError, did_you_mean
from trainers.spec import Job

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_SUBSET = {
    "image_dir": str, "metadata_file": str, "num_repeats": int, "class_tokens": str, "caption_extension": str,
    "is_reg": bool, "keep_tokens": int, "shuffle_caption": bool, "flip_aug": bool, "random_crop": bool,
    "caption_dropout_rate": float, "caption_tag_dropout_rate": float, "caption_prefix": str, "caption_suffix": str,
    "alpha_mask": bool,
}  # fmt: skip
_DATASET = {
    "resolution": (int, list), "batch_size": int, "enable_bucket": bool, "min_bucket_reso": int,
    "max_bucket_reso": int, "bucket_reso_steps": int, "bucket_no_upscale": bool,
}  # fmt: skip
# Settings that are fine at the value given here, and change the result in ways not supported at any other.
_ONLY = {
    "color_aug": (False, None), "face_crop_aug_range": (None, None), "enable_wildcard": (False, None),
    "secondary_separator": (None, None), "keep_tokens_separator": (None, "keep_tokens"),
    "token_warmup_step": (0, None), "token_warmup_min": (1, None), "caption_dropout_every_n_epochs": (0, None),
    "caption_separator": (",", None), "conditioning_data_dir": (None, None), "network_multiplier": (1.0, None),
    "validation_split": (0.0, "validation_split of the job"), "resize_interpolation": (None, None),
}  # fmt: skip
# Settings that change nothing about what is learned.
_WITHOUT_EFFECT = {"cache_info", "debug_dataset", "validation_seed", "custom_attributes", "max_token_length"}
_GEOMETRY = {
    "enable_bucket": "buckets", "min_bucket_reso": "bucket_min", "max_bucket_reso": "bucket_max",
    "bucket_reso_steps": "bucket_step",
}  # fmt: skip


def read_dataset_file(path: Path, job: Job) -> tuple[list[Source], dict[str, Any], list[str]]:
    """(sources, job options the file sets, sentences for the person); `InputError` with every problem found."""
    raw, problems, notes = _load(path), [], []
    general = _table(raw.get("general", {}), f"{path.name}: [general]", problems)
    unknown = sorted(set(raw) - {"general", "datasets"})
    if unknown:
        problems.append(f"{path.name}: {unknown[0]!r} is no section of a dataset file (general, datasets).")
    datasets = raw.get("datasets")
    if not isinstance(datasets, list) or not datasets:
        raise InputError(f"{path}: a dataset file needs at least one [[datasets]] with [[datasets.subsets]].")
    _check(general, f"{path.name}: [general]", {**_SUBSET, **_DATASET}, problems, notes)
    sources, batch_sizes = [], set()
    for number, dataset in enumerate(datasets, 1):
        where = f"{path.name}: dataset {number}"
        dataset = dict(_table(dataset, where, problems))
        subsets = dataset.pop("subsets", None)
        _check(dataset, where, {**_SUBSET, **_DATASET}, problems, notes)
        if not isinstance(subsets, list) or not subsets:
            problems.append(f"{where} has no [[datasets.subsets]]; add one with image_dir.")
            continue
        batch_sizes.add({**general, **dataset}.get("batch_size", job.batch_size))
        for place, subset in enumerate(subsets, 1):
            label = f"{where}, subset {place}"
            subset = _table(subset, label, problems)
            _check(subset, label, _SUBSET, problems, notes)
            if not problems:
                settings = {**general, **dataset, **subset}
                sources.append(_source(settings, path, label, f"{number}.{place}/", job, problems))
    if len(batch_sizes) > 1:
        problems.append(
            f"{path.name}: all datasets have to have the same batch_size; these have {sorted(batch_sizes)}."
        )
    if problems:
        raise InputError(*dict.fromkeys(problems))
    return [each for each in sources if each], _job_options(batch_sizes.pop(), job, notes, path), notes


def _job_options(batch_size: int, job: Job, notes: list[str], path: Path) -> dict[str, Any]:
    if batch_size != job.batch_size:
        notes.append(f"The batch size is {batch_size}, as {path.name} says (the job says {job.batch_size}).")
    return {"batch_size": batch_size}


def _load(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except FileNotFoundError:
        raise InputError(f"data: the dataset file {path} does not exist.") from None
    except OSError as error:
        raise InputError(f"data: the dataset file {path} cannot be read ({error.strerror or error}).") from None
    except UnicodeDecodeError:
        raise InputError(f"data: the dataset file {path} is not UTF-8 text.") from None
    except tomllib.TOMLDecodeError as error:
        hint = "; write folders of Windows in single quotes: 'C:\\pictures'" if "escape" in str(error).lower() else ""
        raise InputError(f"{path}: this is not readable TOML ({error}){hint}.") from None


def _table(raw: object, where: str, problems: list[str]) -> Mapping[str, Any]:
    if isinstance(raw, Mapping):
        return raw
    problems.append(f"{where} has to hold lines of the form `name = value`.")
    return {}


def _check(
    table: Mapping[str, Any], where: str, known: Mapping[str, Any], problems: list[str], notes: list[str]
) -> None:
    """Every setting is known and of its type, or has no effect (said), or is a problem that names it."""
    for name, value in table.items():
        if name in known:
            if not _fits(value, known[name]):
                problems.append(f"{where}: {name} = {value!r} will not do; it takes {_wanted(known[name])}.")
        elif name in _ONLY:
            only, instead = _ONLY[name]
            if value != only:
                hint = f"; use {instead} instead" if instead else "; remove it to train without it"
                problems.append(f"{where}: {name} is not supported{hint}.")
        elif name in _WITHOUT_EFFECT:
            notes.append(f"{where}: {name} has no effect here.")
        elif name in _DATASET:
            problems.append(f"{where}: {name} belongs to [[datasets]], not to a subset.")
        else:
            problems.append(f"{where}: there is no setting {name!r}.{did_you_mean(name, (*_SUBSET, *_DATASET))}")


def _fits(value: object, kind: Any) -> bool:
    if kind is bool:
        return isinstance(value, bool)
    if isinstance(value, bool):
        return False
    if kind is float:
        return isinstance(value, (int, float)) and 0 <= value <= 1
    if kind is int:
        return isinstance(value, int) and value >= 0
    if kind == (int, list):
        sides = value if isinstance(value, list) else [value]
        return len(sides) in (1, 2) and all(type(side) is int and 8 <= side <= 8192 for side in sides)
    return isinstance(value, kind)


def _wanted(kind: Any) -> str:
    names = {bool: "true or false", float: "a number from 0 to 1", int: "a whole number of at least 0", str: "a text"}
    return names.get(kind, "a side in pixels, or [width, height]")


def _source(
    settings: Mapping[str, Any], path: Path, where: str, prefix: str, job: Job, problems: list[str]
) -> Source | None:
    metadata = settings.get("metadata_file")
    metadata_path = _find(metadata, path, Path.is_file) if metadata else None
    if metadata and metadata_path is None:
        problems.append(f"{where}: the metadata_file {metadata} does not exist.")
        return None
    folder = settings.get("image_dir")
    if not folder and metadata_path is None:
        problems.append(f"{where} does not say where its pictures are; add image_dir.")
        return None
    root = _find(folder, path, Path.is_dir) if folder else metadata_path.parent
    if root is None:
        problems.append(f"{where}: the image_dir {folder} does not exist (looked in {path.parent} and here).")
        return None
    return Source(
        root=root,
        options=_options(settings, job),
        prefix=prefix,
        repeats=settings.get("num_repeats", 1),
        class_name=settings.get("class_tokens", ""),
        recursive=metadata_path is not None,
        extensions=_extensions(settings, job) if metadata_path is None else (),
        metadata=metadata_path if metadata_path is not None else job.captions in ("auto", "metadata"),
        is_regularisation=settings.get("is_reg", False),
        allow_missing_captions=job.allow_missing_captions or "captions" in job.override_checks,
    )


def _extensions(settings: Mapping[str, Any], job: Job) -> tuple[str, ...]:
    """The file's caption_extension first; where captions is auto, the usual ones too, so that none stays unread."""
    named = settings.get("caption_extension")
    usual = Source.of(Path(), job).extensions
    if not named:
        return usual
    named = (named if named.startswith(".") else f".{named}").lower()
    return (named, *(each for each in usual if each != named)) if job.captions == "auto" else (named,)


def _options(settings: Mapping[str, Any], job: Job) -> PictureOptions:
    geometry = {ours: settings[theirs] for theirs, ours in _GEOMETRY.items() if theirs in settings}
    if "bucket_no_upscale" in settings:
        geometry["upscale"] = not settings["bucket_no_upscale"]
    if "resolution" in settings:
        sides = settings["resolution"]
        sides = sides if isinstance(sides, list) else [sides]
        geometry["resolution"] = (sides[0], sides[-1])
    base = PictureOptions.of(job)
    crop = {True: "random", False: "center"}.get(settings.get("random_crop"), base.crop)
    return replace(
        base,
        shuffle_captions=settings.get("shuffle_caption", base.shuffle_captions),
        keep_tokens=settings.get("keep_tokens", base.keep_tokens),
        tag_drop=float(settings.get("caption_tag_dropout_rate", base.tag_drop)),
        caption_drop=float(settings.get("caption_dropout_rate", base.caption_drop)),
        flip=settings.get("flip_aug", base.flip),
        crop=crop,
        masks={True: "alpha", False: "none"}.get(settings.get("alpha_mask"), base.masks),
        prefix=settings.get("caption_prefix", ""),
        suffix=settings.get("caption_suffix", ""),
        geometry=MappingProxyType(geometry),
    )


def _find(name: str, path: Path, test: Callable[[Path], bool]) -> Path | None:
    """What the dataset file names: absolute, beside that file, or below the working folder (as kohya)."""
    return next((each for each in (path.parent / name, Path(name)) if test(each)), None)
