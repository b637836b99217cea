"""What acts in each generation of Forge, and of reForge."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from extension.hosts.a1111_sessions import Session, Sessions
from extension.hosts.base import LoadedModel
from extension.hosts.forge_embeddings import FedStores, add_to_stores, remove_from_stores
from extension.hosts.forge_patcher import PatchedUnet
from extension.hosts.forge_rows import MarkedChunks, RowReader
from extension.injection import Adapter
from extension.injection.embeddings import Embedding, bundled_embeddings
from extension.wanted import without_folders
from trainers.errors import InputError


class PatcherSessions(Sessions):
    """The generations going on, in a host that samples from patchers: Forge, and reForge over Forge's older backend."""

    def start_rows(self, session: Session, params: Any) -> None:
        """Nothing: here every call brings its rows along."""

    def attachments(self, session: Session, model: LoadedModel, masks: dict[str, Any]) -> list[Any]:
        """The patcher's clone; where rows differ also what reads them, adds those of regions, and says so."""
        engine, generation = self.host.raw_model(), session.generation
        patched = PatchedUnet(engine, generation.plan.nbytes(), mark=session.wanted.needs_rows)
        if not session.wanted.needs_rows:
            return [patched]
        unet = model.parts["unet"]
        reader = RowReader(unet)
        return [patched, reader, self.calls(session, model, reader.rows_of, masks), MarkedChunks(unet)]


class ForgeSessions(PatcherSessions):
    """The generations going on in Forge, and the stores of the loaded model's text engines."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.stores = FedStores()

    def bundled(self) -> Any:
        """Keeps embeddings that come in adapters' files."""
        return ForgeBundled(self.host)


class ForgeBundled:
    """Embeddings that came inside adapters' files, known to Forge as long as the adapters act."""

    def __init__(self, host: Any) -> None:
        self._host = host
        self._registered: list[Any] = []
        self._engine: Any = None

    def add(
        self, adapters: Iterable[tuple[str, Adapter]], model: LoadedModel, shown: Iterable[Embedding] = ()
    ) -> list[str]:
        """Registers those of `(name as typed, adapter)`, and `shown` in the place of what has their names; returns
        sentences about those that do not fit."""
        reports, items = [], []
        for _, adapter in adapters:
            try:
                items += bundled_embeddings(adapter)
            except InputError as problem:
                reports.append(without_folders(problem, [adapter.path]))
        every = [*items, *shown]
        problems = [item.problem(model.widths) for item in every]
        if every:
            self._engine = self._host.raw_model()
            fitting = [[one for one in kind if one.problem(model.widths) is None] for kind in (items, shown)]
            self._registered = add_to_stores(self._engine, model.family, *fitting)
        return reports + [problem for problem in problems if problem is not None]

    def remove(self) -> None:
        """Takes them out again."""
        if self._registered:
            remove_from_stores(self._registered)
        self._registered, self._engine = [], None
