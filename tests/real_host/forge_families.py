"""Run by Forge's Python in Forge's folder: small SD2 and SDXL models of Forge's own networks, in its own patchers.

    PY forge_families.py FOLDER

Forge knows the files of SD2 and SDXL only at full size. So here its networks are built small, and adapters act on them
through our injection and through Forge's own loader. Prints, as JSON, for each family and kind how far the outputs of
UNet and text encoders lie apart, how far from the bare model's, and what is left afterwards. FOLDER is for the files.
"""

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

FOLDER = Path(sys.argv[1])
HERE = Path(__file__).resolve().parent
KINDS = ("lora", "loha", "lokr", "dora", "glora")
WEIGHT = 0.7
sys.argv = [sys.argv[0], "--always-cpu", "--all-in-fp32", "--skip-torch-cuda-test"]
sys.path[:0] = [os.getcwd(), os.path.join(os.getcwd(), "repositories", "huggingface_guess")]
sys.path += [str(HERE), str(HERE.parent.parent)]

from modules_forge.initialization import initialize_forge  # noqa: E402

initialize_forge()
import backend.loader  # noqa: E402, F401  (what follows can only be imported after it)
import torch  # noqa: E402
from backend.diffusion_engine.base import ForgeObjects  # noqa: E402
from backend.nn.clip import IntegratedCLIP  # noqa: E402
from backend.nn.unet import IntegratedUNet2DConditionModel  # noqa: E402
from backend.patcher.clip import CLIP  # noqa: E402
from backend.patcher.lora import load_lora, model_lora_keys_clip, model_lora_keys_unet  # noqa: E402
from backend.patcher.unet import UnetPatcher  # noqa: E402
from kinds import KINDS as MAKERS  # noqa: E402
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection  # noqa: E402

from extension.hosts.forge import family_of, parts_of  # noqa: E402
from extension.injection import AdapterFiles, Injection, constant_use  # noqa: E402
from extension.injection.sites import find_layer, text_model_root  # noqa: E402
from trainers.formats import safetensors_io  # noqa: E402
from trainers.formats.families import FAMILIES  # noqa: E402
from trainers.formats.sites import all_sites  # noqa: E402

LEVELS = {  # depths of transformers per block, as the family has them
    "sd2": {"channel_mult": [1, 2, 4, 4], "num_res_blocks": [2] * 4, "transformer_depth": [1] * 6 + [0, 0],
            "transformer_depth_output": [1] * 9 + [0] * 3, "transformer_depth_middle": 1},
    "sdxl": {"channel_mult": [1, 2, 4], "num_res_blocks": [2] * 3, "transformer_depth": [0, 0, 2, 2, 10, 10],
             "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10], "transformer_depth_middle": 10},
}  # fmt: skip
TEXT = {"sd2": {"clip_h": 64}, "sdxl": {"clip_l": 48, "clip_g": 64}}


def _text(name, width):
    config = CLIPTextConfig(
        vocab_size=1000, hidden_size=width, intermediate_size=2 * width, num_attention_heads=4, num_hidden_layers=3,
        projection_dim=width, hidden_act="gelu" if name != "clip_l" else "quick_gelu", eos_token_id=999,
    )  # fmt: skip
    return IntegratedCLIP(CLIPTextModelWithProjection if name == "clip_g" else CLIPTextModel, config)


def engine_of(family):
    """As much of Forge's object for a loaded model as adapters have to do with."""
    torch.manual_seed(0)
    context = sum(TEXT[family].values())
    extra = {"adm_in_channels": 96, "num_classes": "sequential"} if family == "sdxl" else {}
    unet = IntegratedUNet2DConditionModel(
        in_channels=4, out_channels=4, model_channels=32, num_head_channels=16, use_spatial_transformer=True,
        use_linear_in_transformer=True, context_dim=context, **LEVELS[family], **extra,
    )  # fmt: skip
    clips = {name: _text(name, width) for name, width in TEXT[family].items()}
    for module in (unet, *clips.values()):
        module.eval().requires_grad_(False)
        for name, tensor in module.named_parameters():
            if tensor.dim() > 1:  # output layers begin with zeros
                tensor.data = torch.randn_like(tensor) * (0.5 if "embedding" in name else tensor[0].numel() ** -0.5)
    for device in ("load_device", "offload_device", "initial_device"):
        setattr(unet, device, torch.device("cpu"))
    unet.storage_dtype = unet.computation_dtype = torch.float32
    guess = SimpleNamespace(huggingface_repo=family)
    patcher = UnetPatcher.from_model(unet, None, guess, k_predictor=SimpleNamespace(prediction_type="epsilon"))
    objects = ForgeObjects(unet=patcher, clip=CLIP(clips, {}), vae=None, clipvision=None)
    return SimpleNamespace(forge_objects=objects, **{f"is_{family}": True})


def outputs(engine, family):
    """What the UNet and the text encoders make of fixed inputs."""
    drawn = torch.Generator().manual_seed(1)
    inputs = [torch.randn(2, 4, 16, 16, generator=drawn), torch.tensor([300.0, 300.0])]
    context = torch.randn(2, 77, sum(TEXT[family].values()), generator=drawn)
    y = {"y": torch.randn(2, 96, generator=drawn)} if family == "sdxl" else {}
    with torch.no_grad():
        made = [engine.forge_objects.unet.model.diffusion_model(*inputs, context=context, **y)]
        ids = torch.arange(77)[None]
        for name in TEXT[family]:
            encoder = getattr(engine.forge_objects.clip.cond_stage_model, name)
            made.append(encoder.transformer(ids, output_hidden_states=True).hidden_states[-1])
    return made


def write(path, kind, parts, family):
    """An adapter of this kind on every site the model has."""
    make, drawn, tensors = MAKERS[kind][0], torch.Generator().manual_seed(2), {}
    roots = {name: part if name == "unet" else text_model_root(part) for name, part in parts.items()}
    for site in all_sites(FAMILIES[family]):
        layer = find_layer(roots[site.component], site)
        if layer is None or (kind == "glora" and layer.module.weight.dim() != 2):
            continue
        made = make(layer.module.weight.detach().float(), drawn)
        tensors |= {f"{site.name}.{part}": value.contiguous() for part, value in made.items()}
    safetensors_io.save(path, tensors, {})


def by_forge(engine, path, draw):
    """What `draw` gives with the file in Forge's own loader; the weights are put back afterwards."""
    objects, tensors = engine.forge_objects, safetensors_io.load(path)[0]
    unet, rest = load_lora(tensors, model_lora_keys_unet(objects.unet.model, {}))
    text, rest = load_lora(rest, model_lora_keys_clip(objects.clip.cond_stage_model, {}))
    patchers = (objects.unet.clone(), objects.clip.patcher.clone())
    for patcher, patches in zip(patchers, (unet, text), strict=True):
        patcher.add_patches(filename=path.name, patches=patches, strength_patch=WEIGHT)
        patcher.refresh_loras()
    made = draw()
    objects.unet.refresh_loras()
    objects.clip.patcher.refresh_loras()
    return made, len(rest)


def away(one, other):
    return max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True))


def compare(family, kind):
    """How far our injection and Forge's own loader lie apart, and what is left of either."""
    engine = engine_of(family)
    assert family_of(engine) == family
    parts, path = parts_of(engine, family), FOLDER / f"{family}-{kind}.safetensors"
    write(path, kind, parts, family)

    def draw():
        return outputs(engine, family)

    plain = draw()
    theirs, unread = by_forge(engine, path, draw)
    restored = away(draw(), plain)
    injection, owner = Injection(family, parts), SimpleNamespace()
    generation = injection.begin(owner, [constant_use(AdapterFiles().get(path), WEIGHT)])
    ours, said = draw(), generation.sentences(family)
    injection.end(owner)
    acts = [float((a - b).abs().max()) for a, b in zip(ours, plain, strict=True)]
    return {
        "apart": away(ours, theirs), "acts": min(acts), "left": away(draw(), plain), "forge_left": restored,
        "unread_by_forge": unread, "said": said,
    }  # fmt: skip


result = {f"{family} {kind}": compare(family, kind) for family in LEVELS for kind in KINDS}
(FOLDER / "result.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
