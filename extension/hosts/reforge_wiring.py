"""Our callbacks in reForge: AUTOMATIC1111's, with Forge's way to sample behind them."""

from __future__ import annotations

from typing import Any

from extension.hosts import a1111_wiring
from extension.hosts.forge_builtin import ForgeBuiltIn
from extension.hosts.forge_lease import ReForgeLender
from extension.hosts.forge_sessions import PatcherSessions


class ReForgePlugin(a1111_wiring.Plugin):
    """Everything of ours in this process; it survives "Reload UI"."""

    sessions_class = PatcherSessions
    builtin_class = ForgeBuiltIn
    lender_class = ReForgeLender
    draws_hypernetworks = True


def wire(host: Any) -> type:
    """Registers our callbacks for this load of the scripts; returns the class of our always-on script."""
    return a1111_wiring.wire(host, ReForgePlugin)
