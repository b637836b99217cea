"""Where the embedded host keeps files, and which base models it can load."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from extension.hosts.base import Folders
from extension.hosts.embedded.infotext import to_png
from extension.injection.adapter_file import Stamp, stamp
from extension.injection.embeddings import EmbeddingStore
from extension.listing import MASK_ENDINGS, Listing
from extension.wanted import Library
from trainers.errors import InputError
from trainers.formats.aesthetic import ENDINGS as AESTHETIC_ENDINGS
from trainers.formats.safetensors_io import read_header

ROOT = Path(__file__).resolve().parents[3]
EMBEDDED_BASE = ROOT / "assets" / "base" / "athanor-base.safetensors"
_MODEL_ENDINGS = (".safetensors", ".ckpt")
_ADAPTER_MODULES = ("networks.", "lycoris.")


def _is_trained_adapter(path: Path) -> bool:
    """Whether a run's output is an adapter; embeddings and whole models lie in runs as well."""
    if path.suffix.lower() != ".safetensors":
        return False
    try:
        return read_header(path).metadata.get("ss_network_module", "").startswith(_ADAPTER_MODULES)
    except (InputError, OSError):
        return False  # a run may be writing it just now


def _is_result(path: Path, runs: list[Path]) -> bool:
    """Whether a file is not in a run, or is one of its results: a run keeps other files of its own (`prior.pt`)."""
    own = next((run for run in runs if run in path.parents), None)
    return own is None or (path.parent == own and path.suffix.lower() == ".safetensors")


class RunListing(Listing):
    """Adapters in the folders of the host, and the results of runs: files directly inside `runs/<id>/`."""

    def __init__(self, folders: list[Path], runs: list[Path]) -> None:
        super().__init__(folders)
        self._fixed = list(self.folders)
        self._runs = runs

    def rescan(self) -> bool:
        found = [run for runs in self._runs if runs.is_dir() for run in sorted(runs.iterdir()) if run.is_dir()]
        shown = [run for run in found if any(map(_is_trained_adapter, run.iterdir()))]
        self.folders = [*self._fixed, *shown]
        changed = super().rescan()
        # What a run needs to go on lies deeper in its folder and is nobody's LoRA.
        self._files = {name: path for name, path in self._files.items() if _is_result(path, shown)}
        self._paths = {name: path for name, path in self._paths.items() if _is_result(path, shown)}
        return changed


@dataclass(frozen=True)
class Places:
    """The data folder.

    Attributes:
        data: `models/Stable-diffusion`, `models/Lora`, `models/hypernetworks`,
            `models/aesthetic_embeddings`, `embeddings`, `masks`, `outputs` and the
            settings lie in it.
    """

    data: Path

    @property
    def models(self) -> Path:
        return self.data / "models" / "Stable-diffusion"

    @property
    def adapters(self) -> Path:
        return self.data / "models" / "Lora"

    @property
    def embeddings(self) -> Path:
        return self.data / "embeddings"

    @property
    def hypernetworks(self) -> Path:
        return self.data / "models" / "hypernetworks"

    @property
    def aesthetics(self) -> Path:
        return self.data / "models" / "aesthetic_embeddings"

    @property
    def masks(self) -> Path:
        return self.data / "masks"

    @property
    def outputs(self) -> Path:
        return self.data / "outputs"

    @property
    def runs(self) -> list[Path]:
        """Folders with runs: this data folder's, and the one that `python -m trainers` writes to by default."""
        return list(dict.fromkeys([self.data / "runs", ROOT / "runs"]))

    def make(self) -> None:
        """Makes the folders.

        Raises InputError where that cannot be done.
        """
        for folder in (
            self.models,
            self.adapters,
            self.hypernetworks,
            self.aesthetics,
            self.embeddings,
            self.masks,
            self.outputs,
        ):
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise InputError(f"{folder} cannot be made ({error.strerror}); name another with --data-dir.") from None

    def folders(self) -> Folders:
        """As the rest of the extension asks for them."""
        return Folders(
            [self.adapters, *self.runs], [self.embeddings], [self.masks], self.data, [self.hypernetworks],
            [self.aesthetics],
        )  # fmt: skip

    def library(self) -> Library:
        """Where names in prompts lead, not yet scanned."""
        return Library(
            adapters=RunListing([self.adapters], self.runs),
            embeddings=EmbeddingStore([self.embeddings]),
            masks=Listing([self.masks], MASK_ENDINGS),
            hypernetworks=Listing([self.hypernetworks], (".pt",)),
            aesthetics=Listing([self.aesthetics], AESTHETIC_ENDINGS),
        )

    def bases(self, chosen: Path) -> list[Path]:
        """The base models that can be loaded: the one that was started with, the embedded one, those in the folder."""
        found = [chosen, EMBEDDED_BASE]
        for folder, _, names in os.walk(self.models, followlinks=True):
            found += [Path(folder) / name for name in sorted(names) if name.lower().endswith(_MODEL_ENDINGS)]
            found += [Path(folder)] if (Path(folder) / "model_index.json").is_file() else []
        return [path for path in dict.fromkeys(found) if path.exists()]

    def save(self, picture: Image.Image, infotext: str, kind: str, seed: int) -> Path:
        """Writes a picture into today's folder under the next free number."""
        folder = self.outputs / kind / time.strftime("%Y-%m-%d")
        folder.mkdir(parents=True, exist_ok=True)
        content = to_png(picture, infotext)
        for number in _free_numbers(folder):
            path = folder / f"{number:05}-{seed}.png"
            try:
                with open(path, "xb") as file:
                    file.write(content)
                return path
            except FileExistsError:
                continue  # another program drew at the same time
        raise AssertionError("numbers do not end")


def _free_numbers(folder: Path) -> Iterator[int]:
    taken = [int(match.group(1)) for name in os.listdir(folder) if (match := re.match(r"(\d{5,9})-", name))]
    number = max(taken, default=-1) + 1
    while True:
        yield number
        number += 1


class Settings:
    """Options that a person or a client set, kept in `settings.json`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._values: dict[str, object] = {}
        self._read: Stamp | None = None
        self._refresh()

    def _refresh(self) -> None:
        try:
            made = stamp(self.path)
            if made != self._read:
                values = json.loads(self.path.read_text(encoding="utf-8"))
                self._values, self._read = values if isinstance(values, dict) else {}, made
        except FileNotFoundError:
            self._values = {}
        except (OSError, ValueError) as error:
            raise InputError(f"{self.path} cannot be read ({error}); mend or delete it.") from None

    def get(self, key: str, default: object = None) -> object:
        """The value that was set, or `default`."""
        return self._values.get(key, default)

    def all(self) -> dict[str, object]:
        return dict(self._values)

    def set(self, values: dict[str, object]) -> None:
        """Changes some and writes all."""
        self._values.update(values)
        temporary = self.path.with_suffix(".new")
        temporary.write_text(json.dumps(self._values, indent=1, sort_keys=True), encoding="utf-8")
        os.replace(temporary, self.path)
