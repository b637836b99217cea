"""Files of some folders by the names that people type; a name leads to a listed file or to nothing, never to a path."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from extension.injection.adapter_file import Stamp, stamp
from extension.prompt.names import nearest, resolve
from trainers.errors import InputError
from trainers.formats.safetensors_io import read_header

ADAPTER_ENDINGS = (".safetensors", ".pt", ".ckpt")
MASK_ENDINGS = (".png", ".webp", ".jpg", ".jpeg", ".bmp")


def walk_files(folders: Iterable[Path], endings: tuple[str, ...]) -> Iterator[tuple[Path, Path]]:
    """(folder, file) for every file with one of these endings; links are followed, each real folder once."""
    seen: set[str] = set()
    for folder in folders:
        for root, inner, names in os.walk(folder, followlinks=True):
            real = os.path.realpath(root)
            if real in seen:
                inner[:] = []
                continue
            seen.add(real)
            inner.sort()
            for name in sorted(names):
                if name.lower().endswith(endings) and not name.startswith("."):
                    yield folder, Path(root) / name


class Listing:
    """Files by name: the file's name without its ending, its path below the folder without ending, or its alias.

    An alias is the name its trainer gave it (`ss_output_name`), as A1111 reads it; one that two files share means
    neither of them. Of two files with the same name the first counts.
    """

    def __init__(self, folders: Iterable[Path | str], endings: tuple[str, ...] = ADAPTER_ENDINGS) -> None:
        self.folders = [Path(folder) for folder in folders]
        self.endings = endings
        self._files: dict[str, Path] = {}
        self._paths: dict[str, Path] = {}
        self._alias_of: dict[Stamp, str | None] = {}
        self._known: dict[str, Stamp] = {}

    def rescan(self) -> bool:
        """Lists the folders again; True when a file is new, changed or gone."""
        files: dict[str, Path] = {}
        paths: dict[str, Path] = {}
        known: dict[str, Stamp] = {}
        for folder, path in walk_files(self.folders, self.endings):
            try:
                known[str(path)] = stamp(path)
            except OSError:
                continue  # gone since the folder was listed
            files.setdefault(path.stem, path)
            paths.setdefault(path.relative_to(folder).with_suffix("").as_posix(), path)
        changed = known != self._known
        self._files, self._paths, self._known = files, paths, known
        return changed

    def names(self) -> list[str]:
        """Every file's name without its ending, sorted."""
        return sorted(self._files)

    def items(self) -> list[tuple[str, Path]]:
        """(name, file), sorted by name."""
        return sorted(self._files.items())

    def find(self, name: str) -> Path | None:
        """The listed file that a name means, or None."""
        for table in (self._files, self._paths):
            found = resolve(name, table)
            if found is not None:
                return table[found]
        aliases = self._aliases()
        alias = resolve(name, aliases)
        return None if alias is None else aliases[alias]

    def nearest(self, name: str) -> str | None:
        """The name that looks most like this one, or None."""
        return nearest(name, [*self._files, *self._aliases()])

    def _aliases(self) -> dict[str, Path]:
        """Alias -> file; headers are read once for each content of a file."""
        found: dict[str, list[Path]] = {}
        for path in self._files.values():
            alias = self._alias(path)
            if alias:
                found.setdefault(alias, []).append(path)
        return {alias: paths[0] for alias, paths in found.items() if len(paths) == 1}

    def _alias(self, path: Path) -> str | None:
        made = self._known[str(path)]
        if made not in self._alias_of:
            alias = None
            if path.suffix.lower() == ".safetensors":
                try:
                    alias = read_header(path).metadata.get("ss_output_name")
                except (InputError, OSError):
                    alias = None  # a damaged file has no alias; using it by name says what is wrong
            self._alias_of[made] = alias
        return self._alias_of[made]
