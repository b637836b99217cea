"""From the canonical layer names to the modules of a live model, whichever naming the host's classes follow."""

from __future__ import annotations

from torch import nn

from extension.injection.layer import Layer, kind_of
from trainers.formats.sites import Site

# What hosts wrap around a text model: A1111's hijack, LDM's and Forge's embedders.
_WRAPPERS = ("wrapped", "transformer", "model")


def text_model_root(module: nn.Module) -> nn.Module:
    """The innermost text model: the one that holds `text_model`, `encoder` or open_clip's `transformer.resblocks`."""
    for _ in range(4):
        if _has(module, "text_model.encoder") or _has(module, "encoder.layers"):
            return module
        if _has(module, "transformer.resblocks"):
            return module
        inner = next((getattr(module, name) for name in _WRAPPERS if isinstance(_get(module, name), nn.Module)), None)
        if inner is None:
            return module
        module = inner
    return module


def _get(module: nn.Module, path: str) -> object | None:
    for name in path.split("."):
        module = getattr(module, name, None)
        if module is None:
            return None
    return module


def _has(module: nn.Module, path: str) -> bool:
    return _get(module, path) is not None


def _paths(root: nn.Module, site: Site) -> tuple[str, ...]:
    """Where the site may be in this model, nearest guess first."""
    if site.component == "unet":
        return (site.ldm_path,) if _has(root, "input_blocks") else (site.path,)
    if _has(root, "transformer.resblocks"):
        return (_open_clip_path(site),)
    return (site.path, site.path.removeprefix("text_model."))


_OPEN_CLIP_NAMES = (
    ("text_model.encoder.layers.", "transformer.resblocks."),
    ("text_model.final_layer_norm", "ln_final"),
    (".self_attn.out_proj", ".attn.out_proj"),
    (".layer_norm1", ".ln_1"),
    (".layer_norm2", ".ln_2"),
    (".mlp.fc1", ".mlp.c_fc"),
    (".mlp.fc2", ".mlp.c_proj"),
)
_FUSED = {".self_attn.q_proj": 0, ".self_attn.k_proj": 1, ".self_attn.v_proj": 2}


def _open_clip_path(site: Site) -> str:
    """An open_clip model may also carry a family's "hf" encoder, so the path is made from the transformers name."""
    path = site.path
    for ending in _FUSED:
        path = path.replace(ending, ".attn.in_proj")
    for name, other in _OPEN_CLIP_NAMES:
        path = path.replace(name, other)
    return path


def _fused_layer(root: nn.Module, site: Site, path: str) -> Layer | None:
    """A projection inside torch's MultiheadAttention: a third of `in_proj`, or `out_proj`, which is never called."""
    parent = _get(root, path.rpartition(".")[0])
    if not isinstance(parent, nn.MultiheadAttention) or parent.in_proj_weight is None:
        return None
    third = next((part for ending, part in _FUSED.items() if site.path.endswith(ending)), None)
    return Layer(parent, "out" if third is None else third, row_axis=0 if parent.batch_first else 1)


def _row_axis(root: nn.Module) -> int:
    first = _get(root, "transformer.resblocks")
    attention = getattr(first[0], "attn", None) if first is not None and len(first) else None
    return 1 if isinstance(attention, nn.MultiheadAttention) and not attention.batch_first else 0


def find_layer(root: nn.Module, site: Site) -> Layer | None:
    """The live layer of a site, or None where this model has none (or one that no adapter can sit on).

    Args:
        root: the component: a UNet, or a text model as `text_model_root` gives it.
    """
    for path in _paths(root, site):
        if site.component != "unet" and ".attn." in path:
            return _fused_layer(root, site, path) or _plain(root, path, _row_axis(root))
        layer = _plain(root, path, 0 if site.component == "unet" else _row_axis(root))
        if layer is not None:
            return layer
    return None


def _plain(root: nn.Module, path: str, row_axis: int) -> Layer | None:
    module = _get(root, path)
    if not isinstance(module, nn.Module) or kind_of(module) is None:
        return None
    return Layer(module, row_axis=row_axis)
