"""Views resolved: which stored tensor a value is part of, and how its refined dimensions map.

A value that is no view is its own root. Composing views is composing, for each refined dimension of the
root, where it goes; nothing is ever computed.
"""

from dataclasses import dataclass

from soaprl.graph.factors import Span
from soaprl.graph.operators import Broadcast
from soaprl.graph.refine import aligned_pieces
from soaprl.graph.rules.base import Reshape, View

Extents = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Where one refined dimension of a root goes in a value.

    Attributes:
        to: Index of the value's refined dimension, or -1: the value sees all of ``[start, start + length)``.
        start: First index that the value sees.
        length: Number of indices that it sees.
    """

    to: int
    start: int
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """A value as a view of its root: one `Piece` for each refined dimension of the root."""

    root: int
    pieces: tuple[Piece, ...]


def stored(value: int, dims: Extents) -> Resolved:
    """A value that is stored itself."""
    extents = [extent for pieces in dims for extent in pieces]
    return Resolved(
        root=value, pieces=tuple(Piece(to=k, start=0, length=extent) for k, extent in enumerate(extents))
    )


def viewed(source: Resolved, view: View, source_dims: Extents, result_dims: Extents) -> Resolved:
    """What `view` of `source` sees of the same root."""
    step = _step(view, source_dims, result_dims)
    pieces = []
    for piece in source.pieces:
        if piece.to < 0:
            pieces.append(piece)
        else:
            taken = step[piece.to]
            pieces.append(Piece(to=taken.to, start=piece.start + taken.start, length=taken.length))
    return Resolved(root=source.root, pieces=tuple(pieces))


def _step(view: View, source_dims: Extents, result_dims: Extents) -> list[Piece]:
    """For each refined dimension of the view's source, where it goes in the view."""
    if isinstance(view, Reshape):
        return list(stored(0, source_dims).pieces)
    first = first_pieces(result_dims)
    step: list[Piece] = []
    for pieces, dim in zip(source_dims, view.dims, strict=True):
        fixed = aligned_pieces(pieces, dim.start, dim.length)
        if fixed is None:
            to = -1 if dim.out is None or not result_dims[dim.out] else first[dim.out]
            step.append(Piece(to=to, start=dim.start, length=dim.length))
            continue
        step.extend(Piece(to=-1, start=index, length=1) for index in fixed)
        for k, extent in enumerate(pieces[len(fixed) :]):
            assert dim.out is not None, "a dimension that is not selected goes somewhere"
            step.append(Piece(to=first[dim.out] + k, start=0, length=extent))
    return step


def first_pieces(dims: Extents) -> tuple[int, ...]:
    """For each dimension, the index of its first refined dimension among all."""
    return tuple(sum(len(pieces) for pieces in dims[:d]) for d in range(len(dims)))


def root_spans(resolved: Resolved, spans: tuple[Span, ...]) -> tuple[Span, ...]:
    """Spans over a value's refined dimensions, as spans over its root's."""
    return tuple(
        Span(factor=-1, lower=p.start, upper=p.start + p.length)
        if p.to < 0
        else spans[p.to].shifted(p.start, p.length)
        for p in resolved.pieces
    )


def root_layout(
    resolved: Resolved, dims: Extents, spans: tuple[Span, ...]
) -> tuple[tuple[int | Broadcast, ...], ...]:
    """For each dimension of a value, the refined dimensions of its root that it is a product of.

    Args:
        resolved: The value as a view.
        dims: The value's refined extents.
        spans: What a task reads, over the value's refined dimensions.
    """
    origin = {piece.to: k for k, piece in enumerate(resolved.pieces) if piece.to >= 0}
    layout, index = [], 0
    for pieces in dims:
        parts: list[int | Broadcast] = []
        for extent in pieces:
            repeated = Broadcast(factor=spans[index].factor if spans[index].plain else -1, extent=extent)
            parts.append(origin.get(index, repeated))
            index += 1
        layout.append(tuple(parts))
    return tuple(layout)
