"""The key names of every kind of adapter in every naming, and which layer a key belongs to.

A kind is recognised by a table look-up: its `marks` are the parts of which one must be there, its `parts` everything
it may have. Part names here are canonical: kohya's, without a trailing `.weight`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache

from trainers.formats.families import FAMILIES, Family
from trainers.formats.sites import Site, all_sites


@dataclass(frozen=True)
class Kind:
    """One kind of adapter: `marks` identify it, `parts` are all key names a site of it may have."""

    name: str
    title: str
    marks: tuple[str, ...]
    parts: tuple[str, ...]


_LORA_PARTS = ("lora_down", "lora_up", "lora_mid", "alpha", "dora_scale")
# Looked through in this order: the first kind one of whose marks a site has.
KINDS: tuple[Kind, ...] = (
    Kind("lora", "LoRA", ("lora_down", "lora_up"), _LORA_PARTS),
    Kind(
        "loha",
        "LoHa",
        ("hada_w1_a", "hada_w2_a"),
        ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2", "alpha", "dora_scale"),
    ),
    Kind(
        "lokr",
        "LoKr",
        ("lokr_w1", "lokr_w1_a", "lokr_w2", "lokr_w2_a"),
        ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2", "alpha", "dora_scale"),
    ),
    Kind("oft", "Diag-OFT or BOFT", ("oft_blocks", "oft_diag"), ("oft_blocks", "oft_diag", "rescale", "alpha")),
    Kind("glora", "GLoRA", ("a1", "b1"), ("a1", "a2", "b1", "b2", "alpha")),
    Kind("full", "full difference", ("diff",), ("diff", "diff_b")),
    Kind("norm", "norm layers", ("w_norm", "b_norm"), ("w_norm", "b_norm")),
    Kind("ia3", "(IA)3", ("on_input",), ("weight", "on_input")),
)
KIND_BY_NAME = {kind.name: kind for kind in KINDS}
_ALL_PARTS = frozenset(part for kind in KINDS for part in kind.parts)

KOHYA, DIFFUSERS, DIFFUSERS_OLD, PEFT = "kohya", "diffusers", "diffusers (old)", "peft"


@dataclass(frozen=True)
class ParsedKey:
    """A key taken apart: which component, which layer (path with `_`), which part, in which naming.

    `component` is "" where the naming does not say (PEFT).
    """

    component: str
    flat: str
    part: str
    naming: str


_KOHYA_PREFIXES = (
    ("lora_unet_", "unet"),
    ("lora_te1_", "text_encoder"),
    ("lora_te2_", "text_encoder_2"),
    ("lora_te_", "text_encoder"),
    ("lycoris_", ""),
)
_COMPONENT_PREFIXES = (("unet.", "unet"), ("text_encoder_2.", "text_encoder_2"), ("text_encoder.", "text_encoder"))

# (ending of a dotted key, canonical part, naming); longest endings first.
_DOTTED_ENDINGS = (
    (".lora_linear_layer.down.weight", "lora_down", DIFFUSERS_OLD),
    (".lora_linear_layer.up.weight", "lora_up", DIFFUSERS_OLD),
    ("_lora.down.weight", "lora_down", DIFFUSERS_OLD),
    ("_lora.up.weight", "lora_up", DIFFUSERS_OLD),
    (".lora.down.weight", "lora_down", DIFFUSERS_OLD),
    (".lora.up.weight", "lora_up", DIFFUSERS_OLD),
    (".lora_A.default.weight", "lora_down", DIFFUSERS),
    (".lora_B.default.weight", "lora_up", DIFFUSERS),
    (".lora_A.weight", "lora_down", DIFFUSERS),
    (".lora_B.weight", "lora_up", DIFFUSERS),
    (".lora_magnitude_vector.default.weight", "dora_scale", DIFFUSERS),
    (".lora_magnitude_vector.weight", "dora_scale", DIFFUSERS),
    (".lora_magnitude_vector", "dora_scale", DIFFUSERS),
    (".alpha", "alpha", DIFFUSERS),
)
# Old diffusers named the text encoder's layers after the UNet's attention, and the UNet's after its processors.
_OLD_TEXT_NAMES = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}


def _canonical_part(suffix: str) -> str | None:
    part = suffix[: -len(".weight")] if suffix.endswith(".weight") else suffix
    return part if part in _ALL_PARTS else None


def _parse_kohya(key: str) -> ParsedKey | None:
    name, dot, suffix = key.partition(".")
    part = _canonical_part(suffix) if dot else None
    for prefix, component in _KOHYA_PREFIXES:
        if name.startswith(prefix):
            return ParsedKey(component, name[len(prefix) :], part, KOHYA) if part else None
    return None


def _old_path(component: str, path: str) -> str:
    path = path.replace(".processor.", ".")
    last = path.rpartition(".")[2]
    if component.startswith("text_encoder") and last in _OLD_TEXT_NAMES:
        return path[: -len(last)] + _OLD_TEXT_NAMES[last]
    return f"{path}.0" if last == "to_out" else path


def _parse_dotted(key: str) -> ParsedKey | None:
    component, path, is_peft = "", key, False
    for prefix, name in _COMPONENT_PREFIXES:
        if key.startswith(prefix):
            component, path = name, key[len(prefix) :]
    if path.startswith("base_model.model."):
        path, is_peft = path[len("base_model.model.") :], True
    for ending, part, naming in _DOTTED_ENDINGS:
        if path.endswith(ending):
            path = _old_path(component, path[: -len(ending)])
            return ParsedKey(component, path.replace(".", "_"), part, PEFT if is_peft else naming)
    return None


def parse_key(key: str) -> ParsedKey | None:
    """A key in any naming taken apart, or None where it is no adapter's."""
    return _parse_kohya(key) or _parse_dotted(key)


def _flat_names(family: Family, site: Site) -> set[str]:
    """Every spelling of a site's path that files use, with `_` for `.`."""
    names = {site.path.replace(".", "_"), site.name.partition(f"{_prefix(family, site)}_")[2]}
    if site.component == "unet":
        names.add(site.ldm_path.replace(".", "_"))
    else:
        names.add(site.path.replace(".", "_").removeprefix("text_model_"))  # written with transformers 5
    return names


def _prefix(family: Family, site: Site) -> str:
    return "lora_unet" if site.component == "unet" else family.text_encoder(site.component).kohya_prefix


@cache
def _lookup(family_name: str) -> dict[tuple[str, str], Site]:
    family = FAMILIES[family_name]
    table: dict[tuple[str, str], Site] = {}
    for site in all_sites(family):
        for flat in _flat_names(family, site):
            table[site.component, flat] = site
            table.setdefault(("", flat), site)
    return table


def resolve(family: Family, parsed: ParsedKey) -> Site | None:
    """The site a key belongs to in this family."""
    return _lookup(family.name).get((parsed.component, parsed.flat))


@dataclass
class Recognised:
    """What a set of keys is.

    Attributes:
        kinds: number of sites of each kind.
        naming: "kohya", "diffusers", "diffusers (old)", "peft", or "mixed".
        family: "sd1", "sd2", "sdxl", or None where nothing fits.
        sites: canonical site name -> {part: key}.
        components: number of sites in each component.
        unknown: keys that belong to no known layer or part.
    """

    kinds: dict[str, int] = field(default_factory=dict)
    naming: str = ""
    family: str | None = None
    sites: dict[str, dict[str, str]] = field(default_factory=dict)
    components: dict[str, int] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)


def kind_of(parts: Iterable[str]) -> str | None:
    """The kind that a site with these parts is of."""
    parts = set(parts)
    for kind in KINDS:
        if parts & set(kind.marks):
            return kind.name
    return None


def _context_family(parsed: Mapping[str, ParsedKey], shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """The family by the width of the text that the cross attentions read."""
    for key, one in parsed.items():
        if one.part == "lora_down" and one.flat.endswith(("attn2_to_k", "attn2_to_v")) and key in shapes:
            return {768: "sd1", 1024: "sd2", 2048: "sdxl"}.get(shapes[key][1])
    return None


def _text_layers(parsed: Iterable[ParsedKey]) -> int:
    layers = [re.search(r"encoder_layers_(\d+)_", one.flat) for one in parsed if one.component == "text_encoder"]
    return max((int(layer[1]) + 1 for layer in layers if layer), default=0)


def guess_family(
    parsed: Mapping[str, ParsedKey], shapes: Mapping[str, tuple[int, ...]], version: str = ""
) -> str | None:
    """The family whose layers the keys name; SD1 and SD2 share names, so widths and the stated version decide."""
    counts = {
        name: sum(resolve(family, one) is not None for one in parsed.values()) for name, family in FAMILIES.items()
    }
    best = max(counts.values(), default=0)
    if not best:
        return None
    candidates = [name for name, count in counts.items() if count == best]
    stated = next(
        (name for part, name in (("sdxl", "sdxl"), ("sd_v2", "sd2"), ("sd_v1", "sd1")) if part in version), ""
    )
    for choice in (stated, _context_family(parsed, shapes), "sd2" if _text_layers(parsed.values()) > 12 else None):
        if choice in candidates:
            return choice
    return candidates[0]


def recognise(
    keys: Iterable[str] | Mapping[str, tuple[int, ...]], version: str = "", family: str | None = None
) -> Recognised:
    """What kind of adapter, for which family, in which naming.

    Args:
        keys: the file's key names; as a mapping to shapes, widths help to tell SD1 from SD2.
        version: `ss_base_model_version` of the file, or "".
        family: says which family it is, instead of guessing.
    """
    shapes = keys if isinstance(keys, Mapping) else {}
    parsed = {key: one for key in keys if (one := parse_key(key)) is not None}
    found = Recognised(unknown=[key for key in keys if key not in parsed])
    found.family = family or guess_family(parsed, shapes, version)
    namings = sorted({one.naming for one in parsed.values() if one.part != "alpha"})
    found.naming = namings[0] if len(namings) == 1 else "mixed" if namings else ""
    for key, one in parsed.items():
        site = resolve(FAMILIES[found.family], one) if found.family else None
        if site is None:
            found.unknown.append(key)
        else:
            found.sites.setdefault(site.name, {})[one.part] = key
    _count(found)
    return found


def _count(found: Recognised) -> None:
    if not found.family:
        return
    components = {site.name: site.component for site in all_sites(FAMILIES[found.family])}
    for name, parts in found.sites.items():
        kind = kind_of(parts)
        if kind:
            found.kinds[kind] = found.kinds.get(kind, 0) + 1
            component = components[name]
            found.components[component] = found.components.get(component, 0) + 1
    order = FAMILIES[found.family].components
    found.components = {name: found.components[name] for name in order if name in found.components}
