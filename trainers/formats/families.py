"""The families of base models, as data.

What differs between SD1, SD2 and SDXL is a table here and no branch elsewhere. Widths are not part of a family (the
embedded base and the test models are narrow); the block structure is, because every site name follows from it.

Sources: the model configurations that Stability AI and CompVis published beside the weights (v1-inference.yaml,
v2-inference.yaml, v2-inference-v.yaml, sd_xl_base.yaml).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TextEncoderSpec:
    """One CLIP text encoder of a family.

    Attributes:
        component: name of the part in a diffusers folder ("text_encoder", "text_encoder_2").
        kohya_prefix: first part of its site names.
        layers: layers that are loaded and trained.
        full_layers: layers of the original network; clip skip counts from its end.
        ldm_prefix: where its tensors are in a single file.
        ldm_layout: "hf" (transformers' names) or "open_clip" (fused q, k, v; transposed projection).
        activation: transformers' name of the activation.
        pads_with_end: short prompts are filled with the end token instead of token 0.
        final_norm: the layer that is read passes through the final layer norm.
        pooled: this encoder gives the projected, pooled vector.
    """

    component: str
    kohya_prefix: str
    layers: int
    full_layers: int
    ldm_prefix: str
    ldm_layout: str
    activation: str
    pads_with_end: bool
    final_norm: bool
    pooled: bool = False


@dataclass(frozen=True)
class UNetSpec:
    """Block structure of a UNet.

    Attributes:
        depths: transformer blocks per attention of each level, finest level first; 0 means no attention.
        mid_depth: transformer blocks of the middle attention.
        resnets: residual blocks per level on the way down (one more on the way up).
        linear_projection: `proj_in`/`proj_out` are linear layers (else 1x1 convolutions).
        heads: fixed number of attention heads, or None where `head_width` is fixed.
        head_width: channels per head where `heads` is None.
        sgm_names: kohya site names follow the single file's names (`input_blocks_4_1_…`) instead of diffusers'.
        size_conditioning: takes original size, crop and target size (SDXL).
    """

    depths: tuple[int, ...]
    mid_depth: int
    resnets: int = 2
    linear_projection: bool = True
    heads: int | None = None
    head_width: int = 64
    sgm_names: bool = False
    size_conditioning: bool = False

    @property
    def levels(self) -> int:
        return len(self.depths)

    def heads_for(self, channels: int) -> int:
        """Number of attention heads at a level that is `channels` wide."""
        return self.heads or max(1, channels // self.head_width)


@dataclass(frozen=True)
class Family:
    """One family of base models; see the module's docstring."""

    name: str
    title: str
    text_encoders: tuple[TextEncoderSpec, ...]
    unet: UNetSpec
    latent_scale: float
    resolution: int
    default_prediction: str
    predictions: tuple[str, ...]
    default_clip_skip: int
    base_versions: tuple[tuple[str, str], ...]
    architectures: tuple[tuple[str, str], ...]
    unet_site_count: int
    unet_conv3x3_site_count: int
    text_site_counts: tuple[int, ...]
    unet_prefix: str = "model.diffusion_model."
    vae_prefix: str = "first_stage_model."
    v_resolution: int | None = None

    def resolution_for(self, prediction: str) -> int:
        """Side the published model of this prediction was trained at (SD2's v model: 768)."""
        return self.v_resolution if prediction == "v" and self.v_resolution else self.resolution

    def ss_base_model_version(self, prediction: str) -> str:
        """The name sd-scripts writes for this family and prediction."""
        return dict(self.base_versions).get(prediction, self.base_versions[0][1])

    def modelspec_architecture(self, prediction: str) -> str:
        """ModelSpec's name of the base (an adapter appends `/lora`)."""
        return dict(self.architectures).get(prediction, self.architectures[0][1])

    @property
    def components(self) -> tuple[str, ...]:
        """The trainable parts: "unet" and the text encoders."""
        return ("unet", *(encoder.component for encoder in self.text_encoders))

    def text_encoder(self, component: str) -> TextEncoderSpec:
        """The specification of one text encoder by its component name."""
        return next(encoder for encoder in self.text_encoders if encoder.component == component)


SD1 = Family(
    name="sd1",
    title="Stable Diffusion 1.x",
    text_encoders=(
        TextEncoderSpec(
            component="text_encoder",
            kohya_prefix="lora_te",
            layers=12,
            full_layers=12,
            ldm_prefix="cond_stage_model.transformer.",
            ldm_layout="hf",
            activation="quick_gelu",
            pads_with_end=True,
            final_norm=True,
        ),
    ),
    unet=UNetSpec(depths=(1, 1, 1, 0), mid_depth=1, linear_projection=False, heads=8),
    latent_scale=0.18215,
    resolution=512,
    default_prediction="epsilon",
    predictions=("epsilon", "v"),
    default_clip_skip=1,
    base_versions=(("epsilon", "sd_v1"), ("v", "sd_v1_v")),
    architectures=(("epsilon", "stable-diffusion-v1"),),
    unet_site_count=192,
    unet_conv3x3_site_count=278,
    text_site_counts=(72,),
)

SD2 = Family(
    name="sd2",
    title="Stable Diffusion 2.x",
    text_encoders=(
        TextEncoderSpec(
            component="text_encoder",
            kohya_prefix="lora_te",
            layers=23,
            full_layers=24,
            ldm_prefix="cond_stage_model.model.",
            ldm_layout="open_clip",
            activation="gelu",
            pads_with_end=False,
            final_norm=True,
        ),
    ),
    unet=UNetSpec(depths=(1, 1, 1, 0), mid_depth=1),
    latent_scale=0.18215,
    resolution=512,
    default_prediction="epsilon",
    predictions=("epsilon", "v"),
    default_clip_skip=2,
    base_versions=(("epsilon", "sd_v2"), ("v", "sd_v2_v")),
    architectures=(("epsilon", "stable-diffusion-v2-512"), ("v", "stable-diffusion-v2-768-v")),
    unet_site_count=192,
    unet_conv3x3_site_count=278,
    text_site_counts=(138,),
    v_resolution=768,
)

SDXL = Family(
    name="sdxl",
    title="Stable Diffusion XL",
    text_encoders=(
        TextEncoderSpec(
            component="text_encoder",
            kohya_prefix="lora_te1",
            layers=12,
            full_layers=12,
            ldm_prefix="conditioner.embedders.0.transformer.",
            ldm_layout="hf",
            activation="quick_gelu",
            pads_with_end=True,
            final_norm=False,
        ),
        TextEncoderSpec(
            component="text_encoder_2",
            kohya_prefix="lora_te2",
            layers=32,
            full_layers=32,
            ldm_prefix="conditioner.embedders.1.model.",
            ldm_layout="open_clip",
            activation="gelu",
            pads_with_end=False,
            final_norm=False,
            pooled=True,
        ),
    ),
    unet=UNetSpec(depths=(0, 2, 10), mid_depth=10, sgm_names=True, size_conditioning=True),
    latent_scale=0.13025,
    resolution=1024,
    default_prediction="epsilon",
    predictions=("epsilon", "v"),
    default_clip_skip=2,
    base_versions=(("epsilon", "sdxl_base_v1-0"),),
    architectures=(("epsilon", "stable-diffusion-xl-v1-base"),),
    unet_site_count=722,
    unet_conv3x3_site_count=788,
    text_site_counts=(72, 192),
)

FAMILIES: dict[str, Family] = {family.name: family for family in (SD1, SD2, SDXL)}
