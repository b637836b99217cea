"""The rules that tie several options of a job together."""

from __future__ import annotations

from collections.abc import Iterator

from trainers.options import BLOCKS, CHECKS, ONE_PASS, RUN_FOLDERS, concepts_of, name_problem, rate_steps, result_ending
from trainers.spec import Job


def rules(job: Job) -> Iterator[str]:
    """Problems that only show when several options are seen together."""
    problem = name_problem(job.name)
    if problem:
        yield problem
    if not job.data:
        yield "data: is empty; name the folder with the pictures."
    yield from _one_pass_problems(job) if job.method in ONE_PASS else _loop_problems(job)


def _one_pass_problems(job: Job) -> Iterator[str]:
    if not job.clip_model:
        yield (
            "clip_model: is empty; name the folder of a CLIP model, such as a copy of "
            "openai/clip-vit-large-patch14 (assets/clip for the embedded base)."
        )


def _loop_problems(job: Job) -> Iterator[str]:
    if not job.base:
        yield "base: is empty; name the model to start from (a .safetensors file or a diffusers folder)."
    if job.steps is None and job.epochs is None:
        yield "steps: give steps or epochs, so that the run knows when to end."
    if job.steps is not None and job.epochs is not None:
        yield f"steps: both steps ({job.steps}) and epochs ({job.epochs}) are given; give one of them."
    if job.timestep_min > job.timestep_max:
        yield f"timestep_min: {job.timestep_min} is above timestep_max ({job.timestep_max})."
    if job.bucket_min > job.bucket_max:
        yield f"bucket_min: {job.bucket_min} is above bucket_max ({job.bucket_max})."
    if job.get("kept_word") and job.prior_target != "base":
        yield (
            "kept_word: holds the model to what it was, so prior_target has to be base; set that, or leave "
            "kept_word empty."
        )
    if job.debiased and job.min_snr_gamma:
        yield "debiased: cannot be used together with min_snr_gamma; set min_snr_gamma to 0."
    if job.zero_terminal_snr and job.prediction == "epsilon":
        yield "zero_terminal_snr: needs a model that predicts v, but prediction is epsilon; turn zero_terminal_snr off."
    if job.adaptive_noise_offset and not job.noise_offset:
        yield "adaptive_noise_offset: changes the noise offset, but noise_offset is 0; give noise_offset a value."
    if not result_ending(job) and job.name.lower() in RUN_FOLDERS:
        yield (
            f"name: a run folder has a folder {job.name!r} of its own, so the result's cannot be called so; "
            "choose another."
        )
    if bool(job.class_prompt) != bool(job.class_pictures):
        yield "class_pictures: class_prompt and class_pictures belong together; give both or neither."
    if job.get("kind", "lora") != "lora":
        yield from _kind_problems(job)
    if job.method == "hypernetwork":
        yield from _network_problems(job)
    if job.method == "dreambooth":
        yield from _whole_model_problems(job)
    if job.method == "textual_inversion":
        if job.trigger not in ("", job.name):
            yield f"trigger: an embedding's word is its name, {job.name!r}; leave trigger empty."
        yield from _concept_problems(job)
    if job.method == "pivotal":
        yield from _pivotal_problems(job)
    if job.learning_rates:
        yield from _rate_problems(job)
    yield from _single_rate_problems(job)
    if "train_unet" in job and not (job.train_unet or job.train_text_encoder):
        yield "train_unet: neither the UNet nor the text encoder is trained, so nothing would be learned; turn one on."
    yield from _block_problems(job)
    yield from _override_problems(job)


def _override_problems(job: Job) -> Iterator[str]:
    from trainers.errors import did_you_mean

    for name in job.override_checks:
        if name not in CHECKS:
            yield f"override_checks: {name[:60]!r} is not a check; checks are {', '.join(CHECKS)}." + did_you_mean(
                name[:60], CHECKS
            )


def _concept_problems(job: Job) -> Iterator[str]:
    found = concepts_of(job)
    if len(found) != len(job.concepts) or job.name.lower() in (word.lower() for word in found):
        yield f"concepts: every word may stand there once, and not the result's own name, {job.name!r}."
    for word in found:
        problem = name_problem(word)
        if problem:
            yield "concepts: each is written word=what to start from, and the word is a file's name; " + problem


def _pivotal_problems(job: Job) -> Iterator[str]:
    word = job.trigger or job.name
    problem = name_problem(word)
    if problem:
        yield problem.replace("name:", "trigger:", 1)
    elif job.bundle and "." in word:
        yield (
            f"trigger: a word with a dot, as {word!r}, cannot be kept in a LoRA's file; choose another, or set "
            "bundle off."
        )
    if job.bundle and job.file_format != "kohya":
        yield f"file_format: {job.file_format} has no place for a word's vectors; use kohya, or set bundle off."
    if not job.bundle and word.lower() == job.name.lower():
        yield "trigger: with bundle off the word's file needs a name of its own; give a trigger that is not the name."


def _rate_problems(job: Job) -> Iterator[str]:
    try:
        first = rate_steps(job.learning_rates)[0][0]
    except ValueError:
        yield (
            f"learning_rates: {job.learning_rates[:60]!r} will not do; it is written as 0.005:100, 1e-3:1000, 1e-4, "
            "each rate with a later step than the one before."
        )
        return
    if job.learning_rate not in (None, first) or not first:
        yield "learning_rates: takes the place of learning_rate; leave that empty, and begin with a rate above 0."
    if job.optimizer in ("prodigy", "schedulefree"):
        yield f"learning_rates: {job.optimizer} finds its rate itself; leave learning_rates empty, or use adamw."


def _kind_problems(job: Job) -> Iterator[str]:
    if job.file_format != "kohya":
        yield f"file_format: {job.file_format} has no names for kind {job.kind}; use kohya, which every program reads."
    if job.base_dtype == "fp8":
        yield f"base_dtype: kind {job.kind} computes with the base's own weights, which fp8 rounds; use bf16 or fp16."
    if job.lora_plus != 1:
        yield f"lora_plus: is for kind lora; with kind {job.kind} leave it at 1."
    if job.block_ranks and job.kind in ("ia3", "full") and any(rank for rank in job.block_ranks.values()):
        yield f"block_ranks: kind {job.kind} has no rank; 0 leaves a block out, other numbers do nothing."


def _network_problems(job: Job) -> Iterator[str]:
    for name in ("layer_structure", "layer_dropout"):
        try:
            [float(value) for value in job.get(name)]
        except ValueError:
            yield f"{name}: takes numbers such as 1|2|1."
            return
    layers, dropout = [float(v) for v in job.layer_structure], [float(v) for v in job.layer_dropout]
    if len(layers) < 2 or layers[0] != 1 or layers[-1] != 1 or not all(0 < factor <= 64 for factor in layers):
        yield "layer_structure: has to begin and end with 1, with factors up to 64 between, such as 1|2|1."
    elif dropout and (len(dropout) != len(layers) or not all(0 <= p < 1 for p in dropout) or dropout[0] or dropout[-1]):
        yield (
            "layer_dropout: needs one number from 0 to below 1 for each entry of layer_structure, the first and last 0."
        )


def _whole_model_problems(job: Job) -> Iterator[str]:
    if job.prior_target == "base":
        yield (
            "prior_target: base needs the untrained model beside the trained one, which dreambooth does not "
            "keep; use noise."
        )
    if job.base_dtype == "fp8":
        yield f"base_dtype: {job.base_dtype} is for frozen weights, and dreambooth trains them; leave it on auto."
    if job.fused_backward:
        yield from _fused_problems(job)
    elif job.weights_dtype != "fp32":
        yield f"weights_dtype: {job.weights_dtype} needs fused_backward; turn that on."
    if job.weights_dtype == "bf16" and job.precision not in ("auto", "bf16"):
        yield f"precision: weights in bf16 are computed with in bf16, not {job.precision}; leave precision on auto."
    for block in job.blocks:
        if block not in BLOCKS:
            yield f"blocks: {block!r} is not a block; blocks are {', '.join(BLOCKS)}."


def _fused_problems(job: Job) -> Iterator[str]:
    if job.gradient_accumulation != 1:
        yield "gradient_accumulation: with fused_backward each gradient is gone at once; set it to 1."
    if job.max_grad_norm:
        yield "max_grad_norm: with fused_backward gradients cannot be shortened together; set it to 0."
    if job.optimizer in ("prodigy", "schedulefree"):
        yield (
            f"optimizer: {job.optimizer} looks at all weights together and cannot be fused; use adafactor, adamw "
            "or lion."
        )
    if job.precision == "fp16":
        yield "precision: fp16 scales its gradients, which fused_backward cannot; use bf16 or fp32."


def _single_rate_problems(job: Job) -> Iterator[str]:
    """Prodigy estimates one learning rate for all it trains, and refuses parts with rates of their own."""
    if job.optimizer != "prodigy":
        return
    if job.get("lora_plus", 1) != 1:
        yield "lora_plus: prodigy finds one learning rate for everything; leave lora_plus at 1, or use adamw."
    if job.get("block_lrs"):
        yield "block_lrs: prodigy finds one learning rate for everything; leave block_lrs empty, or use adamw."
    rate = 1.0 if job.learning_rate is None else job.learning_rate
    if job.get("embedding_lr") not in (None, 0, rate):
        yield "embedding_lr: prodigy finds one learning rate for everything; leave embedding_lr empty, or use adamw."
    if job.get("text_encoder_lr") not in (None, 0, rate):
        yield (
            "text_encoder_lr: prodigy finds one learning rate for everything; leave text_encoder_lr empty, or "
            "use adamw."
        )


def _block_problems(job: Job) -> Iterator[str]:
    from trainers.errors import did_you_mean

    for option in ("block_ranks", "block_lrs"):
        for block, value in (job.get(option) or {}).items():
            if block not in BLOCKS:
                yield f"{option}: {block!r} is not a block; blocks are {', '.join(BLOCKS)}." + did_you_mean(
                    block, BLOCKS
                )
            elif value < 0 or (option == "block_ranks" and value != int(value)):
                yield f"{option}: {block}={value:g} will not do; it takes a number of at least 0."
