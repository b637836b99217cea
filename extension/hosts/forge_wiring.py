"""Our callbacks in Forge: AUTOMATIC1111's, with Forge's own model, loader and embedding stores behind them."""

from __future__ import annotations

from typing import Any

from extension.hosts import a1111_wiring
from extension.hosts.base import LoadedModel
from extension.hosts.forge_builtin import ForgeBuiltIn
from extension.hosts.forge_embeddings import forget_encoded_prompts
from extension.hosts.forge_lease import ForgeLender
from extension.hosts.forge_sessions import ForgeSessions
from trainers.formats.hashes import file_sha256


class ForgePlugin(a1111_wiring.Plugin):
    """Everything of ours in this process; it survives "Reload UI"."""

    sessions_class = ForgeSessions
    builtin_class = ForgeBuiltIn
    lender_class = ForgeLender
    draws_hypernetworks = True

    def read_embeddings(self, p: Any, changed: bool) -> None:
        """Encoded prompts are forgotten; the stores are fed once the model is there."""
        if changed:
            forget_encoded_prompts(p)

    def add_embeddings(self, p: Any, model: LoadedModel) -> None:
        """Feeds the stores of the loaded model's text engines."""
        stores = self.sessions.stores
        if stores.feed(self.host.raw_model(), model, self.library.embeddings.all()):
            forget_encoded_prompts(p)

    def drawn(self, p: Any) -> None:
        """Also says which embeddings the prompts used: Forge has noted them by name only."""
        super().drawn(p)
        if not self.ownership.held or not self.host.option("textual_inversion_add_hashes_to_infotext", True):
            return
        names = p.extra_generation_params.get("TI") or ""
        used = [self.library.embeddings.get(name) for name in names.split(", ")] if isinstance(names, str) else []
        hashes = {item.name: file_sha256(item.source)[:12] for item in used if item is not None and item.source}
        if hashes:
            text = ", ".join(f"{name}: {value}" for name, value in hashes.items())
            p.extra_generation_params["TI hashes"] = text


def wire(host: Any) -> type:
    """Registers our callbacks for this load of the scripts; returns the class of our always-on script."""
    return a1111_wiring.wire(host, ForgePlugin)
