"""The table of every option (see `trainers.spec.Field`); the rules that tie several together are `trainers.rules`.

Order here is the order in job files, in the form and in the reference. Standard library only.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from typing import Any

from trainers.spec import BEGINNER, Field, Job

METHODS = ("lora", "textual_inversion", "dreambooth", "hypernetwork", "aesthetic_gradient", "pivotal")
OPTIMIZERS = ("adamw", "adamw8bit", "prodigy", "adafactor", "lion", "schedulefree")
SCHEDULES = ("constant", "linear", "cosine", "cosine_restarts", "polynomial")
TIMESTEP_SAMPLING = ("uniform", "sigmoid", "early", "late")
ACTIVATIONS = (
    "linear", "relu", "leakyrelu", "elu", "swish", "tanh", "sigmoid", "celu", "gelu", "hardsigmoid", "hardswish", "hardtanh",
    "mish", "relu6", "selu", "silu", "softplus", "softsign",
)  # fmt: skip
INITIALISATIONS = ("Normal", "KaimingUniform", "KaimingNormal", "XavierUniform", "XavierNormal")
ADAPTER_KINDS = ("lora", "loha", "lokr", "dora", "oft", "boft", "ia3", "full")
CHECKS = (
    "captions", "trigger", "amount", "quality", "buckets", "sameness", "dose", "rate", "base", "vae", "memory", "learning",
)  # fmt: skip
"""What is looked at before and while a job trains (`trainers.checks`)."""
PRECISIONS = ("auto", "fp32", "bf16", "fp16")

_ADAPTER = ("lora", "pivotal")
_EMBEDDING = ("textual_inversion", "pivotal")
_FULL = ("dreambooth",)
_NETWORK = ("hypernetwork",)
_AESTHETIC = ("aesthetic_gradient",)
_PIVOTAL = ("pivotal",)
_WORDS_ALONE = ("textual_inversion",)
_WEIGHTS = _ADAPTER + _FULL

WHAT = "What is taught"
BASE = "The base model"
DATA = "Pictures and captions"
ADAPTER = "The adapter"
LEARNING = "How long and how strongly"
OBJECTIVE = "The loss"
MEMORY = "Memory and speed"
WATCHING = "While it runs"
FILES = "Files"

FIELDS: tuple[Field, ...] = (
    # --- what
    Field("name", "text", "", "Name of the result: the file's name and what is written in the prompt.", WHAT, level=BEGINNER),
    Field("trigger", "text", "", "Word that stands for the subject; put in front of every caption that lacks it.", WHAT, level=BEGINNER),
    Field("comment", "text", "", "A note that is kept in the file.", WHAT),
    Field("author", "text", "", "Who made it; kept in the file.", WHAT),
    Field("license", "text", "", "Licence of the result; kept in the file.", WHAT),
    # --- base
    Field("base", "path", "", "The model to start from: a .safetensors or .ckpt file, or a diffusers folder.", BASE, level=BEGINNER),
    Field("family", "choice", "auto", "Kind of model; auto finds it from the file.", BASE, choices=("auto", "sd1", "sd2", "sdxl")),
    Field("prediction", "choice", "auto", "What the model predicts; auto finds it from the file.", BASE, choices=("auto", "epsilon", "v")),
    Field("vae", "path", None, "A separate autoencoder file to use instead of the model's own.", BASE, optional=True),
    Field("clip_skip", "int", None, "Which text encoder layer is read, counted from the end; empty means the family's own.", BASE, minimum=1, maximum=12, optional=True),
    Field("clip_model", "path", "", "The CLIP model that looks at the pictures: a folder with config.json and model.safetensors (or pytorch_model.bin), such as clip-vit-large-patch14 for SD1.", BASE, methods=_AESTHETIC, level=BEGINNER),
    Field("init_from", "path", None, "An existing file of the same kind to go on from.", BASE, optional=True),
    # --- data
    Field("data", "path", "", "Folder with the pictures (kohya's `10_name class` folders are understood) or a kohya dataset .toml.", DATA, level=BEGINNER),
    Field("resolution", "int", None, "Area the pictures are brought to, as the side of a square; empty means the model's own.", DATA, minimum=64, maximum=4096, unit="px", optional=True, level=BEGINNER),
    Field("repeats", "int", None, "How often each picture is seen in one epoch; empty means from the folder's name, else 1.", DATA, minimum=1, maximum=10000, optional=True),
    Field("buckets", "bool", True, "Keep each picture's aspect ratio instead of cutting a square.", DATA),
    Field("bucket_step", "int", 64, "Bucket sides are multiples of this (at most an eighth of the resolution).", DATA, minimum=8, maximum=256, unit="px"),
    Field("bucket_min", "int", 256, "Shortest side of a bucket (at most half the resolution).", DATA, minimum=8, maximum=4096, unit="px"),
    Field("bucket_max", "int", 2048, "Longest side of a bucket.", DATA, minimum=64, maximum=8192, unit="px"),
    Field("upscale", "bool", True, "Enlarge pictures smaller than the bucket; off keeps them at their size.", DATA),
    Field("crop", "choice", "center", "Which part is kept where a picture does not fit its bucket.", DATA, choices=("center", "random")),
    Field("flip", "bool", False, "Mirror pictures at random (not for faces, text, or things with a side).", DATA),
    Field("captions", "choice", "auto", "Which caption files are read; auto reads .txt, .caption and metadata files.", DATA, choices=("auto", "txt", "caption", "metadata", "none")),
    Field("allow_missing_captions", "bool", False, "Go on when some pictures have captions and others do not.", DATA),
    Field("shuffle_captions", "bool", False, "Shuffle the comma-separated tags of a caption each time.", DATA),
    Field("keep_tokens", "int", 0, "Number of tags at the front that stay in place.", DATA, minimum=0, maximum=100),
    Field("tag_drop", "float", 0.0, "Share of tags that is left out each time.", DATA, minimum=0, maximum=1),
    Field("caption_drop", "float", 0.0, "Share of samples that see an empty caption.", DATA, minimum=0, maximum=1),
    Field("caption_variants", "int", 16, "How many shuffled versions of a caption are prepared where the text encoder is not trained.", DATA, minimum=1, maximum=1000),
    Field("max_chunks", "int", 3, "Longest prompt, in chunks of 75 tokens.", DATA, minimum=1, maximum=8),
    Field("regularisation_data", "path", None, "Folder with pictures of the class in general, to keep the model from forgetting.", DATA, optional=True),
    Field("class_prompt", "text", "", "What to draw as pictures of the class in general (a photo of a dog), where there are too few of them.", DATA),
    Field("class_pictures", "int", 0, "How many pictures of the class there should be; missing ones are drawn by the model before training.", DATA, minimum=0, maximum=100000),
    Field("prior_weight", "float", 1.0, "Weight of the loss on the regularisation pictures.", DATA, minimum=0, maximum=100),
    Field("prior_target", "choice", "noise", "What the regularisation pictures hold the model to: the pictures themselves (noise), or what the untrained model makes of them (base; closer to the base, one more pass for them).", DATA, choices=("noise", "base")),
    Field("kept_word", "text", "", "An ordinary word for what is taught, such as toy: each picture is shown once more with it in the trigger's place and held to what the untrained model makes of it (prior_target base), so that only the trigger learns. Half of each batch.", DATA, methods=_ADAPTER + _NETWORK),
    Field("masks", "choice", "none", "Train only on the unmasked part: from the picture's alpha channel or -masklabel.png files.", DATA, choices=("none", "alpha", "files", "auto")),
    Field("unmasked_weight", "float", 0.0, "Weight of the loss outside the mask.", DATA, minimum=0, maximum=1),
    Field("cache_dir", "path", None, "Where prepared pictures are kept; empty means beside the data.", DATA, optional=True),
    Field("validation_data", "path", None, "Folder with held-out pictures for measuring.", DATA, optional=True),
    Field("validation_split", "float", 0.0, "Share of the pictures held out for measuring, where no folder is given.", DATA, minimum=0, maximum=0.5),
    Field("find_best", "bool", False, "Find the file that does best: a tenth of the pictures (2 to 8, from 12 on) is held out where nothing else is, and measured with whenever a file is saved; without prior_data, forgetting is measured on what the base itself draws.", DATA),
    Field("prior_data", "path", None, "Folder with unrelated pictures, to measure what is forgotten.", DATA, optional=True),
    # --- adapter
    Field("kind", "choice", "lora", "Kind of adapter: lora reads everywhere; the others trade size, speed and strength otherwise.", ADAPTER, choices=ADAPTER_KINDS, methods=_ADAPTER),
    Field("factor", "int", -1, "How lokr splits a layer; -1 splits it most evenly, small numbers make larger files.", ADAPTER, minimum=-1, maximum=1024, methods=_ADAPTER),
    Field("constraint", "float", 0.0, "How far oft and boft may turn, as a share; 0 is without limit.", ADAPTER, minimum=0, maximum=1, methods=_ADAPTER),
    Field("rank", "int", 16, "Size of the LoRA: how much it can learn, and how large its file is.", ADAPTER, minimum=1, maximum=1024, methods=_ADAPTER, level=BEGINNER),
    Field("alpha", "float", None, "Scale of the LoRA is alpha / rank; empty means half the rank.", ADAPTER, minimum=0.0001, maximum=4096, optional=True, methods=_ADAPTER),
    Field("rslora", "bool", False, "Scale by alpha / sqrt(rank) instead.", ADAPTER, methods=_ADAPTER),
    Field("dropout", "float", 0.0, "Share of the adapter's inputs that is dropped.", ADAPTER, minimum=0, maximum=0.99, methods=_ADAPTER),
    Field("conv_rank", "int", 0, "Rank on the 3x3 convolutions (LoCon); 0 leaves them out.", ADAPTER, minimum=0, maximum=1024, methods=_ADAPTER),
    Field("conv_alpha", "float", None, "Alpha on the 3x3 convolutions; empty means half their rank.", ADAPTER, minimum=0.0001, maximum=4096, optional=True, methods=_ADAPTER),
    Field("lora_plus", "float", 1.0, "How many times faster the second matrix of a LoRA learns than the first (LoRA+; 16 is usual, with a lower learning_rate).", ADAPTER, minimum=1, maximum=100, methods=_ADAPTER),
    Field("train_unet", "bool", True, "Train the UNet (the part that draws).", ADAPTER, methods=_WEIGHTS),
    Field("train_text_encoder", "bool", True, "Train the text encoder (the part that reads the prompt).", ADAPTER, methods=_WEIGHTS),
    Field("block_ranks", "map", {}, "Other ranks for some blocks: down_0..3, mid, up_0..3, text, text_2; 0 leaves a block out.", ADAPTER, methods=_ADAPTER),
    Field("block_lrs", "map", {}, "Factors on the learning rate of some blocks, named as above.", ADAPTER, methods=_ADAPTER),
    # --- the embedding
    Field("vectors", "int", 4, "How many vectors the word gets: more can say more, and take more room in a prompt.", ADAPTER, minimum=1, maximum=75, methods=_EMBEDDING, level=BEGINNER),
    Field("initial_text", "text", "", "Words to start from, such as the kind of thing; empty starts from random vectors.", ADAPTER, methods=_EMBEDDING, level=BEGINNER),
    Field("norm_limit", "float", 2.0, "Longest a vector may become, in lengths of an ordinary word's; keeps the result from drowning the rest of a prompt. 0 is off.", ADAPTER, minimum=0, maximum=1000, methods=_EMBEDDING),
    Field("concepts", "list", [], "Further words that learn in the same run, each as word=what to start from; captions say which is shown. Each gets a file of its own.", ADAPTER, methods=_WORDS_ALONE),
    Field("template", "path", None, "File of lines with [name] and [filewords], one of which is each sample's caption, as in AUTOMATIC1111 (see presets/templates).", DATA, methods=_WORDS_ALONE, optional=True),
    Field("embedding_lr", "float", None, "Learning rate of the word's vectors; empty means the usual one of Textual Inversion.", LEARNING, minimum=0, maximum=10, optional=True, methods=_PIVOTAL),
    Field("bundle", "bool", True, "Keep the word's vectors in the LoRA's file; off writes them beside it as an embedding of the trigger's name.", FILES, methods=_PIVOTAL, level=BEGINNER),
    # --- the hypernetwork
    Field("layer_structure", "list", ["1", "2", "1"], "Widths of its layers as multiples of the input's; begins and ends with 1.", ADAPTER, methods=_NETWORK),
    Field("activation", "choice", "linear", "What stands between its layers; linear is nothing.", ADAPTER, choices=ACTIVATIONS, methods=_NETWORK),
    Field("activate_output", "bool", False, "Put the activation after the last layer too.", ADAPTER, methods=_NETWORK),
    Field("layer_norm", "bool", False, "Normalise after each layer.", ADAPTER, methods=_NETWORK),
    Field("layer_dropout", "list", [], "Share dropped after each layer, one number for each entry of layer_structure; the first and last are 0.", ADAPTER, methods=_NETWORK),
    Field("initialisation", "choice", "Normal", "How its weights start.", ADAPTER, choices=INITIALISATIONS, methods=_NETWORK),
    # --- the whole model
    Field("trained_layers", "choice", "all", "Which layers of the UNet learn: all, its attention, or only where it reads the prompt.", ADAPTER, choices=("all", "attention", "cross_attention"), methods=_FULL),
    Field("blocks", "list", [], "Blocks that learn: down_0..3, mid, up_0..3, text, text_2; empty means all.", ADAPTER, methods=_FULL),
    Field("fused_backward", "bool", False, "Update each weight as soon as its gradient is known and free it: much less memory; without gradient clipping and accumulation.", MEMORY, methods=_FULL),
    Field("weights_dtype", "choice", "fp32", "Number format of the weights that learn; bf16 halves their memory, rounds at random, and needs fused_backward.", MEMORY, choices=("fp32", "bf16"), methods=_FULL),
    Field("output", "choice", "checkpoint", "What is written: a model file, a diffusers folder, or the difference from the base as a LoRA or as it is.", FILES, choices=("checkpoint", "diffusers", "lora", "difference"), methods=_FULL, level=BEGINNER),
    Field("extracted_rank", "int", 32, "Rank of the LoRA that the difference is written as.", FILES, minimum=1, maximum=1024, methods=_FULL),
    # --- learning
    Field("steps", "int", None, "Number of steps; empty means from the epochs.", LEARNING, minimum=1, maximum=1000000, unit="steps", optional=True, level=BEGINNER),
    Field("epochs", "int", None, "Number of times every picture is seen; empty means from the steps.", LEARNING, minimum=1, maximum=100000, optional=True),
    Field("batch_size", "int", 1, "Pictures per step and process.", LEARNING, minimum=1, maximum=1024),
    Field("gradient_accumulation", "int", 1, "Batches that are added up before a step is taken.", LEARNING, minimum=1, maximum=1024),
    Field("learning_rate", "float", None, "Learning rate (of the UNet, where text encoders have their own); empty means the usual one of method and optimizer.", LEARNING, minimum=0, maximum=10, optional=True, level=BEGINNER),
    Field("learning_rates", "text", "", "Learning rates with the step up to which each is used, as in AUTOMATIC1111 (0.005:100, 1e-3:1000, 1e-4); they take the place of learning_rate and schedule.", LEARNING),
    Field("text_encoder_lr", "float", None, "Learning rate of the text encoders; empty means a quarter of the UNet's.", LEARNING, minimum=0, maximum=10, optional=True, methods=_WEIGHTS),
    Field("optimizer", "choice", "adamw", "The optimizer.", LEARNING, choices=OPTIMIZERS),
    Field("optimizer_args", "list", [], "Further arguments of the optimizer, each as name=value.", LEARNING),
    Field("weight_decay", "float", 0.01, "Weight decay.", LEARNING, minimum=0, maximum=10),
    Field("schedule", "choice", "cosine", "How the learning rate changes over the run.", LEARNING, choices=SCHEDULES),
    Field("warmup", "int", 0, "Steps over which the learning rate rises from zero.", LEARNING, minimum=0, maximum=100000, unit="steps"),
    Field("cycles", "int", 3, "Number of restarts of cosine_restarts.", LEARNING, minimum=1, maximum=100),
    Field("max_grad_norm", "float", 1.0, "Gradients are shortened to this length; 0 leaves them as they are.", LEARNING, minimum=0, maximum=1000),
    Field("ema", "float", 0.0, "Decay of a running average of the adapter, which is what is saved; 0 is off.", LEARNING, minimum=0, maximum=0.99999),
    Field("seed", "int", 1, "Start of every random draw: the same seed gives the same file.", LEARNING, minimum=0, maximum=2**63 - 1),
    # --- objective
    Field("min_snr_gamma", "float", 5.0, "Min-SNR weighting of the timesteps; 0 is off.", OBJECTIVE, minimum=0, maximum=100),
    Field("debiased", "bool", False, "Debiased estimation weighting instead of min-SNR.", OBJECTIVE),
    Field("noise_offset", "float", 0.0, "Offset noise, for very dark and very bright pictures.", OBJECTIVE, minimum=0, maximum=1),
    Field("adaptive_noise_offset", "float", 0.0, "Adds this times the latent's mean to the noise offset.", OBJECTIVE, minimum=-1, maximum=1),
    Field("pyramid_iterations", "int", 0, "Levels of pyramid noise; 0 is off.", OBJECTIVE, minimum=0, maximum=16),
    Field("pyramid_discount", "float", 0.3, "Weight of each further level of pyramid noise.", OBJECTIVE, minimum=0, maximum=1),
    Field("input_perturbation", "float", 0.0, "Extra noise on the input that the target does not know of.", OBJECTIVE, minimum=0, maximum=1),
    Field("zero_terminal_snr", "bool", None, "Rescale the noise schedule so that the last step is pure noise (for v prediction); empty means what the model says of itself.", OBJECTIVE, optional=True),
    Field("loss", "choice", "l2", "Measure of the error.", OBJECTIVE, choices=("l2", "huber", "smooth_l1")),
    Field("huber_c", "float", 0.1, "Where huber and smooth_l1 turn from square to straight.", OBJECTIVE, minimum=0.0001, maximum=10),
    Field("huber_schedule", "choice", "snr", "How huber_c changes with the timestep.", OBJECTIVE, choices=("constant", "exponential", "snr")),
    Field("timestep_min", "int", 0, "First timestep that is trained.", OBJECTIVE, minimum=0, maximum=999),
    Field("timestep_max", "int", 999, "Last timestep that is trained.", OBJECTIVE, minimum=0, maximum=999),
    Field("timestep_sampling", "choice", "uniform", "Which timesteps are drawn more often.", OBJECTIVE, choices=TIMESTEP_SAMPLING),
    Field("sample_latents", "bool", True, "Draw latents from the autoencoder's distribution instead of its mean.", OBJECTIVE),
    # --- memory
    Field("device", "text", "auto", "Where to train: auto, cpu, cuda, cuda:1, mps; auto is what the WebUI draws on, else the best there is.", MEMORY),
    Field("gpu_sharing", "choice", "auto", "How the device is shared with a WebUI's model: attach (train on the WebUI's own copy), hand_over (the WebUI frees its model meanwhile), side_by_side (two copies); auto takes the first that can be done.", MEMORY, choices=("auto", "attach", "hand_over", "side_by_side")),
    Field("pause_while_drawing", "bool", True, "Pause between two steps while the WebUI draws a picture on the same device.", MEMORY),
    Field("precision", "choice", "auto", "Number format of the computation.", MEMORY, choices=PRECISIONS),
    Field("base_dtype", "choice", "auto", "Number format in which the frozen base is kept.", MEMORY, choices=("auto", "fp32", "bf16", "fp16", "fp8")),
    Field("gradient_checkpointing", "choice", "auto", "Compute parts twice to save memory.", MEMORY, choices=("auto", "on", "off")),
    Field("memory_limit", "float", 0.0, "Most memory the run may take of its device; the memory plan keeps to it. 0 means all that is free.", MEMORY, minimum=0, maximum=1024, unit="GiB"),
    Field("vae_batch_size", "int", 1, "Pictures that are encoded at once while the cache is made.", MEMORY, minimum=1, maximum=64),
    Field("threads", "int", 0, "CPU threads; 0 means all.", MEMORY, minimum=0, maximum=1024),
    # --- watching
    Field("sample_prompts", "list", [], "Prompts that are drawn while training.", WATCHING, level=BEGINNER),
    Field("negative_prompt", "text", "", "Negative prompt of the sample pictures.", WATCHING),
    Field("sample_every", "int", 0, "Draw the sample prompts every so many steps; 0 means at the start and the end only.", WATCHING, minimum=0, maximum=1000000, unit="steps"),
    Field("sample_every_epochs", "int", 0, "Draw the sample prompts every so many epochs as well; 0 is off.", WATCHING, minimum=0, maximum=100000, unit="epochs"),
    Field("sample_steps", "int", 20, "Sampling steps of a sample picture.", WATCHING, minimum=1, maximum=200),
    Field("sample_cfg", "float", 7.0, "How closely a sample picture follows its prompt.", WATCHING, minimum=1, maximum=50),
    Field("sample_seed", "int", 42, "Seed of the sample pictures.", WATCHING, minimum=0, maximum=2**63 - 1),
    Field("validate_every", "int", 0, "Measure on the held-out pictures every so many steps; 0 means at the start and the end only.", WATCHING, minimum=0, maximum=1000000, unit="steps"),
    Field("validation_draws", "int", 4, "Noise draws per held-out picture.", WATCHING, minimum=1, maximum=100),
    Field("verdict", "bool", True, "At the end, draw a sheet to judge by: before and after, each saved file at several strengths (where there are sample prompts or a trigger; whole models have no strengths).", WATCHING),
    Field("tensorboard", "bool", False, "Write a TensorBoard log into the run folder.", WATCHING),
    Field("override_checks", "list", [], "Checks whose red findings do not hold the run back, by name (captions, trigger, amount, …; `trainers check` lists them).", WATCHING),
    # --- files
    Field("save_every", "int", 0, "Save the result every so many steps as well; 0 is off.", FILES, minimum=0, maximum=1000000, unit="steps"),
    Field("save_every_epochs", "int", 0, "Save the result every so many epochs as well; 0 is off.", FILES, minimum=0, maximum=100000, unit="epochs"),
    Field("state_every", "int", 100, "Keep a state to resume from every so many steps.", FILES, minimum=1, maximum=1000000, unit="steps"),
    Field("publish", "bool", False, "In a WebUI: put the best file where it looks for such files as soon as the run is done; a name that is taken is asked about.", FILES),
    Field("save_dtype", "choice", "fp16", "Number format of the file.", FILES, choices=("fp16", "bf16", "fp32")),
    Field("also_pt", "bool", False, "Write a .pt file in AUTOMATIC1111's layout beside the .safetensors file.", FILES, methods=_AESTHETIC + _WORDS_ALONE),
    Field("file_format", "choice", "kohya", "Key names of the file: kohya (every WebUI), diffusers or peft.", FILES, choices=("kohya", "diffusers", "peft"), methods=_ADAPTER),
)  # fmt: skip

BLOCKS = ("down_0", "down_1", "down_2", "down_3", "mid", "up_0", "up_1", "up_2", "up_3", "text", "text_2")


ONE_PASS: dict[str, frozenset[str]] = {
    "aesthetic_gradient": frozenset(
        ("name", "comment", "author", "license", "clip_model", "data", "device", "threads", "also_pt")
    )
}
"""Methods that look at every picture once instead of training in steps, and the options that mean something there."""

NAMED_BY_ITSELF = ("textual_inversion", "aesthetic_gradient")
"""Methods whose result is called up by its own name, so that nobody is asked for a trigger word."""

RUN_FOLDERS = ("state", "samples", "control", "cache", "class", "tensorboard", "live", "verdict")


def fields_for(method: str) -> tuple[Field, ...]:
    """The options of one method, in the table's order."""
    known = ONE_PASS.get(method)
    return tuple(option for option in FIELDS if option.is_for(method) and (known is None or option.name in known))


def filled(values: Mapping[str, Any], leave: Container[str] = ()) -> dict[str, Any]:
    """A recipe with the default of every option that it does not name, which is what leaving one out means.

    Args:
        values: options of a job, with its `method` (by default a LoRA).
        leave: names of options about which it says nothing.
    """
    unsaid = fields_for(str(values.get("method", "lora")))
    return {**{option.name: option.default for option in unsaid if option.name not in leave}, **values}


def default_samples(word: str) -> list[str]:
    """Prompts that tell what was learned, where a person named none: the word alone, in a setting it has not seen, in
    another medium, and one without it, which must stay as it was."""
    return (
        [word, f"{word}, on a beach at sunset", f"a watercolour painting of {word}", "a house by a lake"]
        if word
        else []
    )


_FORBIDDEN_IN_NAMES = re.compile(r'[<>:"/\\|?*\x00-\x1f]')
_WINDOWS_DEVICES = {"con", "prn", "aux", "nul", *(f"{d}{n}" for d in ("com", "lpt") for n in range(1, 10))}


def name_problem(name: str) -> str | None:
    """Why `name` cannot be the name of a result, on any system; None when it can."""
    if not name.strip():
        return "name: is empty; give the result a name, for example name: my-style."
    if "/" in name or "\\" in name or name in (".", ".."):
        return f"name: {name!r} holds a path; give the name alone, the file is written into the run folder."
    if _FORBIDDEN_IN_NAMES.search(name) or name != name.strip() or name.endswith("."):
        return f'name: {name!r} has characters that a file name or a prompt tag cannot hold (< > : " | ? * or an end blank).'
    if name.split(".")[0].lower() in _WINDOWS_DEVICES:
        return f"name: {name!r} is a device's name on Windows; choose another."
    if len(name.encode("utf-8")) > 200:
        return "name: is longer than a file name can be; use at most 200 bytes."
    return None


def concepts_of(job: Job) -> dict[str, str]:
    """Further words of a Textual Inversion, and what each starts from."""
    pairs = [text.partition("=") for text in job.get("concepts", ())]
    return {word.strip(): start.strip() for word, _, start in pairs}


def rate_steps(text: str) -> list[tuple[float, float]]:
    """(rate, step up to which it is used) of `0.005:100, 1e-3:1000, 1e-4`; without a step, or with -1, for the rest.

    ValueError where it is not written so, or a step is not after the one before.
    """
    found: list[tuple[float, float]] = []
    for part in text.split(","):
        rate, _, until = (piece.strip() for piece in part.partition(":"))
        last = float("inf") if until in ("", "-1") else int(until)
        if not 0 <= float(rate) <= 10 or last <= (found[-1][1] if found else 0):
            raise ValueError(part)
        found.append((float(rate), last))
    return found


def result_ending(job: Job) -> str:
    """The ending of the result's name; empty where the result is a folder."""
    if job.get("file_format") == "peft" or job.get("output") == "diffusers":
        return ""
    return ".pt" if job.method == "hypernetwork" else ".safetensors"
