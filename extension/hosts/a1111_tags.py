"""Tags of a batch in AUTOMATIC1111: read once, before the host removes what it knows, and handed on in its own list."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

from modules import extra_networks, shared

from extension.hosts.embedding_weights import weighted_text
from extension.prompt import ADAPTER_KINDS, parse_prompt
from extension.wanted import Library, Wanted, read_wanted

KINDS = frozenset({"lora", "lyco", "ti", "aesthetic"})
"""What we read in every relative of this host; the tags of other extensions stay in the text for the host."""


def kinds_for(library: Library) -> frozenset[str]:
    """What we read: `<hypernet:…>` too, where the host does nothing about it any more."""
    return KINDS if library.hypernetworks is None else KINDS | {"hypernet"}


class Carried(extra_networks.ExtraNetworkParams):
    """What a batch asks for, in the place where the host keeps a prompt's tags.

    The host compares such items to know whether a prompt that it encoded before is the same, and gives the list that
    belongs to the pass at hand to whoever is registered for `lora`: so the pass is never guessed.
    """

    def __init__(self, wanted: Wanted, hires: bool, texts: tuple[list[str], list[str]] = ((), ())) -> None:
        super().__init__(items=["athanor", wanted.fingerprint(), "hires" if hires else "first"])
        self.wanted = wanted
        self.hires = hires
        self.texts = texts


def carried_now(p: Any) -> Carried | None:
    """What belongs to the pass that `p` is in; None without tags of ours."""
    data = getattr(p, "hr_extra_network_data" if getattr(p, "is_hr_pass", False) else "extra_network_data", None)
    return carried((data or {}).get("lora", ()))


def carried(params_list: Iterable[Any]) -> Carried | None:
    """Ours among a list of the host's, or None where another extension read the prompt itself."""
    return next((one for one in params_list if isinstance(one, Carried)), None)


def wanted_from_items(params_list: Iterable[Any], library: Library) -> Wanted:
    """From tags that the host, or another extension, has read: for every row, in the positive prompt."""
    text = "".join(f"<lora:{':'.join(str(item) for item in one.items)}>" for one in params_list)
    return read_wanted([text], [""], library, kinds=KINDS)


def add_chosen_network(p: Any, library: Library) -> None:
    """The setting "Add network to prompt": as the host's own, into the prompts of a batch that does not name it."""
    name = getattr(shared.opts, "sd_lora", "None")
    if name in ("None", "", None) or library.adapters.find(name) is None or not p.prompts:
        return
    if any(tag.name.strip() == name for tag in parse_prompt(p.prompts[0]).tags if tag.kind in ADAPTER_KINDS):
        return
    tag = f"<lora:{name}:{shared.opts.extra_networks_default_multiplier}>"
    start = p.iteration * p.batch_size
    for index, prompt in enumerate(p.prompts):
        p.prompts[index] = prompt + tag
        if start + index < len(p.all_prompts):
            p.all_prompts[start + index] += tag


def _read(p: Any, prompts: list[str], negatives: list[str], hires: bool, library: Library, scope: str) -> Carried:
    kinds = kinds_for(library)
    wanted = read_wanted(prompts, negatives, library, default_scope=scope, kinds=kinds, protect_escapes=True)
    total = (getattr(p, "hr_second_pass_steps", 0) if hires else 0) or p.steps
    store = wanted.embeddings(library.embeddings)
    prompts[:] = [weighted_text(parsed, store, 0, total, hires) for parsed in wanted.batch.prompts]
    negatives[:] = [weighted_text(parsed, store, 0, total, hires) for parsed in wanted.batch.negatives]
    return Carried(wanted, hires, (list(prompts), list(negatives)))


def _plain_items(wanted: Wanted) -> list[Any]:
    """The tags of the first picture's prompt as other extensions expect to find them."""
    tags = wanted.batch.prompts[0].tags if wanted.batch.prompts else ()
    adapters = [tag for tag in tags if tag.kind in ADAPTER_KINDS]
    return [extra_networks.ExtraNetworkParams(tag.source_text[1:-1].split(":")[1:]) for tag in adapters]


def _acts(one: Carried) -> bool:
    wanted = one.wanted
    return bool(wanted.batch.active or wanted.reports)


def read_batch(p: Any, library: Library, scope: str) -> None:
    """Reads the tags of one batch, and of its hires pass, then lets the host read what is left."""
    add_chosen_network(p, library)
    p.prompts, p.negative_prompts = list(p.prompts), list(p.negative_prompts)
    first = _read(p, p.prompts, p.negative_prompts, False, library, scope)
    hires = _hires_texts(p)
    second = _read(p, *hires, True, library, scope) if hires else None
    if second is not None:
        _with_hires_texts(p, hires, p.parse_extra_network_prompts)
        p.hr_negative_prompts = hires[1]
        _hand_on(p, p.hr_extra_network_data, second)
    else:
        p.parse_extra_network_prompts()
    _hand_on(p, p.extra_network_data, first)


def _hand_on(p: Any, data: Any, one: Carried) -> None:
    if _acts(one) and not getattr(p, "disable_extra_networks", False):
        data["lora"] = [*_plain_items(one.wanted), one]


def _hires_texts(p: Any) -> tuple[list[str], list[str]] | None:
    if not getattr(p, "enable_hr", False):
        return None
    batch = slice(p.iteration * p.batch_size, (p.iteration + 1) * p.batch_size)
    return list(p.all_hr_prompts[batch]), list(p.all_hr_negative_prompts[batch])


def _with_hires_texts(p: Any, texts: tuple[list[str], list[str]], parse: Callable[[], None]) -> None:
    """The host's own reading takes the hires prompts from the whole job's list, so they stand there while it reads."""
    batch = slice(p.iteration * p.batch_size, (p.iteration + 1) * p.batch_size)
    typed = p.all_hr_prompts
    p.all_hr_prompts = [*typed[: batch.start], *texts[0], *typed[batch.stop :]]
    try:
        parse()
    finally:
        p.all_hr_prompts = typed


def read_before_parsing(p: Any, read: Callable[[Any], None]) -> None:
    """Has `read(p)` run in place of the host's own reading of this batch's tags.

    That is the last moment before they act, after every other extension has had its say about the prompts. The
    replacement is on this one object and goes with its first call.
    """
    reference = weakref.ref(p)
    earlier = p.__dict__.pop("parse_extra_network_prompts", None)
    if isinstance(earlier, _Reading):
        earlier = earlier.earlier  # from a batch that was given up
    p.__dict__["parse_extra_network_prompts"] = _Reading(reference, read, earlier)


class _Reading:
    """What stands in for one processing object's `parse_extra_network_prompts`."""

    def __init__(self, owner: Any, read: Callable[[Any], None], earlier: Any) -> None:
        self._owner, self._read, self.earlier = owner, read, earlier

    def __call__(self) -> None:
        p = self._owner()
        if self.earlier is None:
            p.__dict__.pop("parse_extra_network_prompts", None)
        else:
            p.__dict__["parse_extra_network_prompts"] = self.earlier
        self._read(p)
