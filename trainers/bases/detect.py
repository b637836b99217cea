"""What a base model file or folder is: family, prediction, sizes; found from headers, without loading weights."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from trainers.bases import build, prediction, refusals
from trainers.bases.canonical import Component, text_component, unet_component, vae_component
from trainers.bases.source import Source, open_component, open_file, read_json
from trainers.errors import InputError
from trainers.formats.families import FAMILIES, Family


@dataclass
class BaseInfo:
    """What is known of a base model before it is loaded.

    Attributes:
        layout: "ldm" (one file) or "diffusers" (a folder).
        family: "sd1", "sd2" or "sdxl".
        prediction: "epsilon" or "v".
        prediction_source: where that is known from: "metadata", "key", "side file", "scheduler", "name", "default",
            "option" or "measured" (see `trainers.bases.prediction`).
        zero_terminal_snr: the model says that its last step is pure noise.
        channels: UNet channels of each level.
        context_width: width of the text the UNet attends to.
        parameters: number of values of each component ("unet", "text_encoder", "text_encoder_2", "vae").
        stored_bytes: bytes of each component in the file.
        stored_dtypes: number format of each component in the file (safetensors' names).
        metadata: the file's own metadata.
        heads: attention heads a diffusers folder's configuration states, by component.
    """

    path: Path
    layout: str
    family: str
    prediction: str
    prediction_source: str
    zero_terminal_snr: bool
    channels: tuple[int, ...]
    context_width: int
    parameters: dict[str, int]
    stored_bytes: dict[str, int]
    stored_dtypes: dict[str, str]
    metadata: dict[str, str] = field(default_factory=dict, repr=False)
    heads: dict[str, object] = field(default_factory=dict)
    components: dict[str, Component] = field(default_factory=dict, repr=False)

    @property
    def has_vae(self) -> bool:
        return "vae" in self.components


def _existing(path: Path | str) -> Path:
    path = Path(path)
    try:
        if not path.exists():
            raise InputError(f"{path}: there is no such base model; name a .safetensors or .ckpt file or a folder.")
        if path.is_dir():
            os.scandir(path).close()
    except OSError as error:
        raise InputError(f"{path}: this base model cannot be opened ({error}).") from None
    return path


def _check_family_name(family: str | None) -> str | None:
    if family in (None, "", "auto"):
        return None
    if family not in FAMILIES:
        raise InputError(f"family: {family!r} is not one of {', '.join(FAMILIES)}.")
    return family


def _required(path: Path, component: Component, names: list[str], what: str, optional: tuple[str, ...] = ()) -> None:
    missing = [name for name in names if name not in component.pieces and not name.endswith(optional or ("\0",))]
    if missing:
        raise InputError(
            f"{path}: its {what} is not whole or is built differently ({len(missing)} tensors are missing, "
            f"the first is {missing[0]}); this model cannot be trained."
        )


def _check_components(path: Path, family: Family, components: Mapping[str, Component]) -> None:
    from trainers.formats.ldm_keys import unet_key_map

    unet = components["unet"]
    names = [canonical for _, canonical in unet_key_map(family)]
    # Query, key and value have no bias; a shortcut is only there where the width changes.
    no_bias = ("to_q.bias", "to_k.bias", "to_v.bias", "conv_shortcut.weight", "conv_shortcut.bias")
    _required(path, unet, names, "UNet", no_bias)
    if unet.left_over:
        raise InputError(
            f"{path}: its UNet has parts that {family.title} does not have (such as {unet.left_over[0]}); "
            "this kind of model cannot be trained."
        )
    for encoder in family.text_encoders:
        what = f"text encoder ({encoder.component})"
        layers = [
            f"text_model.encoder.layers.{layer}.{part}.weight"
            for layer in range(encoder.layers)
            for part in ("self_attn.q_proj", "self_attn.out_proj", "mlp.fc1", "mlp.fc2", "layer_norm1", "layer_norm2")
        ]
        ends = ["text_model.embeddings.token_embedding.weight", "text_model.final_layer_norm.weight"]
        ends += ["text_projection.weight"] if encoder.pooled else []
        _required(path, components[encoder.component], [*ends, *layers], what)


def _check_widths(path: Path, family: Family, components: Mapping[str, Component]) -> None:
    unet = components["unet"].shapes
    widths = [components[encoder.component].shapes for encoder in family.text_encoders]
    text = sum(shapes["text_model.embeddings.token_embedding.weight"][1] for shapes in widths)
    context = build.context_width(unet)
    if text != context:
        raise InputError(
            f"{path}: its text encoder is {text} wide and its UNet reads {context}; they do not belong together."
        )
    for encoder, shapes in zip(family.text_encoders, widths, strict=True):
        vocabulary = shapes["text_model.embeddings.token_embedding.weight"][0]
        if vocabulary < 49408:
            raise InputError(
                f"{path}: its {encoder.component} knows {vocabulary} words where CLIP has 49408; "
                "this kind of model cannot be trained."
            )


def _info(path: Path, layout: str, family: Family, components: dict[str, Component], found, **more) -> BaseInfo:
    _check_components(path, family, components)
    _check_widths(path, family, components)
    value, source, zero_snr = found
    unet = components["unet"].shapes
    return BaseInfo(
        path=path,
        layout=layout,
        family=family.name,
        prediction=value,
        prediction_source=source,
        zero_terminal_snr=zero_snr,
        channels=build.unet_widths(family, unet),
        context_width=build.context_width(unet),
        parameters={name: component.parameters for name, component in components.items()},
        stored_bytes={name: component.stored_bytes for name, component in components.items()},
        stored_dtypes={name: component.stored_dtype for name, component in components.items()},
        components=components,
        **more,
    )


def _ldm_family(path: Path, source: Source) -> Family:
    names = source.tensors
    for family in FAMILIES.values():
        prefixes = [encoder.ldm_prefix for encoder in family.text_encoders]
        if all(any(name.startswith(prefix) for name in names) for prefix in prefixes):
            return family
    raise InputError(
        f"{path}: this file has a UNet but no text encoder, so it cannot be trained; use the full checkpoint."
    )


def _inspect_file(path: Path, wanted_family: str | None) -> BaseInfo:
    source = open_file(path)
    refusals.check_ldm(path, source)
    family = FAMILIES[wanted_family] if wanted_family else _ldm_family(path, source)
    components = {"unet": unet_component(source.under(family.unet_prefix), family, ldm=True)}
    for encoder in family.text_encoders:
        components[encoder.component] = text_component(source.under(encoder.ldm_prefix), encoder)
    vae = source.under(family.vae_prefix)
    if vae.tensors:
        components["vae"] = vae_component(vae)
    found = prediction.from_file(path, family, source)
    return _info(path, "ldm", family, components, found, metadata=source.metadata)


def _folder_family(path: Path, unet: Source) -> Family:
    if "add_embedding.linear_1.weight" in unet.tensors:
        return FAMILIES["sdxl"]
    projection = next((i for n, i in unet.tensors.items() if n.endswith("attentions.0.proj_in.weight")), None)
    text = read_json(path / "text_encoder" / "config.json")
    if projection is not None and len(projection.shape) == 2:
        return FAMILIES["sd2"]
    return FAMILIES["sd2" if int(text.get("num_hidden_layers") or 12) > 12 else "sd1"]


def _folder_heads(path: Path, family: Family) -> dict[str, object]:
    """Attention heads that the folder's own configurations state (a narrow model may differ from its family)."""
    heads: dict[str, object] = {}
    config = read_json(path / "unet" / "config.json")
    stated = config.get("num_attention_heads") or config.get("attention_head_dim")
    if isinstance(stated, int):
        stated = (stated,) * family.unet.levels
    if isinstance(stated, (list, tuple)) and all(isinstance(one, int) and one > 0 for one in stated):
        heads["unet"] = tuple(stated)
    for encoder in family.text_encoders:
        number = read_json(path / encoder.component / "config.json").get("num_attention_heads")
        if isinstance(number, int) and number > 0:
            heads[encoder.component] = number
    return heads


def _inspect_folder(path: Path, wanted_family: str | None) -> BaseInfo:
    refusals.check_folder(path)
    unet = open_component(path / "unet")
    refusals.check_channels(path, unet.tensors.get("conv_in.weight"))
    family = FAMILIES[wanted_family] if wanted_family else _folder_family(path, unet)
    components = {"unet": unet_component(unet, family, ldm=False)}
    for encoder in family.text_encoders:
        if not (path / encoder.component).is_dir():
            raise InputError(f"{path}: its folder {encoder.component!r} is missing; copy the model's folder again.")
        components[encoder.component] = text_component(open_component(path / encoder.component), encoder)
    if (path / "vae").is_dir():
        components["vae"] = vae_component(open_component(path / "vae"))
    found = prediction.from_folder(path, family)
    return _info(path, "diffusers", family, components, found, heads=_folder_heads(path, family))


def inspect_base(path: Path | str, *, family: str | None = None) -> BaseInfo:
    """What the base model at `path` is, from its headers alone.

    Args:
        path: an LDM single file (.safetensors, .ckpt) or a diffusers folder.
        family: overrides what is detected ("auto" and None detect).

    Raises:
        InputError: one sentence: missing, truncated, a pickle with code, an inpainting, pix2pix or refiner model, or
            no model of a known family.
    """
    wanted = _check_family_name(family)
    path = _existing(path)
    if path.is_dir():
        return _inspect_folder(path, wanted)
    return _inspect_file(path, wanted)


def inspect_vae(path: Path | str) -> Component:
    """A separate autoencoder: an LDM VAE with or without prefix, a diffusers file or folder."""
    path = _existing(path)
    if path.is_dir():
        folder = path / "vae" if (path / "vae").is_dir() else path
        component = vae_component(open_component(folder))
    else:
        source = open_file(path)
        inner = source.under("first_stage_model.")
        component = vae_component(inner if inner.tensors else source)
    if "encoder.conv_in.weight" not in component.pieces or "decoder.conv_out.weight" not in component.pieces:
        raise InputError(f"{path}: this is not an autoencoder (VAE) file.")
    return component
