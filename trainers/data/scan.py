"""From a folder on disk to a list of pictures with captions, and everything about it that a person should hear."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from trainers.data.caption_files import CaptionReader
from trainers.data.images import EXTENSIONS, UNREAD_EXTENSIONS
from trainers.data.index import Facts, FileIndex
from trainers.data.masks import MASK_SUFFIX
from trainers.data.picture import Picture, Skipped, counted, first_few
from trainers.data.sources import Source
from trainers.data.walk import CACHE_FOLDER, Folder, normal, walk
from trainers.errors import InputError
from trainers.spec import Job

Report = Callable[[int, int, str], None]
_KOHYA_FOLDER = re.compile(r"^(\d+)_(.*)$")
_OTHER_CACHES = {"_sd.npz": "SD1 or SD2", "_sdxl.npz": "SDXL", "_flux.npz": "Flux", "_sd3.npz": "SD3"}


@dataclass
class Scan:
    """Pictures in natural order, files that look like pictures but cannot be used, and sentences for the person."""

    pictures: list[Picture] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    options: dict[str, object] = field(default_factory=dict)  # job options that a dataset file sets (batch_size)
    unused_captions: list[str] = field(
        default_factory=list
    )  # caption files that belong to no picture or cannot be read
    unread_captions: list[str] = field(default_factory=list)  # caption files that the option captions leaves out
    unseen: list[str] = field(default_factory=list)  # pictures in folders that say 0 repeats

    def add(self, other: Scan) -> None:
        self.pictures += other.pictures
        self.skipped += other.skipped
        self.notes += [note for note in other.notes if note not in self.notes]
        self.unused_captions += other.unused_captions
        self.unread_captions += other.unread_captions
        self.unseen += other.unseen


def scan(
    folder: Path | str,
    job: Job,
    *,
    index: FileIndex | None = None,
    is_regularisation: bool = False,
    prefix: str = "",
    measured: bool = False,
    report: Report | None = None,
) -> Scan:
    """All pictures of a folder, or of the folders that a kohya dataset `.toml` names.

    Raises:
        InputError: no such folder, no usable picture, captions missing where others have them, damaged metadata.
    """
    folder, index = Path(folder), index or FileIndex()
    if folder.suffix.lower() == ".toml" and not folder.is_dir():
        from trainers.data.toml_config import read_dataset_file

        sources, options, notes = read_dataset_file(folder, job)
    else:
        sources, options, notes = _folder_sources(folder, job, is_regularisation, prefix, measured)
    total = Scan(options=options, notes=notes)
    for source in sources:
        total.add(scan_source(source, job, index, report))
    if not any(picture.is_regularisation == is_regularisation for picture in total.pictures):
        raise InputError(_nothing_left(folder, total.skipped))
    return total


def _folder_sources(
    folder: Path, job: Job, is_regularisation: bool, prefix: str, measured: bool
) -> tuple[list[Source], dict[str, object], list[str]]:
    """The folder itself; or, where it is laid out as kohya's GUI does, its `img` and `reg` folders."""
    if is_regularisation or measured or not _has_kohya_folders(folder / "img"):
        return [Source.of(folder, job, is_regularisation, prefix, measured)], {}, []
    sources = [Source.of(folder / "img", job, prefix="img/")]
    notes = [f"{folder} is laid out as kohya's GUI does: the pictures are taken from its folder img."]
    if _has_kohya_folders(folder / "reg") and not job.regularisation_data:
        sources.append(Source.of(folder / "reg", job, is_regularisation=True, prefix="reg:"))
        notes = [notes[0][:-1] + ", the regularisation pictures from reg."]
    return sources, {}, notes


def _has_kohya_folders(folder: Path) -> bool:
    try:
        return any(entry.is_dir() and _KOHYA_FOLDER.match(entry.name) for entry in os.scandir(folder))
    except OSError:
        return False


def _nothing_left(folder: Path, skipped: Sequence[Skipped]) -> str:
    if skipped:
        listed = "; ".join(f"{each.path.name}: {each.reason}" for each in skipped[:5])
        more = f"; and {len(skipped) - 5} more" if len(skipped) > 5 else ""
        return f"data: nothing in {folder} can be used, of {counted(len(skipped), 'picture')} ({listed}{more})."
    if CACHE_FOLDER in folder.resolve().parts or ((folder / "index.json").exists() and (folder / "latents").is_dir()):
        return f"data: {folder} is a cache of prepared pictures; name the folder with the pictures themselves."
    names = [name for _, _, files in os.walk(folder) for name in files]
    for suffix, family in _OTHER_CACHES.items():
        if any(name.endswith(suffix) for name in names):
            return f"data: {folder} holds another trainer's cache for {family} (*{suffix}) but no pictures."
    kinds = ", ".join(sorted(kind.lstrip(".") for kind in EXTENSIONS))
    return f"data: there are no pictures in {folder} (kinds that are read: {kinds})."


def scan_source(source: Source, job: Job, index: FileIndex, report: Report | None = None) -> Scan:
    """The pictures of one source."""
    result, reader = Scan(), CaptionReader(source)
    if isinstance(source.metadata, Path):
        reader.add_metadata(source.metadata, "")
    candidates: list[Picture] = []
    for folder in walk(source.root, result.notes, source.recursive):
        candidates += _pictures_of(folder, source, reader, result)
    _check_files(candidates, index, result, report)
    with_captions = sum(picture.caption_path is not None for picture in result.pictures)
    result.notes += reader.finish(with_captions, job.captions)
    result.unused_captions += [*reader.orphans, *reader.undecodable]
    result.unread_captions += reader.unused
    result.notes += _missing_captions(result.pictures, source, reader)
    _note_masks(source, result)
    return result


def _pictures_of(folder: Folder, source: Source, reader: CaptionReader, result: Scan) -> list[Picture]:
    present = reader.enter(folder)
    repeats, class_name, name = _folder_facts(folder, source)
    pictures, names = [], []
    for file in folder.files:
        stem, extension = os.path.splitext(normal(file))
        if extension.lower() in UNREAD_EXTENSIONS:
            kind = extension.lower().lstrip(".")
            result.skipped.append(Skipped(folder.path / file, f"{kind} files are not read; convert it to PNG or JPEG"))
        if extension.lower() not in EXTENSIONS or stem.lower().endswith((MASK_SUFFIX, "-condlabel")):
            continue
        names.append(file)
        if repeats == 0:
            continue
        caption = reader.caption(folder, present, file)
        mask = present.get(f"{stem.lower()}{MASK_SUFFIX}.png")
        pictures.append(
            Picture(
                path=folder.path / file,
                key=source.prefix + normal("/".join((*folder.parts, file))),
                caption=caption[0] if caption else class_name,
                caption_path=caption[1] if caption else None,
                repeats=repeats,
                is_regularisation=source.is_regularisation,
                mask_path=folder.path / mask if mask else None,
                class_name=class_name,
                folder=name,
                options=source.options,
            )
        )
    reader.leave(folder, names)
    if names and repeats == 0:
        result.unseen += ["/".join((*folder.parts, file)) for file in names]
        result.notes.append(f"The folder {folder.path} says 0 repeats, so {counted(len(names), 'picture')} left out.")
    elif names and repeats > 200 and source.repeats is None:
        result.notes.append(f"Every picture in {folder.path} counts {repeats} times, as the folder's name says.")
    return pictures


def _folder_facts(folder: Folder, source: Source) -> tuple[int, str, str]:
    """(repeats, class name, name for the metadata) from the nearest folder called `10_name class`."""
    root = source.root.resolve().name
    for name in reversed((root, *folder.parts)):
        match = _KOHYA_FOLDER.match(normal(name))
        if match:
            repeats = int(match[1]) if source.repeats is None else source.repeats
            class_name = match[2].strip() if source.class_name is None else source.class_name
            return repeats, class_name, normal(name)
    return 1 if source.repeats is None else source.repeats, source.class_name or "", normal(root)


def _check_files(candidates: list[Picture], index: FileIndex, result: Scan, report: Report | None) -> None:
    """Read what is new (size, content, readable or not) on a few threads: Pillow decodes without the GIL."""

    def facts_of(picture: Picture) -> tuple[Facts, Facts | None]:
        mask = picture.mask_path if picture.options.masks in ("files", "auto") else None
        return index.facts(picture.path), index.facts(mask) if mask else None

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        for number, (picture, (facts, mask)) in enumerate(
            zip(candidates, pool.map(facts_of, candidates), strict=True), 1
        ):
            problem = facts.problem or (
                mask.problem and f"its mask {picture.mask_path.name}: {mask.problem}" if mask else ""
            )
            if problem:
                result.skipped.append(Skipped(picture.path, problem))
            else:
                picture.sha256, picture.size, picture.has_alpha = facts.sha256, facts.size, facts.has_alpha
                picture.looks = facts.looks
                picture.mask_sha256 = mask.sha256 if mask else ""
                result.pictures.append(picture)
            if report and (number % 50 == 0 or number == len(candidates)):
                report(number, len(candidates), "pictures read")


def _missing_captions(pictures: list[Picture], source: Source, reader: CaptionReader) -> list[str]:
    """Sentences about missing captions; `InputError` where some pictures have captions and others do not.

    The class name of a kohya folder stands for captions only in a folder where no picture has one.
    """
    captioned = {picture.folder for picture in pictures if picture.caption_path}
    missing = [
        picture
        for picture in pictures
        if not picture.caption_path and (not picture.class_name or picture.folder in captioned)
    ]
    if not missing or (not source.extensions and not source.metadata):
        return []
    if not (captioned or reader.undecodable):
        return [f"No captions in {source.root} ({counted(len(missing), 'picture')})."]
    few = first_few((picture.key for picture in missing), 5)
    if source.allow_missing_captions:
        return [f"{len(missing)} of {counted(len(pictures), 'picture')} without a caption: {few}."]
    why = "have no caption while others do"
    if reader.undecodable:
        why = f"have no readable caption (not text: {first_few(reader.undecodable)})"
    raise InputError(
        f"data: {len(missing)} of {len(pictures)} pictures in {source.root} {why}: {few}; "
        "add the captions, or set allow_missing_captions: true."
    )


def _note_masks(source: Source, result: Scan) -> None:
    wanted = source.options.masks if not source.is_regularisation else "auto"
    with_file = [picture for picture in result.pictures if picture.mask_path]
    if wanted == "none" and with_file and not source.prefix.startswith(("val:", "prior:")):
        result.notes.append(f"{counted(len(with_file), 'mask file')} not used because masks is none.")
    elif wanted == "files" and not with_file and result.pictures:
        raise InputError(f"masks: files, but no picture in {source.root} has a mask (name{MASK_SUFFIX}.png beside it).")
    elif wanted == "alpha" and result.pictures and not any(picture.has_alpha for picture in result.pictures):
        raise InputError(f"masks: alpha, but no picture in {source.root} has transparent parts.")
