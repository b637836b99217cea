"""Every kind of adapter: one file of mathematics each, one line of registration here."""

from __future__ import annotations

from extension.injection.kinds import dora, full, glora, ia3, loha, lokr, lora, oft
from extension.injection.kinds.base import Dense, Kind, LowRank, Mismatch, Params, Term
from extension.injection.layer import Layer

KINDS: tuple[Kind, ...] = (lora.KIND, loha.KIND, lokr.KIND, oft.KIND, glora.KIND, ia3.KIND, full.FULL, full.NORM)

__all__ = ["KINDS", "Dense", "Kind", "LowRank", "Mismatch", "Params", "Term", "build_terms", "kinds_at"]


def kinds_at(names: frozenset[str]) -> list[Kind]:
    """The kinds whose parameters are among `names`; more than one where a file adds, say, `diff_b` to a LoRA."""
    return [kind for kind in KINDS if kind.marks & names]


def build_terms(params: Params, layer: Layer) -> list[Term]:
    """Everything an adapter does at one layer.

    Args:
        params: tensors by canonical name: `lora_down`, `lora_up`, `lora_mid`, `alpha`, `dora_scale`, `hada_w1_a`, ...

    Raises:
        Mismatch: no known kind, or tensors that do not fit the layer.
    """
    found = kinds_at(frozenset(params))
    if not found:
        raise Mismatch(f"the kind of {', '.join(sorted(params))} is not known")
    terms = [term for kind in found if kind is not full.FULL for term in kind.build(params, layer)]
    if "dora_scale" in params and terms:
        terms = dora.wrap(terms, params["dora_scale"], layer)
    if full.FULL in found:
        terms.extend(full.FULL.build(params, layer))
    return terms
