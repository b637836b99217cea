"""What all active adapters do at one layer.

All low-rank adapters of a layer lie in one bank, concatenated along the rank: `y = f(x) + B . (s * (A x))`, so that
several cost one pair of small products. `s` holds alpha / r and the weights of the moment, per row of the batch where
rows differ. Other kinds are terms of their own beside it. Everything is computed from the frozen layer's input and
output; see docs/injection.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from extension.injection.kinds import LowRank, Term
from extension.injection.layer import Layer
from extension.injection.weights import StepWeights
from trainers.formats.sites import Site


@dataclass(frozen=True)
class Segment:
    """Rows `start` to `start + rank` of the bank belong to one adapter."""

    adapter: int
    start: int
    rank: int
    scale: float


class Copies:
    """Tensors where and as the layer computes: one copy per device, made when it is first needed.

    The file's own tensors are dropped once a copy on their device exists, so an adapter takes its size once.
    """

    def __init__(self, tensors: dict[str, Tensor], exact: frozenset[str] = frozenset()) -> None:
        self._exact = exact
        self._held: dict[torch.device, tuple[torch.dtype | None, dict[str, Tensor]]] = {}
        self._source = next((t.device for t in tensors.values()), torch.device("cpu"))
        self._held[self._source] = (None, tensors)

    def on(self, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
        """The tensors on `device`, in `dtype` (but for the exact ones, which are float32 at least)."""
        held = self._held.get(device)
        if held is None or held[0] != dtype:
            source = self._held[self._source][1]
            made = {name: self._cast(name, tensor, device, dtype) for name, tensor in source.items()}
            self._held[device] = held = (dtype, made)
        return held[1]

    def _cast(self, name: str, tensor: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
        if name in self._exact:
            dtype = torch.float64 if dtype == torch.float64 else torch.float32
        with torch.inference_mode(False):  # gradients may flow through it (aesthetic gradients move text encoders)
            made = tensor.detach().to(device, dtype).contiguous()
            return made.clone() if made.is_inference() else made

    def nbytes(self, device: torch.device | None = None) -> int:
        """Bytes held on one device, or on all."""
        return sum(
            t.numel() * t.element_size()
            for where, (_, tensors) in self._held.items()
            if device is None or where == device
            for t in tensors.values()
        )


def _joined_rows(terms: Sequence[LowRank]) -> dict[str, Tensor]:
    """`down` [R, in(, k, k)] and `up` transposed, [R, out]: both have the rank first, so rows simply follow."""
    pairs = [(_computable(term.tensors["down"]), _computable(term.tensors["up"]).T) for term in terms]
    if len(pairs) == 1:
        return {"down": pairs[0][0], "up": pairs[0][1]}
    dtype = pairs[0][0].dtype
    for pair in pairs:
        for tensor in pair:
            dtype = torch.promote_types(dtype, tensor.dtype)
    downs, ups = zip(*pairs, strict=True)
    return {"down": torch.cat([d.to(dtype) for d in downs]), "up": torch.cat([u.to(dtype) for u in ups])}


def _computable(tensor: Tensor) -> Tensor:
    """8-bit floats have no arithmetic of their own; float16 holds each of their values."""
    return tensor.half() if tensor.dtype.itemsize == 1 else tensor


class SiteBank:
    """All adapters at one layer; holds no weights of the moment (see `SiteMix`)."""

    def __init__(self, site: Site, layer: Layer, terms: Sequence[tuple[int, Term]]) -> None:
        self.site = site
        self.layer = layer
        low = [(adapter, term) for adapter, term in terms if isinstance(term, LowRank)]
        self.segments: list[Segment] = []
        self.rank = 0
        for adapter, term in low:
            self.segments.append(Segment(adapter, self.rank, term.rank, term.scale))
            self.rank += term.rank
        self.rows = Copies(_joined_rows([term for _, term in low])) if low else None
        for _, term in low:
            term.tensors = {}
        self.terms: list[tuple[int, Term, Copies]] = []
        for adapter, term in terms:
            if not isinstance(term, LowRank):
                self.terms.append((adapter, term, Copies(term.tensors, term.exact)))
                term.tensors = {}

    def nbytes(self, device: torch.device | None = None) -> int:
        """Bytes the adapters take here."""
        held = [copies for _, _, copies in self.terms] + ([self.rows] if self.rows else [])
        return sum(copies.nbytes(device) for copies in held)


@dataclass
class Prepared:
    """The coefficients of one moment at one layer: None (nothing to do), one number, or a tensor.

    `low` is [R] or [rows, R], each of `terms` [rows].
    """

    low: float | Tensor | None
    terms: list[float | Tensor | None]

    @property
    def idle(self) -> bool:
        return self.low is None and all(term is None for term in self.terms)


Gain = Callable[[int], list[tuple[int, float, int | None]]]


class SiteMix:
    """How the uses of one generation act on one layer's bank.

    Args:
        gains: for an adapter's index: `[(use, factor at this layer, number of ranks or None)]`.
        note: called with a sentence when rows cannot be told apart.
    """

    def __init__(self, bank: SiteBank, uses: int, gains: Gain, note: Callable[[str], None]) -> None:
        self.bank = bank
        self._uses = uses
        self._note = note
        self._segments = [(segment, gains(segment.adapter)) for segment in bank.segments]
        self.term_gains = [[(u, term.scale * g) for u, g, _ in gains(a)] for a, term, _ in bank.terms]
        self._key: tuple | None = None
        self._prepared = Prepared(None, [])
        self._matrices: dict[torch.device, Tensor] = {}

    def prepared(self, weights: StepWeights, rows: int, device: torch.device) -> Prepared:
        """The coefficients for an input of `rows` rows; the same as before while nothing changes."""
        # Tensors made under inference mode cannot be used where a gradient is wanted.
        key = (weights, rows if weights.rows else 0, device, torch.is_inference_mode_enabled())
        if self._key != key:
            self._prepared = self._prepare(weights, rows, device)
            self._key = key
        return self._prepared

    def _prepare(self, weights: StepWeights, rows: int, device: torch.device) -> Prepared:
        if weights.rows is not None:
            return self._prepare_rows(weights, rows, device)
        shared = weights.shared
        terms = [sum(shared[u] * gain for u, gain in parts) or None for parts in self.term_gains]
        return Prepared(self.shared_rows(weights, device), terms)

    def shared_rows(self, weights: StepWeights, device: torch.device) -> float | Tensor | None:
        """What scales the bank's rows when all rows of the batch agree: None, one number, or [R]."""
        shared = weights.shared
        if not weights.any([u for _, gains in self._segments for u, _, _ in gains]):
            return None
        if all(ranks is None for _, gains in self._segments for _, _, ranks in gains):
            values = [seg.scale * sum(shared[u] * gain for u, gain, _ in gains) for seg, gains in self._segments]
            if all(value == values[0] for value in values):
                return values[0] or None
        return self._on_rows(weights.tensor(device)[:1], device)[0]

    def _prepare_rows(self, weights: StepWeights, rows: int, device: torch.device) -> Prepared:
        table = self._spread(weights.tensor(device), rows)
        low = None
        if self._segments and weights.any([u for _, gains in self._segments for u, _, _ in gains]):
            low = self._on_rows(table, device)
        terms: list[float | Tensor | None] = []
        for parts in self.term_gains:
            active = weights.any([u for u, _ in parts])
            terms.append(sum(table[:, u] * gain for u, gain in parts) if active else None)
        return Prepared(low, terms)

    def _spread(self, table: Tensor, rows: int) -> Tensor:
        """One line per row of the input: a site may see a multiple of the rows (hypertile cuts each into tiles)."""
        known = table.shape[0]
        if rows % known == 0:
            return table if rows == known else table.repeat_interleave(rows // known, dim=0)
        self._note(f"{rows} rows came where {known} were expected; what is for single rows does nothing there")
        agreed = torch.where((table == table[:1]).all(0), table[0], torch.zeros_like(table[0]))
        return agreed.expand(rows, -1)

    def _on_rows(self, table: Tensor, device: torch.device) -> Tensor:
        """[rows, R] from [rows, uses]. A sum of products, since autocast and TF32 would round a matrix product."""
        return (table[:, :, None] * self._matrix(device)).sum(1)

    def _matrix(self, device: torch.device) -> Tensor:
        """[uses, R]: what one use at weight 1 gives to each row of the bank."""
        if device not in self._matrices:
            matrix = torch.zeros(self._uses, self.bank.rank)
            for segment, gains in self._segments:
                for use, gain, ranks in gains:
                    end = segment.start + (segment.rank if ranks is None else min(ranks, segment.rank))
                    matrix[use, segment.start : end] += segment.scale * gain
            self._matrices[device] = matrix.to(device)
        return self._matrices[device]

    def add(self, x: Tensor, y: Tensor, weights: StepWeights) -> Tensor:
        """The layer's output with the adapters, in place of `y` where that is allowed.

        With every weight 0, `y` itself is returned.
        """
        layer = self.bank.layer
        prepared = self.prepared(weights, x.shape[layer.row_axis], y.device)
        if prepared.idle:
            return y
        if x.dtype != y.dtype:
            x = x.to(y.dtype)
        extra = self._extra(layer, x, y, prepared)
        if prepared.low is not None:
            y = add_low_rank(layer, x, y, self.bank.rows.on(y.device, y.dtype), prepared.low)
        if extra is None:
            return y
        return y.add_(extra) if writable(y, x) else y + extra

    def _extra(self, layer: Layer, x: Tensor, y: Tensor, prepared: Prepared) -> Tensor | None:
        total = None
        for (_, term, copies), coefficient in zip(self.bank.terms, prepared.terms, strict=True):
            if coefficient is None:
                continue
            change = term.apply(layer, x, y, copies.on(y.device, y.dtype)).to(y.dtype)
            if isinstance(coefficient, Tensor):
                coefficient = coefficient.reshape(_row_shape(change, layer.row_axis))
            change = (change * coefficient).to(y.dtype)
            total = change if total is None else total + change
        return total


def _row_shape(like: Tensor, axis: int) -> list[int]:
    shape = [1] * like.dim()
    shape[axis] = -1
    return shape


def writable(y: Tensor, x: Tensor) -> bool:
    """Whether `y` may be changed in place: fresh memory of its own that no gradient needs."""
    recorded = torch.is_grad_enabled() and (y.requires_grad or x.requires_grad)
    return not recorded and y.is_contiguous() and y.data_ptr() != x.data_ptr()


def add_low_rank(layer: Layer, x: Tensor, y: Tensor, t: dict[str, Tensor], s: float | Tensor) -> Tensor:
    """`y + B . (s * (A x))`.

    Args:
        t: `down` [R, in(, k, k)] and `up` [R, out] (transposed), in the device and number format of `y`.
        s: one number, [R], or [rows, R].
    """
    hidden = layer.linear_map(x, t["down"])
    if hidden.dtype != y.dtype:  # autocast chose another format
        hidden = hidden.to(y.dtype)
    up = t["up"]
    factor = 1.0
    if not isinstance(s, Tensor):
        factor = s
    elif s.dim() == 1:
        up = (up * s[:, None]).to(up.dtype)
    else:
        hidden = (hidden * _per_row(s, hidden, layer)).to(hidden.dtype)
    if layer.kind == "linear":
        return _add_linear(y, hidden, up, factor, writable(y, x))
    return _add_conv(y, hidden, up, factor, writable(y, x))


def _per_row(s: Tensor, hidden: Tensor, layer: Layer) -> Tensor:
    shape = [1] * hidden.dim()
    shape[layer.row_axis] = s.shape[0]
    shape[layer.channel_axis] = s.shape[1]
    return s.reshape(shape)


def _add_linear(y: Tensor, hidden: Tensor, up: Tensor, factor: float, in_place: bool) -> Tensor:
    flat = hidden.reshape(-1, hidden.shape[-1])
    if in_place:
        y.view(-1, y.shape[-1]).addmm_(flat, up, alpha=factor)
        return y
    change = (flat @ up).reshape(y.shape)
    return torch.add(y, change.to(y.dtype), alpha=factor)


def _add_conv(y: Tensor, hidden: Tensor, up: Tensor, factor: float, in_place: bool) -> Tensor:
    if in_place:
        rows = y.shape[0]
        matrix = up.T.expand(rows, -1, -1)
        y.view(rows, y.shape[1], -1).baddbmm_(matrix, hidden.reshape(rows, hidden.shape[1], -1), alpha=factor)
        return y
    change = F.conv2d(hidden, up.T[:, :, None, None])
    return torch.add(y, change.to(y.dtype), alpha=factor)
