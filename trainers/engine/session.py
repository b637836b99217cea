"""Everything one run needs, made ready in the order that costs least memory and time:
check, plan, cache pictures, cache captions, load the UNet, place the trainable parameters."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trainers.bases.build import import_libraries
from trainers.bases.detect import BaseInfo, inspect_base
from trainers.bases.live import CannotAttach, LiveBase
from trainers.bases.loader import load_base
from trainers.bases.prediction import should_measure
from trainers.bases.text import check_clip_skip
from trainers.data.cache import TextCache
from trainers.data.dataset import Dataset, prepare
from trainers.engine import attached, memory, objectives, optimizers, precision
from trainers.engine.attached import Lease
from trainers.engine.class_pictures import with_class_pictures
from trainers.engine.conditioning import Conditioner
from trainers.engine.ema import Ema
from trainers.engine.fused import FusedOptimizer
from trainers.engine.memory_use import MemoryUse
from trainers.engine.models import Models
from trainers.engine.own_prior import PROMPTS as PRIOR_PROMPTS
from trainers.engine.own_prior import wants_own_prior
from trainers.engine.runfolder import RunFolder
from trainers.engine.verdict import verdict_prompts
from trainers.engine.world import World
from trainers.engine.writing import FileHashes, hash_in_background
from trainers.errors import InputError
from trainers.events import EventLog
from trainers.formats.families import FAMILIES, Family
from trainers.methods import Trainable, count_parameters, setup_for, trains_text
from trainers.methods.textual_inversion import words_to_teach
from trainers.options import rate_steps
from trainers.spec import Job

Report = Callable[[int, int, str], None]


def complete(job: Job, info: BaseInfo) -> Job:
    """The job with every value that depends on the base filled in; what was given stays."""
    family = FAMILIES[info.family]
    rate = rate_steps(job.learning_rates)[0][0] if job.learning_rates else job.learning_rate
    if rate is None:
        rate = optimizers.default_learning_rate(job, info.family)
    changes: dict[str, Any] = {
        "family": info.family,
        "prediction": info.prediction if job.prediction == "auto" else job.prediction,
        "resolution": job.resolution or stated_resolution(info) or family.resolution,
        "clip_skip": job.clip_skip or family.default_clip_skip,
        "learning_rate": rate,
    }
    if "text_encoder_lr" in job and job.text_encoder_lr is None:
        changes["text_encoder_lr"] = optimizers.default_text_encoder_lr(job.replace(learning_rate=rate), info.family)
    if "vectors" in job:
        changes["trigger"] = next(iter(words_to_teach(job)))
    if "embedding_lr" in job and job.embedding_lr is None:
        changes["embedding_lr"] = optimizers.default_embedding_lr(job, info.family)
    if job.get("weights_dtype") == "bf16":
        changes["precision"] = "bf16"
    if "rank" in job:
        changes["alpha"] = job.alpha if job.alpha is not None else job.rank / 2
        if job.conv_rank and job.conv_alpha is None:
            changes["conv_alpha"] = job.conv_rank / 2
    done = job.replace(**changes)
    if done.zero_terminal_snr is None:
        done = done.replace(zero_terminal_snr=info.zero_terminal_snr and done.prediction == "v")
    for encoder in family.text_encoders:
        check_clip_skip(encoder, done.clip_skip)
    problem = objectives.zero_terminal_snr_problem(done.prediction, done.zero_terminal_snr)
    if problem:
        raise InputError(problem)
    return done


def stated_resolution(info: BaseInfo) -> int | None:
    """The side a base's own metadata name (ModelSpec's `resolution`, as 1024x1024), or None."""
    side = info.metadata.get("modelspec.resolution", "").partition("x")[0]
    return int(side) if side.isdigit() and 64 <= int(side) <= 4096 else None


def check_base(job: Job) -> tuple[Job, BaseInfo]:
    """The complete job and what is known of its base; reads headers only, unless only the model itself can say what it
    predicts (an SD2 file without a word about it)."""
    info = inspect_base(Path(job.base), family=job.family)
    if job.prediction == "auto" and should_measure(FAMILIES[info.family], info.prediction_source):
        load_base(info.path, info=info, parts=("unet", "text"), dtype=torch.bfloat16)  # writes it into `info`
    return complete(job, info), info


@dataclass
class Session:
    """The parts of one run; `loop.Loop` drives them."""

    job: Job
    info: BaseInfo
    folder: RunFolder
    world: World
    events: EventLog
    say: Callable[[str], None]
    device: torch.device
    dtype: torch.dtype
    models: Models
    dataset: Dataset
    validation: list[Any]
    prior: list[Any]
    conditioner: Conditioner
    trainable: Trainable
    optimizer: torch.optim.Optimizer | FusedOptimizer
    alphas_cumprod: torch.Tensor
    plan: memory.MemoryPlan
    base_hashes: Future[FileHashes]
    vae_hashes: Future[FileHashes]
    memory_use: MemoryUse
    lease: Lease
    host_base: LiveBase | None = None
    ema: Ema | None = None
    scaler: Any = None
    prepared: Any = None  # (index, batch, what is random about it) of the coming micro step

    @property
    def family(self) -> Family:
        return FAMILIES[self.job.family]

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.dataset.batches_per_epoch // self.job.gradient_accumulation)

    @property
    def total_steps(self) -> int:
        return self.job.steps or self.job.epochs * self.steps_per_epoch

    def parameters(self) -> list[torch.nn.Parameter]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def autocast(self) -> AbstractContextManager[Any]:
        if self.dtype == torch.float32:  # older versions of torch do not know autocast on every device
            return nullcontext()
        # Each weight is used once in a pass, so a cache of cast weights would only hold them longer.
        return torch.autocast(self.device.type, self.dtype, cache_enabled=False)

    def predict(
        self, noisy: torch.Tensor, timesteps: torch.Tensor, captions: list[str], time_ids: torch.Tensor
    ) -> torch.Tensor:
        """The UNet's answer [B, 4, h, w] for noisy latents [B, 4, h, w] under their captions."""
        with self.autocast():
            hidden, pooled = self.conditioner(captions)
            extra = {}
            if pooled is not None:
                extra = {"text_embeds": pooled, "time_ids": time_ids.to(self.device, torch.float32)}
            return self.models.base.unet(
                noisy.to(self.device, self.dtype),
                timesteps.to(self.device),
                encoder_hidden_states=hidden,
                added_cond_kwargs=extra,
            ).sample


def make_plan(job: Job, info: BaseInfo, device: torch.device, attached: bool = False) -> memory.MemoryPlan:
    """The memory plan of a complete job, before anything is loaded; `attached`: over a WebUI's own base."""
    free = memory.free_bytes(device)
    if job.memory_limit:
        within = int(job.memory_limit * 2**30) - memory.driver_bytes(device)
        free = within if free is None else min(free, within)
    return memory.make_plan(
        family=info.family,
        parameters=info.parameters,
        trainable=count_parameters(info, job),
        job=job,
        resolution=job.resolution,
        device_type=device.type,
        free_bytes=free,
        attached=attached,
    )


def _loss_scaler(dtype: torch.dtype, device: torch.device) -> Any:
    """The gradient scaler, or None. Its scale is made at once: a process whose first batch is empty has nothing to
    scale and yet takes part in the step."""
    scaler = precision.loss_scaler(dtype, device)
    if scaler is not None:
        scaler.scale(torch.zeros((), device=device))
    return scaler


def _make_dataset(job: Job, models: Models, folder: RunFolder, world: World, report: Report) -> Dataset:
    """Caches every picture that is not cached yet."""
    return prepare(
        job,
        encode_moments=models.encode_moments,
        cache_key=models.vae_fingerprint(),
        report=report,
        world_size=world.size,
        latent_scale=FAMILIES[job.family].latent_scale,
        run_folder=folder.path,
    )


def _make_conditioner(job: Job, models: Models, texts: set[str], cache: Path, report: Report) -> Conditioner:
    trained = trains_text(job)
    conditioner = Conditioner(
        models, clip_skip=job.clip_skip, max_chunks=job.max_chunks, trained=trained, dtype=models.dtype
    )
    if not trained:
        key = models.text_fingerprint(f"clip skip {job.clip_skip}, chunks {job.max_chunks}")

        def encoding(done: int, total: int, _: str) -> None:
            report(done, total, "encoding captions")

        conditioner.prepare(texts, TextCache(cache / "text", key), encoding)
        models.drop_text()
    return conditioner


def _attached_base(
    folder: RunFolder, lease: Lease, job: Job, info: BaseInfo, device: torch.device, note: Callable[[str], None]
) -> LiveBase | None:
    """The base over the WebUI's tensors where that was agreed; None, and a note, where it turns out not to work."""
    if lease.mode != attached.ATTACH:
        return None
    # Other kinds than LoRA form their weights from the base's, as it is.
    only = None if job.get("kind", "lora") == "lora" else precision.resolve(job.precision, device)
    try:
        return attached.attach(folder.path, lease, info, only)
    except CannotAttach as reason:
        note(f"The base is loaded from its file, because {reason}.")
        return None


def _tell_attached(events: EventLog, live: LiveBase, before: int | None) -> None:
    """What attaching took: memory of this process alone that came with the UNet and the trained text encoders."""
    after = attached.private_bytes()
    grown = None if before is None or after is None else max(0, after - before)
    events.emit("attached", kind=live.kind, bytes=live.nbytes, tensors=live.tensors, private_bytes=grown)


def _tell_plan(plan: memory.MemoryPlan, job: Job, device: torch.device, events: EventLog) -> None:
    events.emit(
        "plan", items=dict(plan.items), peak_bytes=plan.peak_bytes, precision=plan.precision,
        base_dtype=plan.base_dtype, checkpointing=plan.gradient_checkpointing, lines=plan.lines(),
        family=job.family, resolution=job.resolution, device=device.type,
    )  # fmt: skip


def _texts_to_encode(job: Job, dataset: Dataset, models: Models) -> set[str]:
    """Every text that will be read; the autoencoder is kept only where pictures will be drawn."""
    texts = dataset.captions_needed()
    drawn = {*job.sample_prompts, *verdict_prompts(job)}
    if drawn:
        texts |= {*drawn, job.negative_prompt}
        models.park_vae()
    else:
        models.drop_vae()
    if wants_own_prior(job):
        texts |= set(PRIOR_PROMPTS)
    return texts | {""}  # what shorter prompts of a batch are filled up with


def _place_trainable(
    job: Job, models: Models, conditioner: Conditioner, dtype: torch.dtype, live: LiveBase | None, events: EventLog
) -> Trainable:
    """Loads what learns and puts the trainable parameters into it."""
    import_libraries()
    before = attached.private_bytes()
    models.need_unet()
    if conditioner.trained:
        models.need_text()
    if live is None:
        return setup_for(job.method)(models.base, job)
    _tell_attached(events, live, before)
    with attached.open_for_adapters(models.base, dtype):
        return setup_for(job.method)(models.base, job)


def _make_optimizer(job: Job, trainable: Trainable, world: World) -> torch.optim.Optimizer | FusedOptimizer:
    if not job.get("fused_backward"):
        return optimizers.make_optimizer(trainable.param_groups(), job)
    if world.size > 1:
        raise InputError("fused_backward: several processes add their gradients up, which it cannot; turn it off.")
    return FusedOptimizer(trainable.param_groups(), job)


def _noise_schedule(job: Job, models: Models) -> torch.Tensor:
    """The base's alphas_cumprod [1000], on the CPU, rescaled where the job asks for it."""
    alphas = models.base.alphas_cumprod.float().cpu()
    return objectives.rescale_zero_terminal_snr(alphas) if job.zero_terminal_snr else alphas


def open_session(
    job: Job,
    info: BaseInfo,
    folder: RunFolder,
    world: World,
    events: EventLog,
    say: Callable[[str], None],
    report: Report,
) -> Session:
    """Make everything ready for the first step. `say` prints a line for the person, `report` shows progress."""
    device = precision.device_for(job.device) if world.device is None else world.device
    if device.type == "cuda":
        torch.cuda.set_device(device)  # so that nothing of the run comes to lie on another card
    threads = job.threads or job.run.get("threads")
    if threads:
        torch.set_num_threads(int(threads))
    lease = attached.read_lease(folder.path)

    def note(text: str) -> None:
        events.emit("note", text=text)
        say(text)

    live = _attached_base(folder, lease, job, info, device, note)
    plan = make_plan(job, info, device, attached=live is not None)
    dtype = plan.compute_dtype
    if world.is_main:
        _tell_plan(plan, job, device, events)
        for line in plan.lines():
            say(line)
    if job.memory_limit:
        memory.hold_to(job.memory_limit, device)
    models = Models(info, job, device, plan.load_dtype if live is None else dtype, live)
    use = MemoryUse(device)
    if not world.is_main:
        world.wait()  # the main process makes the caches, the others find them made
    job = with_class_pictures(job, models, folder.path, report)
    dataset = _make_dataset(job, models, folder, world, report)
    texts = _texts_to_encode(job, dataset, models)
    use.end_of("caching pictures")
    conditioner = _make_conditioner(job, models, texts, dataset.cache_folder, report)
    if world.is_main:
        world.wait()
    if not conditioner.trained:
        use.end_of("caching captions")
    trainable = _place_trainable(job, models, conditioner, dtype, live, events)
    plan.apply(models.base)
    optimizer = _make_optimizer(job, trainable, world)
    use.end_of("loading")
    for text in [*dataset.notes, *models.notes]:
        note(text)
    session = Session(
        job=job, info=info, folder=folder, world=world, events=events, say=say, device=device, dtype=dtype,
        models=models, dataset=dataset, validation=dataset.evaluation_items(), prior=dataset.prior_items(),
        conditioner=conditioner, trainable=trainable, optimizer=optimizer,
        alphas_cumprod=_noise_schedule(job, models), plan=plan, lease=lease, host_base=live,
        base_hashes=hash_in_background(job.base if world.is_main else None),
        vae_hashes=hash_in_background(job.vae if world.is_main else None),
        scaler=_loss_scaler(dtype, device), memory_use=use,
    )  # fmt: skip
    if job.ema:
        session.ema = Ema(session.parameters(), job.ema)
    return session
