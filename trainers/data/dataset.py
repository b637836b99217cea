"""The training loop's view of the data: `prepare` once, then `Dataset.batch(index)`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from trainers.buckets import Placement, geometry, place, ratio_error
from trainers.data import captions
from trainers.data.cache import Entries, cache_places, cache_root
from trainers.data.index import FileIndex
from trainers.data.kept import kept_pictures
from trainers.data.latents import Cut, LatentStore, centre_cut, cuts_of
from trainers.data.order import Sample, batches_per_epoch, epoch_batches
from trainers.data.picture import Picture, Skipped, counted, first_few
from trainers.data.scan import Scan, scan
from trainers.errors import InputError
from trainers.rng import derived_seed, generator, python_random
from trainers.spec import Job

Report = Callable[[int, int, str], None]
FEWEST_TO_HOLD_OUT = 12
"""With fewer pictures each one is worth more for learning than for measuring."""


@dataclass(frozen=True)
class Batch:
    """One process's share of a global batch of B samples (an empty share has B = 0).

    Attributes:
        latents: [B, 4, h, w] float32, multiplied by the latent scale.
        captions: one text per sample, with everything done to it.
        keys: stable name of each sample (picture and repeat), for keyed random draws.
        weights: [B], the prior weight for regularisation pictures, else 1.
        regularisation: [B] bool, which samples are regularisation pictures.
        masks: [B, 1, h, w] from 0 to 1, the part that is trained being 1; None when none of them has a mask.
        time_ids: [B, 6] float32: original height, width, top and left of the cut, target height, width.
        sample_indices: positions of these samples within the global batch.
        global_size: number of samples of the global batch.
    """

    latents: torch.Tensor
    captions: list[str]
    keys: list[str]
    weights: torch.Tensor
    regularisation: torch.Tensor
    masks: torch.Tensor | None
    time_ids: torch.Tensor
    sample_indices: list[int]
    global_size: int


@dataclass(frozen=True)
class EvaluationItem:
    """One picture to measure on: its mean latent [4, h, w] (scaled), centre cut, caption as written, time_ids [6]."""

    latents: torch.Tensor
    caption: str
    key: str
    time_ids: torch.Tensor


@dataclass
class Prepared:
    """A picture with its bucket and its cached cuts."""

    picture: Picture
    placement: Placement
    cuts: list[Cut]


@dataclass
class Dataset:
    """Pictures with cached latents; every method is a pure function of its arguments and the job."""

    job: Job
    prepared: list[Prepared]
    held_out: list[Prepared]
    prior: list[Prepared]
    store: LatentStore
    batch_size: int
    world_size: int
    latent_scale: float
    fresh_captions: bool
    cache_folder: Path
    skipped: list[Skipped] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    encoded: int = 0  # how many latents had to be made; 0 with a warm cache

    def __post_init__(self) -> None:
        self._buckets = [each.placement.bucket for each in self.prepared]
        self._epochs: dict[tuple[int, int], list[list[Sample]]] = {}
        self.batches_per_epoch = self.batches_in_epoch(self.world_size)

    # --- facts

    @property
    def pictures(self) -> list[Picture]:
        return [each.picture for each in self.prepared]

    @property
    def train_count(self) -> int:
        """Pictures to learn from, with repeats (kohya's `ss_num_train_images`)."""
        return sum(picture.repeats for picture in self.pictures if not picture.is_regularisation)

    @property
    def regularisation_count(self) -> int:
        """Regularisation pictures, with repeats (kohya's `ss_num_reg_images`)."""
        return sum(picture.repeats for picture in self.pictures if picture.is_regularisation)

    def batches_in_epoch(self, world_size: int) -> int:
        return batches_per_epoch(self.pictures, self._buckets, self.batch_size * world_size)

    def bucket_info(self) -> dict[str, object]:
        """As kohya's `ss_bucket_info`: {"buckets": {"0": {"resolution": [w, h], "count": n}}, "mean_img_ar_error"}."""
        counts: dict[tuple[int, int], int] = {}
        for each in self.prepared:
            bucket = each.placement.bucket
            counts[bucket] = counts.get(bucket, 0) + each.picture.repeats
        errors = [ratio_error(each.picture.size, each.placement.bucket) for each in self.prepared]
        buckets = {
            str(number): {"resolution": list(bucket), "count": counts[bucket]}
            for number, bucket in enumerate(sorted(counts))
        }
        return {"buckets": buckets, "mean_img_ar_error": sum(errors) / max(1, len(errors))}

    def tag_frequency(self) -> dict[str, dict[str, int]]:
        """As kohya's `ss_tag_frequency`, without regularisation pictures."""
        return captions.tag_frequency((each for each in self.pictures if not each.is_regularisation), self.job)

    def dataset_dirs(self, regularisation: bool = False) -> dict[str, dict[str, int]]:
        """As kohya's `ss_dataset_dirs` (or `ss_reg_dataset_dirs`): {folder: {"n_repeats", "img_count"}}."""
        folders: dict[str, dict[str, int]] = {}
        for picture in self.pictures:
            if picture.is_regularisation == regularisation:
                facts = folders.setdefault(picture.folder, {"n_repeats": picture.repeats, "img_count": 0})
                facts["img_count"] += 1
        return folders

    def captions_needed(self) -> set[str]:
        """Every text whose embedding may be asked for; training captions only where they come from fixed variants."""
        needed = {self._plain(each.picture) for each in (*self.held_out, *self.prior)}
        if any(picture.options.caption_drop > 0 for picture in self.pictures):
            needed.add("")
        if not self.fresh_captions:
            for picture in self.pictures:
                needed.update(captions.variant_texts(picture, self.job))
        return needed

    # --- batches

    def batch(self, index: int, world_size: int | None = None, rank: int = 0) -> Batch:
        """Global batch `index` (epoch = index // batches per epoch), or process `rank`'s share of it."""
        world_size = self.world_size if world_size is None else world_size
        epoch, number = divmod(index, self.batches_in_epoch(world_size))
        samples = self._epoch(epoch, world_size)[number]
        positions = list(range(rank, len(samples), world_size))
        return self._collate(epoch, samples, positions)

    def _epoch(self, epoch: int, world_size: int) -> list[list[Sample]]:
        key = (epoch, world_size)
        if key not in self._epochs:
            while len(self._epochs) > 1:
                self._epochs.pop(next(iter(self._epochs)))
            self._epochs[key] = epoch_batches(
                self.pictures, self._buckets, self.batch_size * world_size, self.job.seed, epoch
            )
        return self._epochs[key]

    def _collate(self, epoch: int, samples: Sequence[Sample], positions: list[int]) -> Batch:
        latents, masks, texts, keys, regular, times = [], [], [], [], [], []
        for position in positions:
            sample = samples[position]
            prepared = self.prepared[sample.picture]
            picture, key = prepared.picture, f"{prepared.picture.key}#{sample.repeat}"
            cut = python_random(self.job.seed, "cut", epoch, key).choice(prepared.cuts)
            tensors = self.store.read(picture, cut)
            latents.append(self._latent(tensors["moments"], epoch, key))
            masks.append(tensors.get("mask"))
            texts.append(self._caption(picture, epoch, sample.repeat))
            keys.append(key)
            regular.append(picture.is_regularisation)
            times.append(cut.time_ids(picture.size))
        width, height = self.prepared[samples[0].picture].placement.bucket
        is_regular = torch.tensor(regular, dtype=torch.bool)
        empty = torch.zeros(0, 4, height // self.store.factor, width // self.store.factor)
        return Batch(
            latents=torch.stack(latents) if latents else empty,
            captions=texts,
            keys=keys,
            weights=torch.where(is_regular, float(self.job.prior_weight), 1.0),
            regularisation=is_regular,
            masks=self._stack_masks(masks, latents),
            time_ids=torch.tensor(times, dtype=torch.float32).reshape(-1, 6),
            sample_indices=positions,
            global_size=len(samples),
        )

    def _latent(self, moments: torch.Tensor, epoch: int, key: str) -> torch.Tensor:
        """A draw from the autoencoder's distribution (or its mean), scaled; log variance bounded as in LDM."""
        mean, log_variance = moments.chunk(2)
        if not self.job.sample_latents:
            return mean * self.latent_scale
        noise = torch.randn(mean.shape, generator=generator(self.job.seed, "latent", epoch, key))
        return (mean + torch.exp(0.5 * log_variance.clamp(-30.0, 20.0)) * noise) * self.latent_scale

    def _caption(self, picture: Picture, epoch: int, repeat: int) -> str:
        if captions.is_dropped(picture, self.job, epoch, repeat):
            return ""
        if self.fresh_captions:
            return captions.caption_for(picture, f"{epoch}.{repeat}", self.job)
        count = captions.variant_count(picture, self.job)
        variant = python_random(self.job.seed, "variant", epoch, picture.key, repeat).randrange(count)
        return captions.caption_for(picture, variant, self.job)

    @staticmethod
    def _stack_masks(masks: list[torch.Tensor | None], latents: list[torch.Tensor]) -> torch.Tensor | None:
        if all(mask is None for mask in masks):
            return None
        filled = [
            torch.ones(1, *latent.shape[1:]) if mask is None else mask
            for mask, latent in zip(masks, latents, strict=True)
        ]
        return torch.stack(filled)

    # --- measuring

    def _plain(self, picture: Picture) -> str:
        return captions.plain_caption(picture, self.job)

    def evaluation_items(self) -> list[EvaluationItem]:
        """The held-out pictures (validation_data or validation_split), in natural order."""
        return list(self._items(self.held_out))

    def prior_items(self) -> list[EvaluationItem]:
        """The unrelated pictures (prior_data), in natural order; their captions get no trigger word."""
        return list(self._items(self.prior))

    def _items(self, pictures: list[Prepared]) -> Iterator[EvaluationItem]:
        for each in pictures:
            cut = each.cuts[0]
            mean = self.store.read(each.picture, cut)["moments"].chunk(2)[0] * self.latent_scale
            times = torch.tensor(cut.time_ids(each.picture.size), dtype=torch.float32)
            yield EvaluationItem(mean, self._plain(each.picture), each.picture.key, times)


def split_validation(pictures: Sequence[Picture], job: Job) -> tuple[list[Picture], list[Picture]]:
    """(pictures to train on, held-out pictures) by `validation_split`, else as `find_best` asks.

    Chosen by content: the same pictures are held out under every seed and name, and copies stay together.
    """
    contents = {picture.sha256 for picture in pictures if not picture.is_regularisation}
    count = 0
    if job.validation_split > 0:
        count = min(len(contents) - 1, max(1, round(job.validation_split * len(contents))))
    elif job.find_best and len(contents) >= FEWEST_TO_HOLD_OUT:
        count = min(8, max(2, round(len(contents) / 10)))
    if count < 1:
        return list(pictures), []
    chosen = set(sorted(contents, key=lambda each: (derived_seed(0, "validation", each), each))[:count])
    held_out = [each for each in pictures if each.sha256 in chosen and not each.is_regularisation]
    return [each for each in pictures if each.sha256 not in chosen or each.is_regularisation], held_out


def prepare(
    job: Job,
    *,
    encode_moments: Callable[[torch.Tensor], torch.Tensor],
    cache_key: str,
    vae_factor: int = 8,
    report: Report | None = None,
    world_size: int = 1,
    latent_scale: float = 0.18215,
    default_resolution: int = 512,
    run_folder: Path | str | None = None,
    fresh_captions: bool | None = None,
) -> Dataset:
    """Read all pictures and captions, encode what is not cached yet, and return the data set.

    Args:
        encode_moments: pixels [B, 3, H, W] in [-1, 1] -> moments [B, 8, H / factor, W / factor]: mean, log variance.
        cache_key: family, autoencoder's hash and dtype; caches of other keys are never read.
        report: called with (done, total, what).
        world_size: number of processes; a global batch has batch_size * world_size samples.
        default_resolution: the family's, where the job names none.
        run_folder: where to cache when the data folder is read-only.
        fresh_captions: a new variant for every sample (the text encoder is trained); None reads the job.

    Raises:
        InputError: as `scan`; too few pictures left; disk full.
    """
    if not job.data:
        raise InputError("data: is empty; name the folder with the pictures.")
    data, notes = Path(job.data), []
    scans = _scan_all(job, data, run_folder, notes, report)
    root, training = scans.root, scans.training
    pictures, held_out = training.pictures, scans.held_out
    if not job.validation_data:
        pictures, held_out = split_validation(pictures, job)
    pictures = [*pictures, *kept_pictures(pictures, job)]
    if job.get("kept_word") and not job.trigger.strip():
        notes.append("kept_word does nothing, because there is no trigger that it could stand for; give the trigger.")
    if job.find_best and not held_out:
        notes.append(
            f"Overfitting cannot be measured: with fewer than {FEWEST_TO_HOLD_OUT} pictures, all are trained on."
        )

    def prepared(each: list[Picture], measured: bool) -> list[Prepared]:
        return list(_place_all(each, job, default_resolution, vae_factor, measured, training, notes))

    store = LatentStore(Entries(root / "latents", cache_key), vae_factor)
    dataset = Dataset(
        job=job,
        prepared=prepared(pictures, False),
        held_out=prepared(held_out, True),
        prior=prepared(scans.prior, True),
        store=store,
        batch_size=int(training.options.get("batch_size", job.batch_size)),
        world_size=world_size,
        latent_scale=latent_scale,
        fresh_captions=bool(job.get("train_text_encoder", False)) if fresh_captions is None else fresh_captions,
        cache_folder=root,
        skipped=training.skipped,
        notes=training.notes + notes,
    )
    _tell_skipped(dataset, data)
    everything = (*dataset.prepared, *dataset.held_out, *dataset.prior)
    wanted = [(each.picture, cut) for each in everything for cut in each.cuts]
    dataset.encoded = store.ensure(wanted, encode_moments, job.vae_batch_size, report)
    return dataset


def _tell_skipped(dataset: Dataset, data: Path) -> None:
    """Note the files that are not used; `InputError` when nothing is left to train on."""
    few = first_few((f"{each.path.name} ({each.reason})" for each in dataset.skipped), 5)
    if not dataset.train_count:
        raise InputError(f"data: no picture in {data} is left to train on ({few}).")
    if dataset.skipped:
        dataset.notes.append(f"{counted(len(dataset.skipped), 'file')} skipped: {few}.")


@dataclass
class _Scans:
    root: Path
    training: Scan
    held_out: list[Picture]
    prior: list[Picture]


def _scan_all(job: Job, data: Path, run_folder: Path | str | None, notes: list[str], report: Report | None) -> _Scans:
    """All folders that the job names, with one index of files."""
    if not data.exists():
        raise InputError(f"data: {data} does not exist; name the folder with the pictures.")
    if not data.is_dir() and data.suffix.lower() != ".toml":
        raise InputError(f"data: {data} is not a folder; name the folder with the pictures or a dataset .toml file.")
    index = FileIndex.find(cache_places(job.cache_dir, data, run_folder))

    def read(option: str, **how: object) -> Scan:
        try:
            return scan(job[option], job, index=index, report=report, **how)
        except InputError as error:
            raise InputError(*(each.replace("data:", f"{option}:", 1) for each in error.problems)) from None

    training = read("data")
    if job.regularisation_data:
        training.add(read("regularisation_data", is_regularisation=True, prefix="reg:"))
    held_out, prior = Scan(), Scan()
    if job.validation_data:
        held_out = read("validation_data", prefix="val:", measured=True)
    if job.prior_data:
        # What is measured on them is the model's own behaviour, so no trigger word and no repeats.
        prior = read("prior_data", is_regularisation=True, prefix="prior:", measured=True)
    root = cache_root(job.cache_dir, data, run_folder, notes)  # made only now: not beside a folder without pictures
    index.save(root)
    for each in (held_out, prior):
        training.skipped += each.skipped
        training.notes += [note for note in each.notes if note not in training.notes]
    return _Scans(root, training, held_out.pictures, prior.pictures)


def _place_all(
    pictures: list[Picture], job: Job, resolution: int, factor: int, measured: bool, scanned: Scan, notes: list[str]
) -> Iterator[Prepared]:
    """Each picture with its bucket; those too small for one are added to the skipped."""
    for picture in pictures:
        shape = geometry(job, resolution, factor, picture.options.geometry)
        placement = place(picture.size, shape)
        if placement is None:
            reason = f"{picture.size[0]} x {picture.size[1]} is too small for a bucket while upscale is off"
            scanned.skipped.append(Skipped(picture.path, reason))
            continue
        cuts = [centre_cut(placement)] if measured else cuts_of(picture, placement, job.seed)
        yield Prepared(picture, placement, cuts)
