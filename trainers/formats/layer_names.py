"""Every layer of a family that a file may name, norm and time layers included, and the keys of every naming.

`trainers.formats.sites` lists the layers a trainer of ours puts an adapter on. Files made elsewhere also name others
(LyCORIS "full" and "norm" touch all of them). Here a key of any naming is taken apart and led to its layer.
"""

from __future__ import annotations

from functools import cache

from trainers.formats.adapter_keys import KINDS, KOHYA, PEFT, ParsedKey, parse_key
from trainers.formats.families import FAMILIES, Family, TextEncoderSpec
from trainers.formats.ldm_keys import open_clip_key_map, unet_key_map
from trainers.formats.sites import Site, all_sites

OTHER = "other"
"""`Site.kind` of a layer that is no site of ours: its module says what it is."""

_ROOTS = (
    "base_model.model.",
    "model.diffusion_model.",
    "diffusion_model.",
    "unet.",
    "text_encoder_2.",
    "text_encoder.",
)
_ROOT_COMPONENTS = {
    "model.diffusion_model.": "unet",
    "diffusion_model.": "unet",
    "unet.": "unet",
    "text_encoder.": "text_encoder",
    "text_encoder_2.": "text_encoder_2",
}
# `bm` is the Tucker core of a GLoRA; LyCORIS reads it, the table of kinds has no writer for it.
_PARTS = sorted({part for kind in KINDS for part in kind.parts} | {"bm"}, key=len, reverse=True)


def _module_pairs(pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Names of modules, in order, from the names of their tensors."""
    found = {}
    for one, other in pairs:
        if one.endswith((".weight", ".bias")) and other.endswith((".weight", ".bias")):
            found[one.rpartition(".")[0]] = other.rpartition(".")[0]
    return list(found.items())


def _text_others(encoder: TextEncoderSpec) -> list[Site]:
    sites = []
    for ldm, path in _module_pairs(open_clip_key_map(encoder.layers)):
        if "embedding" not in path:
            ldm_path = path if encoder.ldm_layout == "hf" else ldm
            name = f"{encoder.kohya_prefix}_{path.replace('.', '_')}"
            sites.append(Site(name, encoder.component, path, ldm_path, OTHER))
    return sites


@cache
def _layers(family_name: str) -> tuple[Site, ...]:
    family = FAMILIES[family_name]
    layers = {site.name: site for site in all_sites(family)}
    for ldm, path in _module_pairs(unet_key_map(family)):
        flat = (ldm if family.unet.sgm_names else path).replace(".", "_")
        name = f"lora_unet_{flat}"
        layers.setdefault(name, Site(name, "unet", path, ldm, OTHER))
    for encoder in family.text_encoders:
        for site in _text_others(encoder):
            layers.setdefault(site.name, site)
    return tuple(layers.values())


def layers(family: Family) -> tuple[Site, ...]:
    """Every layer with a weight: the sites of `sites.all_sites` first, then norms, time embedding and the ends."""
    return _layers(family.name)


@cache
def _lookup(family_name: str) -> dict[tuple[str, str], Site]:
    table: dict[tuple[str, str], Site] = {}
    for site in _layers(family_name):
        flat = site.path.replace(".", "_")
        spellings = {flat, flat.removeprefix("text_model_")}
        if site.ldm_part is None:
            spellings.add(site.ldm_path.replace(".", "_"))
        for spelling in spellings:
            table.setdefault((site.component, spelling), site)
            table.setdefault(("", spelling), site)
    return table


def layer_of(family: Family, component: str, flat: str) -> Site | None:
    """The layer that a key names: its component ("" where the naming does not say) and path with `_` for `.`."""
    return _lookup(family.name).get((component, flat))


def _split_dotted(key: str) -> ParsedKey | None:
    """Dotted names whose ending is one of the other kinds: PEFT's LoHa, ComfyUI's `diffusion_model.….diff`."""
    component, path, peft = "", key, False
    for root in _ROOTS:
        if path.startswith(root):
            path = path[len(root) :]
            component = _ROOT_COMPONENTS.get(root, component)
            peft = peft or root == "base_model.model."
    if path != key:
        inner = parse_key(path)
        if inner is not None and not inner.component:
            return ParsedKey(component, inner.flat, inner.part, PEFT if peft else inner.naming)
    elif "." not in path:
        return None
    for part in _PARTS:
        for ending in (f".{part}.weight", f".{part}.default", f".{part}"):
            if path.endswith(ending):
                return ParsedKey(component, path[: -len(ending)].replace(".", "_"), part, PEFT if peft else KOHYA)
    return None


def split_key(key: str) -> ParsedKey | None:
    """A key of any naming and kind taken apart, or None where it is no adapter's."""
    parsed = parse_key(key)
    if parsed is not None:
        return parsed
    prefix, dot, suffix = key.partition(".")
    if dot and suffix == "bm.weight":
        same = parse_key(f"{prefix}.b1.weight")
        return None if same is None else ParsedKey(same.component, same.flat, "bm", same.naming)
    return _split_dotted(key)
