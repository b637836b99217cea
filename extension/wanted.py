"""What the prompts of one batch ask for: tags read, files found, and everything that is wrong said in sentences."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from extension.injection.adapter_file import Adapter, AdapterFiles, Stamp
from extension.injection.aesthetic import AestheticFiles, AestheticUse
from extension.injection.embeddings import Embedding, EmbeddingStore, bundled_embeddings, read_embedding
from extension.injection.from_tags import aesthetic_use_of, network_use_of, use_of
from extension.injection.hypernetworks import NetworkFiles, NetworkUse
from extension.injection.scales import Use
from extension.listing import Listing
from extension.prompt import (
    ADAPTER_KINDS,
    KINDS,
    Active,
    Region,
    Tag,
    constant_weights,
    nearest,
    parse_batch,
    printable,
)
from extension.prompt.batch import BatchTags
from extension.prompt.blocks import lengths_for
from extension.prompt.tags import ALL, Strength
from trainers.errors import InputError
from trainers.formats.hashes import file_body_sha256, file_sha256
from trainers.formats.hypernetworks import Hypernetwork


@dataclass
class Library:
    """Where names in prompts lead.

    Attributes:
        adapters: files for `<lora:…>` and `<lyco:…>`.
        files: their contents' indexes.
        embeddings: what `<ti:…>` and plain names mean.
        masks: pictures for `mask=`, or None where there are none.
        hypernetworks: files for `<hypernet:…>`, or None where those tags are the host's own to act on.
        aesthetics: files for `<aesthetic:…>`, or None where there are none.
        live: newest snapshot of a run in progress by its name and the tag's kind, for `live=1`; an InputError says why
            there is none.
        shown: files that lie in none of the folders, by a name of their own, while they are drawn with (a run's files).
    """

    adapters: Listing
    embeddings: EmbeddingStore
    files: AdapterFiles = field(default_factory=AdapterFiles)
    masks: Listing | None = None
    hypernetworks: Listing | None = None
    networks: NetworkFiles = field(default_factory=NetworkFiles)
    aesthetics: Listing | None = None
    aesthetic_files: AestheticFiles = field(default_factory=AestheticFiles)
    live: Callable[[str, str], Path | None] | None = None
    shown: dict[str, Path] = field(default_factory=dict)

    def rescan(self) -> bool:
        """Looks for new, changed and removed files; True when anything is different."""
        changed = [self.adapters.rescan(), self.embeddings.rescan()]
        changed += [
            listing.rescan() for listing in (self.masks, self.hypernetworks, self.aesthetics) if listing is not None
        ]
        return any(changed)


@dataclass(frozen=True)
class Found:
    """A tag that acts and the file it names."""

    active: Active
    adapter: Adapter

    @property
    def tag(self) -> Tag:
        return self.active.tag


@dataclass
class Wanted:
    """What a batch asks for.

    Attributes:
        batch: the prompts as read.
        found: tags of adapters whose file is there, in order.
        embedding_tags: `<ti:…>` tags whose embedding is there.
        shown: embeddings of runs in progress, which take the place of what has their names.
        networks: tags of hypernetworks whose file is there.
        aesthetics: tags of aesthetic gradients whose file is there, as their uses.
        others: tags that are the host's own to act on (hypernetworks, where the library has none), with their picture.
        missing: tags of adapters that name no listed file.
        reports: one sentence for everything that is wrong.
    """

    batch: BatchTags
    found: list[Found] = field(default_factory=list)
    embedding_tags: list[tuple[Active, Embedding]] = field(default_factory=list)
    shown: list[Embedding] = field(default_factory=list)
    networks: list[tuple[Active, Hypernetwork]] = field(default_factory=list)
    aesthetics: list[AestheticUse] = field(default_factory=list)
    others: list[Active] = field(default_factory=list)
    missing: list[Active] = field(default_factory=list)
    reports: list[str] = field(default_factory=list)

    @property
    def prompts(self) -> list[str]:
        """The prompts without tags, one per picture."""
        return [parsed.clean_text for parsed in self.batch.prompts]

    @property
    def negatives(self) -> list[str]:
        """The negative prompts without tags, one per picture."""
        return [parsed.clean_text for parsed in self.batch.negatives]

    @property
    def _unet_tags(self) -> list[Tag]:
        return [one.tag for one in self.found] + [active.tag for active, _ in self.networks]

    @property
    def _gradient_tags(self) -> list[Tag]:
        return [active.tag for active in self.batch.active if active.tag.kind == "aesthetic"] if self.aesthetics else []

    def embeddings(self, store: EmbeddingStore) -> EmbeddingStore:
        """What names in these prompts mean."""
        return store.showing(self.shown) if self.shown else store

    @property
    def regions(self) -> list[Region]:
        """The regions that tags name, each once."""
        tags = [*self._unet_tags, *self._gradient_tags]
        return list(dict.fromkeys(tag.region for tag in tags if tag.region is not None))

    @property
    def needs_rows(self) -> bool:
        """Whether some tag acts on some rows of the batch only."""
        return bool(self.regions) or any(tag.negative or tag.scope != ALL for tag in self._unet_tags)

    @property
    def constant_text(self) -> bool:
        """Whether every tag asks for the same text-encoder weight from the first step to the last."""
        return all(_constant_text(tag) for tag in [*[one.tag for one in self.found], *self._gradient_tags])

    def uses(self, family: str) -> list[Use]:
        """The adapters' uses on a model of this family, for `Injection.begin`."""
        return [use_of(one.tag, one.adapter, family, one.active.picture) for one in self.found]

    def block_reports(self, family: str) -> list[str]:
        """Sentences about block weights whose number does not describe this family."""
        return [
            f"{printable(one.tag.source_text)}: {len(one.tag.blocks.values)} block weights do not describe this model; "
            f"it has {' or '.join(map(str, lengths_for(family)))}. Blocks that are not mentioned get 0."
            for one in self.found
            if one.tag.blocks is not None and not one.tag.blocks.fits(family)
        ]

    def network_uses(self) -> list[NetworkUse]:
        """The hypernetworks' uses, for `extension.injection.hypernetworks.NetworkAttachment`."""
        return [network_use_of(active.tag, network, active.picture) for active, network in self.networks]

    def fingerprint(self) -> str:
        """Changes whenever other tags, another strength or another content of a file would change a prompt's encoding.

        Hosts keep encoded prompts by their text; this belongs beside the text.
        """
        lines = [f"{one.active.picture}\0{one.tag!r}\0{one.tag.clean_span}\0{one.adapter.stamp}" for one in self.found]
        lines += [f"{active.picture}\0{active.tag!r}\0{item.stamp}" for active, item in self.embedding_tags]
        lines += [f"{tag!r}" for tag in self._gradient_tags]
        lines += [f"{use.whom}\0{use.stamp}\0{use.embedding.projection is None}" for use in self.aesthetics]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16] if lines else ""

    def ti_hashes(self) -> dict[str, str]:
        """Name -> the first 12 digits of the file's hash, for the `<ti:…>` tags."""
        found = {}
        for _, item in self.embedding_tags:
            with suppress(OSError):  # a run in progress takes its snapshot away when a newer one is there
                found |= {item.name: file_sha256(item.source)[:12]} if item.source is not None else {}
        return found

    def lora_hashes(self) -> dict[str, str]:
        """Name as typed -> the first 12 digits of the file's hash, as A1111 writes to `Lora hashes`."""
        return {one.tag.name.strip(): file_hash(one.adapter)[:12] for one in self.found}


def _constant_text(tag: Tag) -> bool:
    if constant_weights(tag) is not None and (tag.hires is None or constant_weights(tag, hires=True) is not None):
        return True
    passes: list[Strength] = [tag.strength(hires) for hires in (False, True)]
    return all(strength.te.constant == 0.0 for strength in passes)


_HASHES: dict[Stamp, str] = {}


def file_hash(adapter: Adapter) -> str:
    """The hash by which the field knows an adapter's file: from its header where it is stated, else of its tensors.

    Hex digits without a prefix; kept for each content of a file.
    """
    known = _HASHES.get(adapter.stamp)
    if known is None:
        of_file = file_body_sha256 if adapter.path.suffix.lower() == ".safetensors" else file_sha256
        stated = adapter.metadata.get("sshs_model_hash", "").removeprefix("0x")
        _HASHES[adapter.stamp] = known = stated or of_file(adapter.path)
    return known


def read_wanted(
    prompts: Sequence[str],
    negatives: Sequence[str],
    library: Library,
    *,
    default_scope: str = ALL,
    kinds: Iterable[str] = KINDS,
    protect_escapes: bool = False,
) -> Wanted:
    """Read the prompts of a batch and find the files their tags name; nothing here raises for any text or file.

    Args:
        prompts, negatives: one per picture (or one negative for all).
        library: where names lead; the caller rescans it.
        default_scope, kinds, protect_escapes: see `extension.prompt.parse_prompt`.
    """
    batch = parse_batch(
        prompts, negatives, default_scope=default_scope, kinds=frozenset(kinds), protect_escapes=protect_escapes
    )
    wanted = Wanted(batch, reports=[_sentence(entry.error, entry.picture, entry.negative) for entry in batch.errors])
    for active in batch.active:
        _look_up(active, library, wanted)
    wanted.reports = list(dict.fromkeys(wanted.reports))
    return wanted


def _sentence(error: object, picture: int, negative: bool) -> str:
    place = ("the negative prompt" if negative else "the prompt") + (f" of picture {picture + 1}" if picture else "")
    return f"{error} (in {place})"


def _look_up(active: Active, library: Library, wanted: Wanted) -> None:
    """Sorts one tag into what was found, what is missing, and what is not ours."""
    tag = active.tag
    if tag.kind != "ti" and not _region_known(tag, library, wanted):
        return
    if tag.kind in ADAPTER_KINDS:
        _look_up_adapter(active, library, wanted)
    elif tag.kind == "ti":
        _look_up_embedding(active, library, wanted)
    elif tag.kind == "aesthetic":
        _look_up_aesthetic(active, library, wanted)
    elif library.hypernetworks is not None:
        _look_up_network(active, library, wanted)
    else:
        wanted.others.append(active)
        if tag.live:
            wanted.reports.append(f"{printable(tag.source_text)}: live=1 does nothing here, as the WebUI draws these.")


def without_folders(problem: object, paths: Iterable[Path]) -> str:
    """A sentence with only the names of these files: pictures carry it to other people, whom folders do not concern."""
    sentence = str(problem)
    for path in paths:
        sentence = sentence.replace(str(path), path.name)
    return sentence


def _look_up_embedding(active: Active, library: Library, wanted: Wanted) -> None:
    tag = active.tag
    item = library.embeddings.get(tag.name.strip())
    path = _live(tag, library, wanted) if tag.live else None
    if path is not None:
        try:
            item = replace(read_embedding(path), name=item.name if item is not None else tag.name.strip())
            wanted.shown.append(item)
        except InputError as problem:
            wanted.reports.append(f"{printable(tag.source_text)}: {without_folders(problem, [path])}")
    if item is not None:
        wanted.embedding_tags.append((active, item))
    else:
        wanted.reports.append(_not_there(tag, "embedding", nearest(tag.name, library.embeddings.names())))


def _look_up_network(active: Active, library: Library, wanted: Wanted) -> None:
    path = _live(active.tag, library, wanted) if active.tag.live else None
    path = path or library.hypernetworks.find(active.tag.name)
    if path is None:
        near = library.hypernetworks.nearest(active.tag.name)
        wanted.reports.append(_not_there(active.tag, "hypernetwork", near))
        return
    try:
        wanted.networks.append((active, library.networks.get(path)))
    except InputError as problem:
        wanted.reports.append(f"{printable(active.tag.source_text)}: {without_folders(problem, [path])}")


def _look_up_aesthetic(active: Active, library: Library, wanted: Wanted) -> None:
    listing = library.aesthetics
    path = listing.find(active.tag.name) if listing is not None else None
    if path is None:
        near = listing.nearest(active.tag.name) if listing is not None else None
        wanted.reports.append(_not_there(active.tag, "aesthetic gradient", near))
        return
    try:
        embedding, made = library.aesthetic_files.get(path, listing.folders)
        wanted.aesthetics.append(aesthetic_use_of(active.tag, embedding, made, active.picture))
    except InputError as problem:
        wanted.reports.append(f"{printable(active.tag.source_text)}: {without_folders(problem, [path])}")


def _look_up_adapter(active: Active, library: Library, wanted: Wanted) -> None:
    tag = active.tag
    path = (_live(tag, library, wanted) if tag.live else None) or library.shown.get(tag.name.strip())
    path = path or library.adapters.find(tag.name)
    if path is None:
        wanted.missing.append(active)
        wanted.reports.append(_not_there(tag, "LoRA", library.adapters.nearest(tag.name)))
        return
    try:
        wanted.found.append(Found(active, library.files.get(path)))
        if tag.live:
            wanted.shown += bundled_embeddings(wanted.found[-1].adapter)
    except InputError as problem:
        wanted.reports.append(f"{printable(tag.source_text)}: {without_folders(problem, [path])}")


def _live(tag: Tag, library: Library, wanted: Wanted) -> Path | None:
    """The snapshot that `live=1` means; where there is none, the file of this name is used, and it is said."""
    problem = "no run of this name is in progress; its file is used."
    try:
        kind = "lora" if tag.kind in ADAPTER_KINDS else tag.kind
        path = library.live(tag.name.strip(), kind) if library.live is not None else None
    except InputError as error:
        path, problem = None, str(error)
    if path is None:
        wanted.reports.append(f"{printable(tag.source_text)}: {problem}")
    return path


def _region_known(tag: Tag, library: Library, wanted: Wanted) -> bool:
    """Whether a tag's region is there, or it has none; else it is said and the tag not used."""
    if tag.region is None or tag.region.mask_file is None:
        return True
    if library.masks is not None and library.masks.find(tag.region.name) is not None:
        return True
    near = library.masks.nearest(tag.region.name) if library.masks is not None else None
    wanted.reports.append(
        f'{printable(tag.source_text)}: there is no region or mask file "{printable(tag.region.name)}"'
        + (f'; did you mean "{near}"?' if near else "; the tag is not used.")
    )
    return False


def _not_there(tag: Tag, what: str, near: str | None) -> str:
    ending = f'; did you mean "{near}"?' if near else "."
    return f'{printable(tag.source_text)}: there is no {what} "{printable(tag.name.strip())}"{ending}'
