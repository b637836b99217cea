"""What the UNet reads of a prompt, put in place for some rows of a call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from extension.injection.scales import Row

_HIDDEN = ("context", "encoder_hidden_states")
"""What LDM-named and diffusers-named UNets call it; it may also stand in the third place."""


@dataclass(frozen=True)
class Context:
    """One row's conditioning.

    Attributes:
        hidden: [tokens, width].
        vector: what SDXL reads beside it: [n], as the UNet's `y` or `text_embeds` has it for one row; else None.
    """

    hidden: Tensor
    vector: Tensor | None = None


ContextOf = Callable[[Row], "Context | None"]
"""The conditioning of an additional row; None where it is that of the row it was copied from."""


def fitted(hidden: Tensor, like: Tensor) -> Tensor:
    """`hidden` [n, width] at the length of `like` [m, width], lengthened as hosts have lengthened that.

    Hosts make rows of one call equally long: by repeating the whole, by repeating the last vector, or by vectors of an
    empty text, which are kept.
    """
    own, length = hidden.shape[0], like.shape[0]
    hidden = hidden.to(like)
    if own >= length:
        return hidden[:length]
    if length % own == 0 and torch.equal(like[own:], like[:-own]):
        return hidden.repeat(length // own, 1)
    rest = like[own:]
    if torch.equal(rest, like[own - 1].expand_as(rest)):
        rest = hidden[-1].expand_as(rest)
    return torch.cat([hidden, rest])


def with_contexts(args: tuple, kwargs: dict, contexts: Mapping[int, Context]) -> tuple[tuple, dict]:
    """The arguments of a call of the UNet in which the rows with these numbers have a conditioning of their own."""
    if not contexts:
        return args, kwargs
    hidden = {number: one.hidden for number, one in contexts.items()}
    vectors = {number: one.vector for number, one in contexts.items() if one.vector is not None}
    kwargs = dict(kwargs)
    name = next((name for name in _HIDDEN if isinstance(kwargs.get(name), Tensor)), None)
    if name is not None:
        kwargs[name] = _replaced(kwargs[name], hidden, fitted)
    elif len(args) > 2 and isinstance(args[2], Tensor):
        args = (*args[:2], _replaced(args[2], hidden, fitted), *args[3:])
    if isinstance(kwargs.get("y"), Tensor):
        kwargs["y"] = _replaced(kwargs["y"], vectors, _as)
    added = kwargs.get("added_cond_kwargs") or {}
    if "text_embeds" in added:
        kwargs["added_cond_kwargs"] = {**added, "text_embeds": _replaced(added["text_embeds"], vectors, _as)}
    return args, kwargs


def _as(value: Tensor, like: Tensor) -> Tensor:
    return value.to(like)


def _replaced(rows: Tensor, values: Mapping[int, Tensor], fit: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """A new tensor: hosts' own may be inference tensors, which cannot be written to everywhere."""
    return torch.stack([fit(values[n], row) if n in values else row for n, row in enumerate(rows)])


def context_of(cond: Any) -> Context:
    """From a host's conditioning of one row: a tensor, or SDXL's `{crossattn, vector}`."""
    return Context(cond["crossattn"], cond.get("vector")) if isinstance(cond, dict) else Context(cond)
