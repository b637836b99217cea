"""Attaching banks to a live model, and taking them off without a trace.

A layer gets a forward hook; a fused attention gets its instance's `forward` replaced. Nothing is written to a weight,
no attribute stays behind, and everything does nothing while no generation is live.
"""

from __future__ import annotations

import types
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from extension.injection import attention as fused
from extension.injection.bank import SiteBank, SiteMix
from extension.injection.weights import StepWeights


class Live:
    """What the hooks look at: the generation that is drawing now, or nothing.

    Attributes:
        mixes: `{layer name: SiteMix}` of that generation, None without one.
        weights: `{component: StepWeights}` of the moment.
    """

    def __init__(self) -> None:
        self.mixes: dict[str, SiteMix] | None = None
        self.weights: dict[str, StepWeights] = {}

    def add(self, bank: SiteBank, x: Tensor, y: Tensor) -> Tensor:
        """The output of `bank`'s layer with what is live."""
        mixes = self.mixes
        if mixes is None or not isinstance(y, Tensor) or not isinstance(x, Tensor):
            return y
        mix = mixes.get(bank.site.name)
        weights = self.weights.get(bank.site.component)
        if mix is None or weights is None or mix.bank is not bank:
            return y
        return mix.add(x, y, weights)


def _do_nothing(*args: Any, **kwargs: Any) -> None:
    return None


def _inert() -> Callable[..., None]:
    return _do_nothing


class Attachment(ABC):
    """Something of ours on one module of the host."""

    @abstractmethod
    def attach(self) -> None:
        """Puts it in place; does nothing where the module is gone."""

    @abstractmethod
    def remove(self) -> None:
        """Takes it off; the module is then as it was. Does nothing where it is not in place or the module is gone."""


class ForwardReplacement(Attachment):
    """Replaces the `forward` of one instance."""

    def __init__(self, module: nn.Module) -> None:
        self._module = weakref.ref(module)
        self._previous: Callable[..., Any] | None = None

    @abstractmethod
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The forward."""

    def original(self, *args: Any, **kwargs: Any) -> Any:
        """What would run without us."""
        if self._previous is not None:
            return self._previous(*args, **kwargs)
        module = self._module()
        return type(module).forward(module, *args, **kwargs)

    def attach(self) -> None:
        module = self._module()
        if module is not None:
            self._previous = module.__dict__.get("forward")
            module.__dict__["forward"] = self

    def remove(self) -> None:
        module = self._module()
        # A forward that another extension put over ours stays; it calls ours, which then does nothing.
        if module is None or module.__dict__.get("forward") is not self:
            return
        if self._previous is None:
            del module.__dict__["forward"]
        else:
            module.__dict__["forward"] = self._previous

    def __deepcopy__(self, memo: dict) -> Callable[..., Any]:
        copied = memo.get(id(self._module()))  # the copy of the module is made before its attributes are
        return types.MethodType(type(copied).forward, copied)


class SiteHook:
    """The forward hook of one layer."""

    def __init__(self, live: Live, bank: SiteBank) -> None:
        self._live = live
        self._bank = bank

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> Tensor | None:
        x = args[0] if args else next(iter(kwargs.values()), None)
        added = self._live.add(self._bank, x, output)
        return None if added is output else added

    def __deepcopy__(self, memo: dict) -> Callable[..., None]:
        return _do_nothing  # a copy of the host's model is not ours to act on

    def __reduce__(self) -> tuple:
        return (_inert, ())  # likewise for one that is pickled


class HookAttachment(Attachment):
    """A forward hook on one layer."""

    def __init__(self, live: Live, bank: SiteBank) -> None:
        self._hook = SiteHook(live, bank)
        self._module = weakref.ref(bank.layer.module)
        self._handle: RemovableHandle | None = None

    def attach(self) -> None:
        module = self._module()
        if module is not None:
            self._handle = module.register_forward_hook(self._hook, with_kwargs=True)

    def remove(self) -> None:
        if self._handle is not None:
            self._handle.remove()
            self._handle = None


class AttentionForward(ForwardReplacement):
    """The forward of a fused attention while adapters sit on its projections."""

    def __init__(self, live: Live, module: nn.MultiheadAttention, banks: dict[int | str, SiteBank]) -> None:
        super().__init__(module)
        self._live = live
        self._banks = banks

    def __call__(self, query: Tensor, *args: Any, **kwargs: Any) -> Any:
        module = self._module()
        if not self._acts() or query.dim() != 3 or not fused.supported(module):
            return self.original(query, *args, **kwargs)
        adds = {part: self._adder(bank) for part, bank in self._banks.items()}
        return fused.attend(module, adds, query, *args, **kwargs)

    def _acts(self) -> bool:
        """Whether any weight is not 0: without one the host's own forward runs, bit for bit."""
        weights = [self._live.weights.get(bank.site.component) for bank in self._banks.values()]
        return any(one is not None and one.any(range(len(one.shared))) for one in weights)

    def _adder(self, bank: SiteBank) -> fused.Add:
        return lambda x, y: self._live.add(bank, x, y)


def attachments(live: Live, banks: Iterable[SiteBank]) -> list[Attachment]:
    """What has to be on the model for these banks."""
    made: list[Attachment] = []
    groups: dict[int, dict[int | str, SiteBank]] = {}
    for bank in banks:
        if bank.layer.part is None:
            made.append(HookAttachment(live, bank))
        else:
            groups.setdefault(id(bank.layer.module), {})[bank.layer.part] = bank
    for group in groups.values():
        made.append(AttentionForward(live, next(iter(group.values())).layer.module, group))
    return made
