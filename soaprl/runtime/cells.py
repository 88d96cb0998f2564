"""Cells of parameters: boxes whose elements the same ranks hold, as large as possible.

A rank holds what its tasks read. Gradients of a cell that several ranks hold are summed over all of them once
the last contribution is there. Elements that no task reads (rows of a table that the model slices off) are
held by the first rank that holds any of the tensor, so that weight decay reaches them as it should.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from soaprl.graph.operators import OperatorGraph, TensorRole
from soaprl.runtime.boxes import common, merged, num_elements
from soaprl.runtime.layout import Tasks
from soaprl.runtime.program import Block, Box


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A box of a parameter.

    Attributes:
        block: The box.
        holders: The ranks that hold it, ascending; the first one owns it.
        completed_by: The operator whose backward pass gives the last contribution to its gradient, or -1 if
            nothing contributes.
    """

    block: Block
    holders: tuple[int, ...]
    completed_by: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """One reading of a parameter.

    Attributes:
        rank: The reading rank.
        operator: The reading operator.
        box: What is read.
        contributes: Whether a gradient comes of it.
    """

    rank: int
    operator: int
    box: Box
    contributes: bool


def parameter_holdings(graph: OperatorGraph, tasks: tuple[Tasks, ...]) -> dict[int, list[Holding]]:
    """All readings of each parameter, by tensor; empty regions hold nothing."""
    found: dict[int, dict[Holding, None]] = {}
    for number, (operator, layout) in enumerate(zip(graph.operators, tasks, strict=True)):
        for access, boxes in zip(operator.parameters, layout.parameters, strict=True):
            if graph.tensors[access.tensor].role is not TensorRole.PARAMETER:
                continue
            gives = access.gradient and operator.has_backward
            for rank, box in zip(layout.ranks, boxes, strict=True):
                if num_elements(box):
                    holding = Holding(rank=rank, operator=number, box=box, contributes=gives)
                    found.setdefault(access.tensor, {})[holding] = None
    return {tensor: list(found[tensor]) for tensor in sorted(found)}


def parameter_cells(
    graph: OperatorGraph, holdings: dict[int, list[Holding]], backward_places: Sequence[int]
) -> list[Cell]:
    """The cells of all parameters, by tensor and then row-major.

    Args:
        graph: The operators.
        holdings: All readings of each parameter.
        backward_places: For each operator, how many backward passes come before its own.
    """
    return [
        cell
        for tensor, readings in holdings.items()
        for cell in _tensor_cells(tensor, graph.tensors[tensor].refined_shape, readings, backward_places)
    ]


def _tensor_cells(
    tensor: int, shape: tuple[int, ...], readings: list[Holding], backward_places: Sequence[int]
) -> list[Cell]:
    cuts = tuple(
        tuple(sorted({0, extent, *(edge for r in readings for edge in r.box[d])}))
        for d, extent in enumerate(shape)
    )
    sides = [len(cut) - 1 for cut in cuts]
    index_of = [{edge: i for i, edge in enumerate(cut)} for cut in cuts]
    ranks = sorted({r.rank for r in readings})
    held = [np.zeros(sides, np.bool_) for _ in ranks]
    last = np.full(sides, -1, np.int64)
    for reading in readings:
        where = tuple(slice(at[a], at[b]) for at, (a, b) in zip(index_of, reading.box, strict=True))
        held[ranks.index(reading.rank)][where] = True
        if reading.contributes:
            last[where] = np.maximum(last[where], backward_places[reading.operator])
    held[0] |= ~np.any(held, axis=0)
    keys = np.stack([*held, last]).reshape(len(ranks) + 1, -1).T
    operator_at = {backward_places[r.operator]: r.operator for r in readings}
    distinct, labels = np.unique(keys, axis=0, return_inverse=True)
    return [
        Cell(
            block=Block(tensor=tensor, box=box),
            holders=tuple(r for r, holds in zip(ranks, distinct[label][:-1].tolist(), strict=True) if holds),
            completed_by=operator_at.get(int(distinct[label][-1]), -1),
        )
        for label, box in merged(labels.reshape(sides), cuts)
    ]


def completed_in(cell: Cell, readings: Iterable[Holding], places: Mapping[int, int]) -> Cell:
    """A cell as some of the backward passes complete it.

    Args:
        cell: The cell.
        readings: All readings of its tensor.
        places: For each of these passes, by operator, how many come before it.
    """
    found = [
        reading.operator
        for reading in readings
        if reading.contributes and reading.operator in places and _shares(reading.box, cell.block.box)
    ]
    return replace(cell, completed_by=max(found, key=places.__getitem__, default=-1))


def _shares(first: Box, second: Box) -> bool:
    return num_elements(common(first, second)) > 0


def rank_blocks(cells: list[Cell], num_ranks: int, *, joined: bool = True) -> list[tuple[Block, ...]]:
    """For each rank, what it holds of every parameter: in as few boxes as possible, or cell by cell."""
    by_rank: list[dict[int, list[Box]]] = [{} for _ in range(num_ranks)]
    for cell in cells:
        for rank in cell.holders:
            by_rank[rank].setdefault(cell.block.tensor, []).append(cell.block.box)
    return [
        tuple(
            Block(tensor=tensor, box=box)
            for tensor, boxes in held.items()
            for box in (_joined(boxes) if joined else boxes)
        )
        for held in by_rank
    ]


def _joined(boxes: list[Box]) -> list[Box]:
    """Disjoint boxes as fewer of the same union."""
    if len(boxes) == 1:
        return boxes
    cuts = tuple(tuple(sorted({edge for box in boxes for edge in box[d]})) for d in range(len(boxes[0])))
    labels = np.full([len(cut) - 1 for cut in cuts], -1, np.int64)
    for box in boxes:
        labels[tuple(slice(c.index(a), c.index(b)) for c, (a, b) in zip(cuts, box, strict=True))] = 0
    return [box for _, box in merged(labels, cuts)]
