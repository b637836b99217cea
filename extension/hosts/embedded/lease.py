"""What the embedded host can do for a training: give its tensors, or make room."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from extension.hosts import lease
from extension.hosts.embedded.engine import Studio
from extension.jobs.environment import Environment
from extension.jobs.lease import CannotLend, Holding, Lent


class EmbeddedLender:
    """The studio's model. Another model is always loaded into storages of its own, so what was given away stays."""

    def __init__(self, studio: Studio, environment: Environment | None = None) -> None:
        self.studio, self.environment = studio, environment or Environment()

    def _components(self) -> lease.Components:
        base = self.studio.model.base
        modules = {**self.studio.model.parts, "vae": base.vae}
        return {name: ("diffusers", lease.tensors_of(module)) for name, module in modules.items()}

    def holding(self) -> Holding | None:
        """The model that is in memory."""
        model = self.studio.model
        if not model.in_memory:
            return None
        components = self._components()
        taken = sum(lease.nbytes_of(tensors.values()) for _, tensors in components.values())
        problem = lease.tensors_problem(components) or lease.room_problem(components)
        return Holding(model.path, lease.device_name(model.device), taken, problem)

    def export(self, manifest: Path, about: Mapping[str, Any]) -> Lent:
        """Shares the tensors. Adapters are injected beside the layers, so they are the file's at every time."""
        lease.try_first(self.environment, self.holding())
        with self.studio.lock:
            if not self.studio.model.in_memory:
                raise CannotLend("the model was just freed")
            return lease.export(self._components(), manifest, {**about, "vae_file": ""}, self.environment)

    def free(self) -> int:
        """Frees the model once nothing is drawn."""
        device = self.studio.model.device
        with self.studio.lock:
            before = lease.in_use(device)
            self.studio.model.close()
            lease.return_memory(device)
            return max(0, before - lease.in_use(device))

    def restore(self) -> None:
        """Loads it again, unless a picture that was drawn meanwhile has."""
        with self.studio.lock:
            if not self.studio.model.in_memory:
                self.studio.model.reload()
