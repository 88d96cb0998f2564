"""Which indices of a dimension a part works on.

A dimension is described by *pieces*: ``(extent, lo, hi)`` for each finer dimension that it is the row-major
product of, outermost first. A part holds the product of the intervals ``[lo, hi)``, which is one interval of
the dimension only if no inner piece is cut; otherwise it is several strips.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import TypeAlias

import torch
from torch import Tensor

from soaprl.graph.factors import Span
from soaprl.graph.operators import Access, Broadcast, DimUse

Piece: TypeAlias = tuple[int, int, int]
Box: TypeAlias = tuple[tuple[int, int], ...]
Layout: TypeAlias = tuple[tuple[int | Broadcast, ...], ...]


def flat_interval(pieces: Sequence[Piece]) -> tuple[int, int] | None:
    """``[start, stop)`` of the flat index that `pieces` cover, or None if they are several strips."""
    start = stop = 0
    for extent, lo, hi in pieces:
        if stop - start > 1 and (lo, hi) != (0, extent):
            return None
        start, stop = start * extent + lo, max(stop - 1, 0) * extent + hi
    return (start, stop) if pieces else (0, 1)


def flat_hull(pieces: Sequence[Piece]) -> tuple[int, int]:
    """First flat index that `pieces` cover, and one past the last."""
    first = last = 0
    for extent, lo, hi in pieces:
        first, last = first * extent + lo, last * extent + hi - 1
    return first, last + 1


def flat_indices(pieces: Sequence[Piece]) -> Tensor:
    """All flat indices that `pieces` cover, ascending; shape ``[product of hi - lo]``."""
    indices = torch.zeros(1, dtype=torch.int64)
    for extent, lo, hi in pieces:
        indices = (indices[:, None] * extent + torch.arange(lo, hi)).reshape(-1)
    return indices


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalDim:
    """The indices of one dimension of an argument or result that a part works on.

    Attributes:
        extent: The whole extent of the dimension.
        label: Pieces of the iteration dimension; empty if every part uses the whole dimension.
        factors: The operator's factors that the pieces are.
        span: Map from the label's flat index to the dimension's, or None: they are the same.
    """

    extent: int
    label: tuple[Piece, ...]
    factors: tuple[int, ...]
    span: Span | None

    @property
    def first(self) -> int:
        """First index touched, before clipping: negative where a window reaches into the padding."""
        if self.span is None or self.span.factor < 0:
            return self.start
        return (flat_hull(self.label)[0] * self.span.mul + self.span.add_first) // self.span.div

    @property
    def end(self) -> int:
        """One past the last index touched, before clipping."""
        if self.span is None or self.span.factor < 0:
            return self.stop
        return ((flat_hull(self.label)[1] - 1) * self.span.mul + self.span.add_last) // self.span.div + 1

    @property
    def start(self) -> int:
        """First index touched; with strips, the first of the first strip."""
        return self._hull()[0]

    @property
    def stop(self) -> int:
        """One past the last index touched; at least `start`."""
        return max(self._hull())

    def _hull(self) -> tuple[int, int]:
        if self.span is not None:
            start, stop = self.span.interval(*(flat_hull(self.label) if self.label else (0, 1)))
            return (start, stop) if start < stop else (min(start, self.extent), min(start, self.extent))
        return flat_hull(self.label) if self.label else (0, self.extent)

    @property
    def unlabelled(self) -> bool:
        """Whether no iteration dimension of more than one index belongs to it: every part uses it whole."""
        return self.span is None and not self.label

    @property
    def whole(self) -> bool:
        """Whether the part works on all of the dimension."""
        return self.size == self.extent

    @property
    def size(self) -> int:
        """Number of indices that the part works on."""
        if self.span is None:
            return prod(hi - lo for _, lo, hi in self.label) if self.label else self.extent
        if flat_interval(self.label) is not None:
            return self.stop - self.start
        return len(self.indices())

    def indices(self) -> Tensor:
        """The indices that the part works on, ascending."""
        if self.span is None and self.label:
            return flat_indices(self.label)
        if self.span is None or flat_interval(self.label) is not None or not _is_shift(self.span):
            return torch.arange(self.start, self.stop)
        shifted = flat_indices(self.label) + self.span.add_first // self.span.div
        return shifted[(shifted >= self.span.lower) & (shifted < self.span.upper)]


def _is_shift(span: Span) -> bool:
    same = span.mul == span.div and span.add_first == span.add_last
    return same and span.add_first % span.div == 0


def local_dim(use: DimUse, extents: tuple[int, ...], box: Box) -> LocalDim:
    """The `LocalDim` of `use` for the part `box` of an operator with these factor extents."""
    label = tuple((extents[f], *box[f]) for f in use.factors)
    return LocalDim(extent=use.extent, label=label, factors=use.factors, span=use.span)


def region(access: Access, box: Box) -> tuple[tuple[int, int], ...]:
    """The interval of each refined dimension of the tensor that the part `box` touches, never negative."""
    found = []
    for span in access.spans:
        start, stop = span.interval(*box[span.factor]) if span.factor >= 0 else span.interval(0, 1)
        found.append((start, max(start, stop)))
    return tuple(found)


def operand_pieces(access: Access, box: Box) -> tuple[tuple[Piece, ...], ...]:
    """For each operand dimension, the pieces of it that the region of `access` covers.

    A slice of a stored dimension is an operand dimension of its own, so indices count from its start, which
    is where the span is clipped.
    """
    intervals = region(access, box)

    def piece(p: int | Broadcast) -> Piece:
        if isinstance(p, Broadcast):
            return (p.extent, *(box[p.factor] if p.factor >= 0 else (0, p.extent)))
        span, (start, stop) = access.spans[p], intervals[p]
        return span.upper - span.lower, start - span.lower, stop - span.lower

    return tuple(tuple(piece(p) for p in dim) for dim in access.layout)
