"""The generations that are drawing, and what is injected for them.

Generations nest (a detailer draws inside a generation), so they form a stack; each belongs to the host's processing
object, which is held weakly. Without a generation nothing is attached to the model at all.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from torch import nn

from extension.injection.adapter_file import Adapter
from extension.injection.bank import SiteBank, SiteMix
from extension.injection.hooks import Attachment, Live, attachments
from extension.injection.merged import merged_copies
from extension.injection.plan import Fit, Plan, make_plan
from extension.injection.scales import Row, Use, Whom, step_weights
from extension.injection.sites import text_model_root
from extension.injection.weights import StepWeights

if TYPE_CHECKING:
    from extension.injection.aesthetic import AestheticUse
    from extension.injection.hypernetworks import NetworkUse


def on_call_stack(owner: object) -> bool:
    """Whether some function that is running in this thread holds `owner` in a local variable.

    A generation that is going on does; one that ended by an exception does not, although the host may still hold its
    processing object somewhere.
    """
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__") != __name__ and any(v is owner for v in frame.f_locals.values()):
            return True
        frame = frame.f_back
    return False


class Generation:
    """One entry of the stack: its uses, their banks, and the weights of the moment."""

    def __init__(self, owner: object, uses: Sequence[Use], plan: Plan, components: Sequence[str]) -> None:
        self._owner: Callable[[], object] = _reference(owner)
        self.uses = tuple(uses)
        self.plan = plan
        self.notes: list[str] = []
        self.text_uses: tuple[AestheticUse, ...] = ()
        self.network_uses: tuple[NetworkUse, ...] = ()
        self.step, self.total, self.hires = 0.0, 1, False
        self.rows: dict[str, tuple[Row, ...] | None] = dict.fromkeys(components)
        known = {adapter.stamp: index for index, adapter in enumerate(plan.adapters)}
        self._index = [known[use.adapter.stamp] for use in uses]
        self.mixes = {name: SiteMix(bank, len(uses), self._gains(bank), self.note) for name, bank in plan.banks.items()}
        self.weights: dict[str, StepWeights] = {}
        self.attachments: list[Attachment] = []
        for component in components:
            self._weigh(component)

    @property
    def owner(self) -> object | None:
        """The processing object, None when it is gone."""
        return self._owner()

    def _gains(self, bank: SiteBank) -> Callable[[int], list[tuple[int, float, int | None]]]:
        def gains(adapter: int) -> list[tuple[int, float, int | None]]:
            mine = [(number, use) for number, use in enumerate(self.uses) if self._index[number] == adapter]
            return [(number, use.factor_at(bank.site), use.ranks) for number, use in mine]

        return gains

    @property
    def whoms(self) -> list[Whom]:
        """Whom everything that acts is for."""
        return [use.whom for use in (*self.uses, *self.text_uses, *self.network_uses)]

    def acts_inside(self, row: Row) -> bool:
        """Whether something is for the region of this row, and for this row."""
        return any(whom.region == row.region and whom.includes(row) for whom in self.whoms)

    def note(self, sentence: str) -> None:
        """Keeps a sentence for the report, once."""
        if sentence not in self.notes:
            self.notes.append(sentence)

    def _weigh(self, component: str) -> None:
        rows = self.rows[component]
        made = step_weights(self.uses, component, self.step, self.total, self.hires, rows)
        known = self.weights.get(component)
        # The same object means "nothing changed" to every layer, so its coefficients are not computed again.
        if known is None or (known.shared, known.rows) != (made.shared, made.rows):
            self.weights[component] = made

    def set_step(self, step: float, total: int, hires: bool = False) -> None:
        """The moment: `step` steps of `total` are done."""
        if (step, total, hires) != (self.step, self.total, self.hires):
            self.step, self.total, self.hires = step, total, hires
            for component in self.rows:
                self._weigh(component)

    def set_rows(self, rows: Sequence[Row] | None, component: str = "unet") -> None:
        """Whom the rows of the next call of a component are for, in their order."""
        rows = None if rows is None else tuple(rows)
        if rows != self.rows[component]:
            self.rows[component] = rows
            self._weigh(component)

    def sentences(self, family: str) -> list[str]:
        """What a person should know about this generation's adapters."""
        return [line for fit in self.plan.fits for line in fit.sentences(family)] + self.notes

    @property
    def fits(self) -> list[Fit]:
        return self.plan.fits


def _reference(owner: object) -> Callable[[], object]:
    try:
        return weakref.ref(owner)
    except TypeError:
        return lambda: owner


class Injection:
    """Everything that is injected into one model.

    Args:
        family: "sd1", "sd2" or "sdxl".
        parts: the live components: "unet", "text_encoder", "text_encoder_2"; wrappers around text models are looked
            through. They are held weakly.
        alive: whether a generation whose object still exists is really going on.
    """

    def __init__(
        self, family: str, parts: Mapping[str, nn.Module], alive: Callable[[object], bool] = on_call_stack
    ) -> None:
        self.family = family
        self._parts = {
            name: weakref.ref(module if name == "unet" else text_model_root(module)) for name, module in parts.items()
        }
        self._alive = alive
        self._live = Live()
        self._stack: list[Generation] = []
        self._kept: Plan | None = None

    # --- generations

    @property
    def current(self) -> Generation | None:
        """The generation that is drawing now."""
        return self._stack[-1] if self._stack else None

    def holds(self, generation: Generation) -> bool:
        """Whether a generation is still on the stack."""
        return any(one is generation for one in self._stack)

    def begin(self, owner: object, uses: Sequence[Use], merged: bool = False) -> Generation:
        """Injects `uses` for the generation of `owner`; called again for the same owner (hires pass) it replaces them.

        Generations on the stack that are no longer going on are dropped first.

        Args:
            merged: use merged copies of the weights where the uses are constant and for everyone. Costs the size of
                the layers they touch; faster on a GPU.

        Raises:
            InputError: a file is gone or damaged; then nothing of it is injected.
        """
        self.end(owner)
        self._drop(lambda one: one.owner is None or not self._alive(one.owner))
        plan = self._plan(_by_stamp(uses))
        generation = Generation(owner, uses, plan, tuple(self._parts))
        copies = merged_copies(generation) if merged else {}
        hooked = [bank for name, bank in plan.banks.items() if name not in copies]
        generation.attachments = [*copies.values(), *attachments(self._live, hooked)]
        self._watch(owner)
        self._pause()
        self._stack.append(generation)
        self._resume()
        return generation

    def end(self, owner: object) -> None:
        """Ends the generation of `owner` and any left over above it."""
        position = next((i for i, one in enumerate(self._stack) if one.owner is owner), None)
        if position is not None:
            ended = self._stack[position:]
            self._drop(lambda one: one in ended)

    def detach(self) -> None:
        """Takes everything off and forgets it: another checkpoint or VAE, "Reload UI", a training that attaches."""
        self._drop(lambda one: True)
        self._kept = None

    def nbytes(self) -> int:
        """Bytes that adapters take now, the ones kept for the next generation included."""
        plans = {id(plan): plan for plan in [one.plan for one in self._stack] + [self._kept] if plan is not None}
        return sum(plan.nbytes() for plan in plans.values())

    # --- inside

    def _roots(self) -> dict[str, nn.Module]:
        roots = {name: reference() for name, reference in self._parts.items()}
        return {name: root for name, root in roots.items() if root is not None}

    def _plan(self, adapters: Sequence[Adapter]) -> Plan:
        """A plan for these files: one in use or kept from the last generation, or a new one."""
        stamps = [adapter.stamp for adapter in adapters]
        for plan in [one.plan for one in self._stack] + [self._kept]:
            if plan is not None and [adapter.stamp for adapter in plan.adapters] == stamps:
                self._kept = plan
                return plan
        self._kept = None
        self._kept = make_plan(self.family, self._roots(), adapters)
        return self._kept

    def _watch(self, owner: object) -> None:
        """When the host forgets a processing object without ending its generation, so do we."""
        reference = weakref.ref(self)

        def forgotten() -> None:
            injection = reference()
            if injection is not None:
                injection._drop(lambda one: one.owner is None)

        try:
            weakref.finalize(owner, forgotten).atexit = False
        except TypeError:
            return  # an object that cannot be watched is dropped by the next generation

    def _drop(self, gone: Callable[[Generation], bool]) -> None:
        kept = [one for one in self._stack if not gone(one)]
        if len(kept) == len(self._stack):
            return
        self._pause()
        self._stack = kept
        self._resume()

    def _pause(self) -> None:
        """Takes everything off the model."""
        self._live.mixes = None
        self._live.weights = {}
        if self._stack:
            for attachment in self._stack[-1].attachments:
                attachment.remove()

    def _resume(self) -> None:
        """Attaches the generation on top."""
        if self._stack:
            top = self._stack[-1]
            for attachment in top.attachments:
                attachment.attach()
            self._live.mixes = top.mixes
            self._live.weights = top.weights


def _by_stamp(uses: Sequence[Use]) -> list[Adapter]:
    """One adapter object per file content, in order of first mention."""
    found: dict[tuple, Adapter] = {}
    for use in uses:
        found.setdefault(use.adapter.stamp, use.adapter)
    return list(found.values())
