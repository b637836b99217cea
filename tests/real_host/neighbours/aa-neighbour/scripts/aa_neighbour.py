"""Loaded before ours: owns a package that ours has too, says what is on the model, and makes trouble on request.

A prompt with "(trouble)" breaks in mid-sampling, one with "(checksum)" has the model looked at in every step, and
"(inside: text)" draws another picture inside the generation, as detailers do; "(pictures: one | another)" gives each
picture of a batch its own prompt; with "(foreign)" the model is of a kind that nobody knows.
"""

import gc
import hashlib
import re
import sys

import torch
from modules import extra_networks, processing, script_callbacks, scripts, shared

import extension

WHOSE = extension.WHOSE
SEEN = []
INSIDE = []


def model_modules():
    """The modules of the loaded model by name."""
    objects = getattr(shared.sd_model, "forge_objects", None)
    if objects is None:
        return {"": shared.sd_model}
    parts = {"unet": objects.unet.model, "clip": objects.clip.cond_stage_model, "vae": objects.vae.first_stage_model}
    return {f"{name}.": part for name, part in parts.items()}


def tensors():
    return {root + name: value for root, part in model_modules().items() for name, value in part.state_dict().items()}


def checksum():
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors().items()):
        digest.update(
            name.encode() + tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        )
    return digest.hexdigest()


def traces():
    """Hooks, and forwards that instances have of their own."""
    found = []
    named = [(root + name, one) for root, part in model_modules().items() for name, one in part.named_modules()]
    for name, module in named:
        found += [f"{name}.{table}" for table in ("_forward_hooks", "_forward_pre_hooks") if module.__dict__[table]]
        found += [f"{name}.forward"] if "forward" in module.__dict__ else []
    return sorted(found)


def started(demo, app):
    @app.get("/neighbour/model")
    def model():
        gc.collect()
        lora = type(extra_networks.extra_network_registry["lora"]).__module__
        plain = {name: getattr(sys.modules.get(name), "WHOSE", None) for name in ("extension", "trainers")}
        return {"checksum": checksum(), "traces": traces(), "lora": lora, "packages": plain}

    @app.post("/neighbour/reload")
    def reload(body: dict):
        shared.opts.disabled_extensions = body["disabled"]
        shared.state.request_restart()

    @app.get("/neighbour/seen")
    def seen():
        found = {"checksums": list(dict.fromkeys(SEEN)), "inside": list(INSIDE)}
        SEEN.clear()
        INSIDE.clear()
        return found


def step(params):
    prompt = params.denoiser.p.prompt
    if "(checksum)" in prompt:
        SEEN.append(checksum())
    if "(trouble)" in prompt and params.denoiser.step == 2:
        params.x = params.text_cond = None  # reForge goes on with the latents that it has


script_callbacks.on_app_started(started)
script_callbacks.on_cfg_denoiser(step)


class Inside(scripts.Script):
    def title(self):
        return "Draws inside a generation"

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def before_process(self, p, *args):
        if "(foreign)" in p.prompt:
            shared.sd_model.is_sd1 = False

    def postprocess(self, p, processed, *args):
        if "(foreign)" in p.prompt:
            shared.sd_model.is_sd1 = True

    def process(self, p, *args):
        found = re.search(r"\(pictures: (.*)\)$", p.prompt)
        if found is not None:
            p.all_prompts = found.group(1).split(" | ")

    def postprocess_image(self, p, pp, *args):
        found = re.search(r"\(inside: ([^)]*)\)", p.prompt)
        if found is None:
            return
        inner = processing.StableDiffusionProcessingTxt2Img(
            prompt=found.group(1),
            negative_prompt=p.negative_prompt,
            seed=5,
            steps=p.steps,
            width=p.width,
            height=p.height,
            cfg_scale=p.cfg_scale,
            sampler_name=p.sampler_name,
            do_not_save_samples=True,
            do_not_save_grid=True,
        )
        picture = processing.process_images(inner).images[0]
        INSIDE.append(hashlib.sha256(picture.tobytes()).hexdigest())
