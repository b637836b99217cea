"""Which caption belongs to which picture, and what is said about caption files that are not used."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from trainers.data.metadata_files import NAMES, read_metadata
from trainers.data.picture import counted, first_few
from trainers.data.sources import Source
from trainers.data.walk import Folder, natural, normal
from trainers.encodings import UnreadableText, read_text
from trainers.errors import InputError

_ALL_EXTENSIONS = (".txt", ".caption")
_NOT_CAPTIONS = {"readme", "license", "licence", "copying", "index", "requirements", "notes"}


@dataclass
class CaptionReader:
    """Reads the captions of one source, folder by folder, and remembers what deserves a word."""

    source: Source
    metadata: dict[str, str] = field(default_factory=dict)  # path below the root -> caption
    metadata_files: dict[str, Path] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)
    differing: list[str] = field(default_factory=list)
    undecodable: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    many_lines: list[str] = field(default_factory=list)
    encodings: dict[str, list[str]] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)

    def enter(self, folder: Folder) -> dict[str, str]:
        """Take note of a folder's metadata files; returns {lower-case caption file name: real name}."""
        present = {normal(name).lower(): name for name in folder.files}
        base = "/".join(folder.parts)
        for name in NAMES if self.source.metadata is True else ():
            if name in present:
                self.add_metadata(folder.path / present[name], base)
        if self.source.metadata is False and (unread := [name for name in NAMES if name in present]):
            self.unused += [f"{base}/{name}".lstrip("/") for name in unread]
        return present

    def add_metadata(self, path: Path, base: str) -> None:
        root = normal(self.source.root.resolve().as_posix()).rstrip("/") + "/"
        for name, caption in read_metadata(path).items():
            key = normal(str(PurePosixPath(base, name.removeprefix(root))))
            self.metadata.setdefault(key, caption)
            self.metadata_files.setdefault(key, path)

    def _metadata_key(self, key: str) -> str | None:
        """Exact path, else (kohya's fine-tuning files) the path without extension."""
        for candidate in (key, str(PurePosixPath(key).with_suffix(""))):
            if candidate in self.metadata:
                self.used.add(candidate)
                return candidate
        return None

    def caption(self, folder: Folder, present: dict[str, str], name: str) -> tuple[str, Path] | None:
        """(caption, its file) of a picture; None when it has none."""
        key = normal("/".join((*folder.parts, name)))
        found: list[tuple[str, Path]] = []
        for extension in self.source.extensions:
            path = self._beside(folder, present, name, extension)
            text = self._read(path, key) if path else None
            if path and text is not None:
                found.append((text, path))
        listed = self._metadata_key(key)
        if listed is not None:
            found.append((self.metadata[listed], self.metadata_files[listed]))
        if len({text for text, _ in found}) > 1:
            self.differing.append(f"{key} ({found[0][1].name})")
        return found[0] if found else None

    def _beside(self, folder: Folder, present: dict[str, str], name: str, extension: str) -> Path | None:
        name = normal(name).lower()
        for candidate in (name.rpartition(".")[0] + extension, name + extension):
            if candidate in present:
                return folder.path / present[candidate]
        return None

    def _read(self, path: Path, key: str) -> str | None:
        try:
            text, encoding = read_text(path)
        except UnreadableText:
            self.undecodable.append(path.name)
            return None
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        if encoding not in ("utf-8", "utf-8-sig"):
            self.encodings.setdefault(encoding, []).append(path.name)
        if not lines:
            self.empty.append(path.name)
        if len(lines) > 1:
            self.many_lines.append(path.name)
        return " ".join(lines)

    def leave(self, folder: Folder, pictures: Iterable[str]) -> None:
        """After a folder's pictures: which of its caption files belong to none, or are of a kind not read."""
        names = {normal(name).lower() for name in pictures}
        known = names | {name.rpartition(".")[0] for name in names}
        for name in folder.files:
            stem, _, extension = normal(name).lower().rpartition(".")
            extension = "." + extension
            if extension not in (*_ALL_EXTENSIONS, *self.source.extensions) or stem in _NOT_CAPTIONS:
                continue
            shown = "/".join((*folder.parts, name))
            if stem not in known:
                self.orphans.append(shown)
            elif extension not in self.source.extensions:
                self.unused.append(shown)

    def finish(self, with_captions: int, option: str) -> list[str]:
        """Sentences about everything noticed; `InputError` when existing captions would be passed over whole."""
        if self.unused and not with_captions and option not in ("none", "auto"):
            raise InputError(
                f"captions: {option} finds no caption in {self.source.root}, but there is {first_few(self.unused, 1)}; "
                "use captions: auto."
            )
        lost = sorted(set(self.metadata) - self.used, key=natural)
        notes = [
            (self.differing, "picture", "several captions that differ; the file named here was used"),
            (self.orphans, "caption file", "no picture of that name"),
            (self.unused, "caption file", f"not read because captions is {option}"),
            (self.undecodable, "caption file", "not readable as text"),
            (self.empty, "caption file", "empty"),
            (self.many_lines, "caption", "several lines, all of which are used"),
            (lost, "metadata line", "no picture of that name"),
        ]
        notes += [
            (names, "caption", f"read as {encoding.upper()}") for encoding, names in sorted(self.encodings.items())
        ]
        sentences = [
            f"{counted(len(names), noun)}: {what} ({first_few(names)})." for names, noun, what in notes if names
        ]
        return sentences
