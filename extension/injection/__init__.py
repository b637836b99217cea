"""Adapters beside the frozen layers of a live model: nothing is ever written to the host's weights.

injection = Injection("sd1", {"unet": unet, "text_encoder": text_model})
generation = injection.begin(p, [use, ...])      # hooks are on the model now
generation.set_step(step, total)                  # per sampling step
generation.set_rows([Row(...), ...])              # per UNet call, where rows differ
injection.end(p)                                  # nothing is left on the model
"""

from __future__ import annotations

from extension.injection.adapter_file import Adapter, AdapterFiles, read_index
from extension.injection.plan import Fit
from extension.injection.scales import EVERYONE, Row, Use, Whom, constant_use
from extension.injection.state import Generation, Injection

__all__ = [
    "EVERYONE",
    "Adapter",
    "AdapterFiles",
    "Fit",
    "Generation",
    "Injection",
    "Row",
    "Use",
    "Whom",
    "constant_use",
    "read_index",
]
