"""Which adapters sit where on a model: banks for every layer they name, and a report of what did not fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from extension.injection.adapter_file import Adapter, site_parameters
from extension.injection.bank import SiteBank
from extension.injection.kinds import Mismatch, Term, build_terms
from extension.injection.layer import Layer
from extension.injection.sites import find_layer
from trainers.formats.families import FAMILIES
from trainers.formats.sites import Site


@dataclass
class Fit:
    """How one adapter fits a model.

    Attributes:
        name: the file's name without its ending.
        sites: layers the file names (of this family or not); `matched`: layers it acts on.
        unknown: keys of layers this family does not have.
        absent: layers this model does not have (a component that is not loaded, another class of layer).
        misfits: `{layer: why}`.
        family: what the file's names say it is for.
    """

    name: str
    sites: int = 0
    matched: int = 0
    unknown: tuple[str, ...] = ()
    absent: list[str] = field(default_factory=list)
    misfits: dict[str, str] = field(default_factory=dict)
    family: str | None = None

    @property
    def complete(self) -> bool:
        return self.matched > 0 and not (self.unknown or self.absent or self.misfits)

    def sentences(self, model_family: str) -> list[str]:
        """What a person should know; empty where everything fitted."""
        if self.complete:
            return []
        if self.sites == 0:
            return [f"{self.name} holds no adapter of a known kind: it does nothing."]
        if self.matched == 0 and self.family not in (None, model_family):
            made, loaded = FAMILIES[self.family].title, FAMILIES[model_family].title
            return [f"{self.name} is made for {made} and the loaded model is {loaded}: it does nothing."]
        parts = [f"{self.matched} of {self.sites} sites"]
        if self.unknown:
            parts.append(f"{len(self.unknown)} unknown keys such as {self.unknown[0]}")
        if self.absent:
            parts.append(f"{len(self.absent)} layers this model lacks such as {self.absent[0]}")
        if self.misfits:
            layer, why = next(iter(self.misfits.items()))
            parts.append(f"{len(self.misfits)} layers of another shape such as {layer} ({why})")
        return [f"{self.name}: {'; '.join(parts)}."]


@dataclass
class Plan:
    """Banks by layer name for a fixed list of adapters."""

    adapters: tuple[Adapter, ...]
    banks: dict[str, SiteBank]
    fits: list[Fit]

    def nbytes(self) -> int:
        """Bytes the adapters take now, on all devices."""
        return sum(bank.nbytes() for bank in self.banks.values())


Terms = dict[str, tuple[Site, Layer, list[tuple[int, Term]]]]


def _one_adapter(index: int, adapter: Adapter, family: str, roots: Mapping[str, nn.Module], terms: Terms) -> Fit:
    match = adapter.match(family)
    fit = Fit(adapter.name, sites=len(adapter.groups), unknown=match.unknown, family=adapter.family)
    tensors = adapter.tensors()
    mine: Terms = {}
    for site, parts in match.sites.items():
        root = roots.get(site.component)
        known = terms.get(site.name)
        layer = known[1] if known else (find_layer(root, site) if root is not None else None)
        if layer is None:
            fit.absent.append(site.name)
            continue
        try:
            built = build_terms(site_parameters(adapter, site, parts, tensors), layer)
        except Mismatch as problem:
            fit.misfits[site.name] = str(problem)
            continue
        mine[site.name] = (site, layer, [(index, term) for term in built])
    foreign = adapter.family not in (None, family)
    if foreign and (fit.misfits or 2 * len(mine) < fit.sites):
        return fit  # the layers that both families have do not make it one of ours
    fit.matched = len(mine)
    for name, (site, layer, built) in mine.items():
        terms.setdefault(name, (site, layer, []))[2].extend(built)
    return fit


def make_plan(family: str, roots: Mapping[str, nn.Module], adapters: Sequence[Adapter]) -> Plan:
    """Reads the adapters and lays out their banks.

    Args:
        family: "sd1", "sd2" or "sdxl".
        roots: the live components by name, text models as `sites.text_model_root` gives them.

    Raises:
        InputError: a file is gone or damaged.
    """
    terms: Terms = {}
    fits = [_one_adapter(index, adapter, family, roots, terms) for index, adapter in enumerate(adapters)]
    banks = {name: SiteBank(site, layer, built) for name, (site, layer, built) in terms.items()}
    return Plan(tuple(adapters), banks, fits)
