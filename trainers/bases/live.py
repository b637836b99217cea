"""A base model whose tensors lie in another process: the model that a WebUI has loaded.

The names and shapes of the base's file are known from its header; here the same components are led to the host's
tensors instead. Whatever naming the host uses, the tables that read files understand it; fused projections of
open_clip and convolutions that are matrices elsewhere become views. What does not fit the file is refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from trainers.bases.canonical import Component, text_component, unet_component, vae_component
from trainers.bases.detect import BaseInfo
from trainers.bases.source import Source
from trainers.errors import InputError
from trainers.formats.families import FAMILIES, Family
from trainers.formats.live_tensors import VERSION, Mapped, cards_problem
from trainers.formats.safetensors_io import TensorInfo

_FILE_NAMES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64"}


class CannotAttach(Exception):
    """The host's model cannot be trained on as it lies; the sentence says why."""


@dataclass(frozen=True)
class LiveBase:
    """The host's tensors, as components of a base.

    Attributes:
        info: the base as its file describes it, with the host's tensors in the file's place.
        vae_file: the separate autoencoder that the host uses, "" for the model's own.
        nbytes: size of the tensors.
        tensors: their number.
        kind: "cpu" or "cuda".
    """

    info: BaseInfo
    vae_file: str
    nbytes: int
    tensors: int
    kind: str
    mapped: Mapped

    def has_vae_for(self, wanted: str | None) -> bool:
        """Whether the host's autoencoder is the one that a job asks for (None: the model's own)."""
        if "vae" not in self.mapped.description["components"]:
            return False
        return not self.vae_file if not wanted else bool(self.vae_file) and _same_file(self.vae_file, wanted)

    def component_dtype(self, name: str) -> torch.dtype:
        """The number format that most of a component has."""
        found = self.info.components[name].stored_dtype
        return getattr(torch, next(one for one, other in _FILE_NAMES.items() if other == found))


def _same_file(one: str, other: str) -> bool:
    try:
        return Path(one).samefile(other)
    except OSError:
        return False


def _source(mapped: Mapped, component: str, shapes: Mapping[str, list[Any]]) -> Source:
    infos = {}
    for name, (_, dtype, shape, *_rest) in shapes.items():
        if dtype not in _FILE_NAMES:
            raise CannotAttach(f"the WebUI keeps {name} in the number format {dtype}")
        infos[name] = TensorInfo(_FILE_NAMES[dtype], tuple(shape))

    def load(wanted: Callable[[str], bool]) -> dict[str, torch.Tensor]:
        return mapped.tensors(component, [name for name in infos if wanted(name)])

    return Source(infos, load)


def _component(name: str, source: Source, family: Family, ldm: bool) -> Component:
    if name == "unet":
        return unet_component(source, family, ldm=ldm)
    return vae_component(source) if name == "vae" else text_component(source, family.text_encoder(name))


def _check_same(name: str, live: Component, file: Component) -> None:
    """The host's component has exactly the tensors that the file has."""
    missing = [key for key in file.shapes if live.shapes.get(key) != file.shapes[key]]
    if missing:
        raise CannotAttach(f"the {name} that the WebUI has loaded is built differently from the file's ({missing[0]})")


def read_description(path: Path) -> dict[str, Any]:
    """What a host wrote about its tensors.

    Raises:
        CannotAttach: it cannot be read, another version of torch wrote CUDA handles, or the card is not to be seen.
    """
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
        version, storages = description["version"], description["storages"]
    except (OSError, ValueError, KeyError, TypeError):
        raise CannotAttach("what the WebUI wrote about its model cannot be read") from None
    if version != VERSION:
        raise CannotAttach("the WebUI runs another version of Athanor")
    problem = cards_problem(description) if storages else ""
    if problem:
        raise CannotAttach(problem)
    return description


def live_base(description: Mapping[str, Any], info: BaseInfo) -> LiveBase:
    """The components of `info` over a host's tensors; nothing is mapped yet.

    Raises:
        CannotAttach: the host's model is not the file's, or cannot be mapped; one clause.
    """
    family = FAMILIES[info.family]
    mapped = Mapped(description)
    components = dict(info.components)
    count = 0
    for name, given in description["components"].items():
        source = _source(mapped, name, given["tensors"])
        try:
            component = _component(name, source, family, given["naming"] == "ldm")
        except (InputError, StopIteration, KeyError, IndexError) as error:
            raise CannotAttach(f"the WebUI's {name} cannot be understood ({error})") from None
        if name != "vae" or not description.get("vae_file"):
            _check_same(name, component, info.components[name])
        components[name] = component
        count += len(component.pieces)
    for name in family.components:
        if name not in description["components"]:
            raise CannotAttach(f"the WebUI does not give its {name}")
    kinds = {each["kind"] for each in description["storages"]}
    nbytes = sum(components[name].stored_bytes for name in description["components"])
    kind = "cuda" if "cuda" in kinds else "cpu"
    return LiveBase(replace(info, components=components), description.get("vae_file", ""), nbytes, count, kind, mapped)
