"""What acts in each generation of AUTOMATIC1111: from the host's calls to the injection into its model.

A generation is known by its processing object. Generations nest (a detailer draws inside one), end without a word when
something raises, and the model may change under them (a refiner, another checkpoint for the hires pass).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from extension.hosts.a1111_builtin import BuiltIn
from extension.hosts.a1111_conditioning import Encoder, Pass, contexts_at
from extension.hosts.a1111_embeddings import Bundled
from extension.hosts.a1111_infotext import add_lora_hashes, add_notes
from extension.hosts.a1111_rows import Cursor, encoded_of, rows_of_params
from extension.hosts.a1111_tags import carried, carried_now, wanted_from_items
from extension.hosts.base import Host, LoadedModel
from extension.hosts.merging import may_merge
from extension.injection import Adapter, Generation, Injection, Row
from extension.injection.aesthetic import attachments_for
from extension.injection.calls import RowsOf, UNetCalls
from extension.injection.contexts import Context
from extension.injection.hypernetworks import NetworkAttachment
from extension.masks import mask_of
from extension.wanted import Library, Wanted, without_folders
from trainers.errors import InputError


@dataclass
class Session:
    """One generation and what acts in it.

    Attributes:
        owner: the processing object.
        wanted, hires: what acts now.
        generation: None where nothing is injected (another kind of model, a broken file).
        model: the host's model object it is injected into.
        contexts: conditionings of regions' rows at this step.
        bundled: embeddings from the adapters' files.
        handed: the host's own loader has something to do in it.
    """

    owner: weakref.ref
    wanted: Wanted
    hires: bool
    generation: Generation | None = None
    model: Any = None
    cursor: Cursor = field(default_factory=Cursor)
    contexts: dict[Row, Context] = field(default_factory=dict)
    bundled: Any = field(default_factory=Bundled)
    handed: bool = False

    def close(self) -> None:
        """Takes off what the injection itself does not know of."""
        self.bundled.remove()


class Sessions:
    """The generations going on, and the injection into the model that is loaded."""

    def __init__(self, host: Host, library: Library) -> None:
        self.host = host
        self.library = library
        self.builtin = BuiltIn(None)
        self.is_lent: Callable[[], bool] = lambda: False  # whether a trainer uses the model's weights
        self._sessions: dict[int, Session] = {}
        self._injection: Injection | None = None
        self._model: weakref.ref | None = None

    # --- the model

    def injection(self, model: LoadedModel) -> Injection:
        """The injection into the loaded model; another model takes everything off the one before."""
        raw = self.host.raw_model()
        if self._injection is None or self._model is None or self._model() is not raw:
            self.detach()
            self._injection = Injection(model.family, model.parts)
            self._model = weakref.ref(raw)
        return self._injection

    def detach(self) -> None:
        """Takes everything off the model: it changes, the page is loaded again, or the tags go back to the host.

        Generations going on know what they want, and get it again on the model they go on with.
        """
        for session in self._sessions.values():
            session.close()
            session.generation = None
        if self._injection is not None:
            self._injection.detach()
        self._injection = self._model = None

    # --- the host's calls

    def activate(self, p: Any, params_list: list[Any]) -> None:
        """A pass of `p` begins; with an empty list one without tags."""
        one = carried(params_list)
        wanted = one.wanted if one is not None else wanted_from_items(params_list, self.library)
        hires = one.hires if one is not None else bool(getattr(p, "is_hr_pass", False))
        self._drop_finished()
        if not wanted.batch.active and not wanted.reports:
            self._end(p)
            self._hand_to_builtin(p, Session(weakref.ref(p), wanted, hires), [])
            if self._busy():
                self._begin(p, wanted, hires)  # nothing of the generation around it acts in this one
            return
        self._begin(p, wanted, hires)

    def drawn(self, p: Any) -> None:
        """A batch is drawn and its infotext not written yet: what layers said while they ran belongs there."""
        session = self._of(p)
        if session is not None:
            self._note(p, session)

    def deactivate(self, p: Any) -> None:
        """The generation of `p` ends."""
        session = self._of(p)
        if session is not None:
            self._note(p, session)
            if session.handed:
                self.builtin.finish(p)
        self._end(p)

    def step(self, params: Any) -> None:
        """A step of the sampler begins: the moment, and the order of the rows."""
        p = getattr(params.denoiser, "p", None)
        if p is None or not self._sessions:
            return
        session = self._of_pass(p, self.ensure(p))
        if session is None or session.generation is None:
            return
        denoiser = params.denoiser
        steps = denoiser.steps or denoiser.total_steps or 1
        done = min(denoiser.step * steps / max(denoiser.total_steps or steps, 1), steps - 1e-3)
        session.generation.set_step(done, steps, session.hires)
        if session.wanted.needs_rows:
            self.start_rows(session, params)
        if session.wanted.regions:
            encoded = [contexts_at(one, denoiser.step) for one in encoded_of(params)]
            session.contexts = {row: context for one in encoded for row, context in one.items()}

    def encoder(self, p: Any, data: Any, sampling: Pass) -> Encoder | None:
        """What encodes the prompts that belong to `data`, the host's list of a pass's tags; None without any."""
        one = carried((data or {}).get("lora", ()))
        if one is None:
            return None
        session = self.ensure(p)
        if session is None or session.wanted is not one.wanted:
            session = self._begin(p, one.wanted, one.hires)
        batch = one.wanted.batch
        known = one.wanted.embeddings(self.library.embeddings)
        return Encoder(session.generation, batch.prompts, batch.negatives, known, sampling, one.texts)

    # --- what is another thing in a relative of this host

    def start_rows(self, session: Session, params: Any) -> None:
        """A step begins whose rows have to be told apart."""
        session.cursor.start(rows_of_params(params))

    def attachments(self, session: Session, model: LoadedModel, masks: dict[str, Any]) -> list[Any]:
        """What a generation needs on the model besides its layers: it comes and goes with them.

        Args:
            masks: of the regions its tags name.
        """
        if not session.wanted.needs_rows:
            return []
        return [self.calls(session, model, session.cursor.take, masks)]

    @staticmethod
    def calls(session: Session, model: LoadedModel, rows_of: RowsOf, masks: dict[str, Any]) -> UNetCalls:
        """What tells the generation's layers the rows of each call of the UNet."""
        return UNetCalls(model.parts["unet"], session.generation, rows_of, masks, lambda row: session.contexts.get(row))

    def bundled(self) -> Any:
        """Keeps embeddings that come in adapters' files."""
        return Bundled()

    # --- inside

    def _of(self, p: Any) -> Session | None:
        session = self._sessions.get(id(p))
        return session if session is not None and session.owner() is p else None

    def _busy(self) -> bool:
        return any(session.generation is not None for session in self._sessions.values())

    def _drop_finished(self) -> None:
        """Generations that ended without a word: their objects are gone, or the injection dropped them."""
        current = self._injection
        for key, session in list(self._sessions.items()):
            gone = session.owner() is None
            ended = session.generation is not None and current is not None and not current.holds(session.generation)
            if gone or ended:
                session.close()
                del self._sessions[key]

    def _end(self, p: Any) -> None:
        session = self._of(p)
        if session is not None:
            session.close()
            del self._sessions[id(p)]
        if self._injection is not None:
            self._injection.end(p)
        self._drop_finished()

    def ensure(self, p: Any) -> Session | None:
        """The session of `p` with its generation on top and on the model that is loaded now.

        A generation that was drawn inside `p` and failed may still lie above it; and the host may have changed models.
        """
        session = self._of(p)
        if session is None:
            if self._busy():
                session = self._begin(p, wanted_from_items([], self.library), False)
            return session
        moved = session.model is not None and session.model() is not self.host.raw_model()
        covered = self._injection is None or self._injection.current is not session.generation
        if moved or covered or session.generation is None:
            session = self._begin(p, session.wanted, session.hires)
        return session

    def _of_pass(self, p: Any, session: Session | None) -> Session | None:
        """The session with what belongs to the pass that is sampled now: prompts may be encoded for another one."""
        one = carried_now(p)
        if session is None or (one is not None and session.wanted is one.wanted):
            return session
        if one is not None:
            return self._begin(p, one.wanted, one.hires)
        if session.hires != bool(getattr(p, "is_hr_pass", False)):
            self._end(p)
            return self.ensure(p)
        return session

    def _begin(self, p: Any, wanted: Wanted, hires: bool) -> Session:
        self._end(p)
        session = Session(weakref.ref(p), wanted, hires, bundled=self.bundled())
        self._sessions[id(p)] = session
        model = self.host.model()
        if model is not None and model.family is not None:
            unknown = [one for one in wanted.found if _unknown(one.adapter, model.family)]
            self._hand_to_builtin(p, session, [one.active for one in unknown] + wanted.missing)
            add_notes(p, _handed([one.tag for one in unknown], "no layer in it is one that Athanor knows"))
            session.model = weakref.ref(self.host.raw_model())
            self._inject(p, session, model)
        else:
            self._hand_to_builtin(p, session, [one.active for one in wanted.found] + wanted.missing, whole=True)
        return session

    def _inject(self, p: Any, session: Session, model: LoadedModel) -> None:
        wanted = session.wanted
        named = zip(wanted.found, wanted.uses(model.family), strict=True)
        uses = [use for one, use in named if not _unknown(one.adapter, model.family)]
        injection = self.injection(model)
        try:
            # A merged copy of a layer takes no part in an aesthetic gradient's steps.
            apart = wanted.needs_rows or bool(wanted.aesthetics)
            merged = may_merge(self.host.option("athanor_merged", ""), apart, uses, model)
            session.generation = injection.begin(p, uses, merged=merged)
        except InputError as problem:
            add_notes(p, [without_folders(problem, [one.adapter.path for one in wanted.found])])
            return
        session.generation.set_step(0, max(getattr(p, "steps", 1) or 1, 1), session.hires)
        adapters = [(one.tag.name.strip(), one.adapter) for one in wanted.found]
        notes = session.bundled.add(adapters, model, wanted.shown)
        more = attachments_for(model.parts, session.generation, wanted.aesthetics)
        networks = wanted.network_uses()
        if networks:
            more.append(NetworkAttachment(model.parts["unet"], session.generation, networks))
        for attachment in [*self.attachments(session, model, self._masks(wanted, notes)), *more]:
            attachment.attach()
            session.generation.attachments.append(attachment)
        add_lora_hashes(p, wanted.lora_hashes())
        add_notes(p, [*notes, *wanted.block_reports(model.family)])
        self._note(p, session)

    def _masks(self, wanted: Wanted, notes: list[str]) -> dict[str, Any]:
        masks = {}
        for region in wanted.regions:
            try:
                masks[region.name] = mask_of(region, self.library.masks.find)
            except ValueError as problem:
                notes.append(str(problem))
        return masks

    def _note(self, p: Any, session: Session) -> None:
        sentences = list(session.wanted.reports)
        if session.generation is not None and self._injection is not None:
            sentences += session.generation.sentences(self._injection.family)
        add_notes(p, sentences)

    def _hand_to_builtin(self, p: Any, session: Session, actives: Iterable[Any], whole: bool = False) -> None:
        """What we cannot do goes to the host's own loader; without any, it is asked to let go."""
        tags = [one.tag for one in actives if whole or self.builtin.find(one.tag.name) is not None]
        if tags and self.is_lent():
            add_notes(p, [*session.wanted.reports, *map(_barred, tags)])
            tags = []
        if not tags:
            self.builtin.let_go()
            return
        session.handed = True
        hashes = self.builtin.take(p, tags)
        add_lora_hashes(p, hashes)
        if whole:
            add_notes(p, [*session.wanted.reports, *_handed(tags, "this kind of model is the WebUI's own loader's")])


def _unknown(adapter: Adapter, family: str) -> bool:
    """Whether a file has nothing that we know, for this family or another."""
    return adapter.family is None and not adapter.match(family).sites and not adapter.bundled


def _barred(tag: Any) -> str:
    return (
        f"{tag.source_text} does nothing now: only the WebUI's own loader could apply it, by writing into the model's "
        "weights, and a training uses them."
    )


def _handed(tags: Iterable[Any], why: str) -> list[str]:
    return [f"{tag.source_text} went to the WebUI's own loader: {why}." for tag in tags]
