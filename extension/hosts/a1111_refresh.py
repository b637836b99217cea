"""Has AUTOMATIC1111 and its relatives know files that we put into their folders: their lists, and what they cached."""

from __future__ import annotations

import inspect
import logging
import threading
from typing import Any

from modules import processing, sd_models, shared
from modules.call_queue import queue_lock

log = logging.getLogger(__name__)
_CACHES = ("cached_c", "cached_uc", "cached_hr_c", "cached_hr_uc")


def after_change(ownership: Any, method: str) -> None:
    """Does it before the next picture; in a thread, because one may be drawn just now and nobody is to wait for that.

    Args:
        ownership: who answers to `<lora:…>` now.
        method: what made the file.
    """
    threading.Thread(target=_refresh, args=(ownership, method), name="athanor-refresh", daemon=True).start()


def _refresh(ownership: Any, method: str) -> None:
    with queue_lock:  # in order of arrival: a picture that is asked for from now on waits for us
        try:
            _REFRESH.get(method, lambda ownership: None)(ownership)
            forget_conditioning()
        except Exception:
            log.exception("The WebUI's lists could not be refreshed; its own refresh buttons do it.")


def forget_conditioning() -> None:
    """Encoded prompts are kept by their text alone, whatever the files that they name hold."""
    for kind in (processing.StableDiffusionProcessing, *_below(processing.StableDiffusionProcessing)):
        for name in _CACHES:
            if name in vars(kind):
                setattr(kind, name, [None] * len(getattr(kind, name) or [None, None]))


def _below(kind: type) -> list[type]:
    return [each for below in kind.__subclasses__() for each in (below, *_below(below))]


def _adapters(ownership: Any) -> None:
    builtin = ownership.builtin
    if not ownership.held:  # the host's loader keys what is applied on the name alone
        from modules import extra_networks

        builtin = type(builtin)(extra_networks.extra_network_registry.get("lora"))
        builtin.let_go()
    networks = getattr(inspect.getmodule(type(builtin.network)), "networks", None)
    if networks is None:
        return
    cached = getattr(getattr(networks, "load_lora_state_dict", None), "cache_clear", None)
    if cached is not None:
        cached()
    networks.list_available_networks()


def _embeddings(ownership: Any) -> None:
    from modules import sd_hijack

    store = getattr(sd_hijack.model_hijack, "embedding_db", None)
    if store is not None and sd_models.model_data.sd_model is not None:
        store.load_textual_inversion_embeddings(force_reload=True)


def _networks(ownership: Any) -> None:
    reload = getattr(shared, "reload_hypernetworks", None)  # some forks have none
    if reload is not None:
        reload()


def _checkpoints(ownership: Any) -> None:
    sd_models.list_models()


_REFRESH = {
    "lora": _adapters,
    "textual_inversion": _embeddings,
    "hypernetwork": _networks,
    "dreambooth": _checkpoints,
}
