"""Builds the tab in a host's page."""

from __future__ import annotations

from typing import Any

from extension.ui import compat

ROOT_ID = "athanor"

_SKELETON = f"""
<div id="{ROOT_ID}" class="athanor">
  <p class="athanor-wait">Athanor is being loaded. If this stays, reload the page.</p>
</div>
"""


def build_tab() -> Any:
    """The content of the tab, to be called inside a `gr.Tab` or `gr.Blocks`; gives the component."""
    return compat.html(_SKELETON, elem_id="athanor_tab")
