"""Cells: the finest boxes into which the tasks that read a parameter cut it.

All elements of a cell are held by the same tasks, so their gradients are summed over the same devices. Cells
that the same tasks hold, of one parameter or of several, are merged: they are one all-reduce.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from soaprl.cluster.cluster import DeviceType
from soaprl.cluster.tables import IntArray
from soaprl.cost.model import CostModel
from soaprl.graph.operators import OperatorGraph
from soaprl.simulator.patterns import OperatorPattern
from soaprl.simulator.pools import Pool
from soaprl.simulator.tables import SyncGroup, contributes


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncPattern:
    """A synchronization group whose readers have given degrees: a range of cells.

    Attributes:
        cell_begin: Its first cell.
        cell_end: One past its last cell.
        num_covers: Number of (cell, holding task) pairs.
    """

    cell_begin: int
    cell_end: int
    num_covers: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Readers:
    """Of each task that reads a parameter the reader, the part, the box, and whether it contributes."""

    reader: IntArray
    part: IntArray
    boxes: IntArray
    contributes: IntArray


@dataclass(slots=True, kw_only=True)
class _Cell:
    """A merged cell in the making."""

    num_bytes: int
    trainable: bool
    cover: IntArray


class SyncPools:
    """The pools of cells; see `soaprl.simulator.patterns.PatternPools` for what each holds."""

    def __init__(self, graph: OperatorGraph, cost: CostModel, device_types: tuple[DeviceType, ...]) -> None:
        self._graph = graph
        self._cost = cost
        self._device_types = device_types
        self.cell_bytes = Pool(np.int64)
        self.cell_trainable = Pool(np.int64)
        self.cell_update_s = Pool(np.float64)
        self.cover_begin = Pool(np.int64)
        self.cover_begin.append(np.zeros(1, np.int64))
        self.cover_reader = Pool(np.int64)
        self.cover_part = Pool(np.int64)
        self.cover_contributes = Pool(np.int64)

    def add_group(self, group: SyncGroup, patterns: tuple[OperatorPattern, ...]) -> SyncPattern:
        """Computes the cells of `group`; `patterns` are those of its readers."""
        first, first_cover = self.cell_bytes.size, self.cover_part.size
        for cell in self._cells(group, patterns):
            self._add_cell(cell)
        return SyncPattern(
            cell_begin=first, cell_end=self.cell_bytes.size, num_covers=self.cover_part.size - first_cover
        )

    def _cells(self, group: SyncGroup, patterns: tuple[OperatorPattern, ...]) -> list[_Cell]:
        """The merged cells in order: by parameter, then row-major."""
        merged: dict[tuple[bytes, bool], _Cell] = {}
        for tensor in group.tensors:
            stored = self._graph.tensors[tensor]
            for elements, cover in _tensor_cells(self._readers(group, patterns, tensor)):
                trainable = stored.requires_grad and bool(cover[:, 2].any())
                key = (cover.tobytes(), trainable)
                cell = merged.setdefault(key, _Cell(num_bytes=0, trainable=trainable, cover=cover))
                cell.num_bytes += elements * stored.itemsize
        return list(merged.values())

    def _readers(self, group: SyncGroup, patterns: tuple[OperatorPattern, ...], tensor: int) -> _Readers:
        reader, part, boxes, gives = [], [], [], []
        for number, (operator_index, pattern) in enumerate(zip(group.readers, patterns, strict=True)):
            operator = self._graph.operators[operator_index]
            for position, access in enumerate(operator.parameters):
                if access.tensor == tensor:
                    reader.append(np.full(pattern.num_parts, number, np.int64))
                    part.append(np.arange(pattern.num_parts, dtype=np.int64))
                    boxes.append(pattern.regions(len(operator.inputs) + position))
                    gives.append(np.full(pattern.num_parts, contributes(operator, access), np.int64))
        return _Readers(
            reader=np.concatenate(reader),
            part=np.concatenate(part),
            boxes=np.concatenate(boxes),
            contributes=np.concatenate(gives),
        )

    def _add_cell(self, cell: _Cell) -> None:
        self.cell_bytes.append(np.array([cell.num_bytes], np.int64))
        self.cell_trainable.append(np.array([cell.trainable], np.int64))
        update_s = [
            self._cost.update_time(cell.num_bytes, t) if cell.trainable else 0.0 for t in self._device_types
        ]
        self.cell_update_s.append(np.array(update_s, np.float64))
        self.cover_reader.append(cell.cover[:, 0])
        self.cover_part.append(cell.cover[:, 1])
        self.cover_contributes.append(cell.cover[:, 2])
        self.cover_begin.append(np.array([self.cover_part.size], np.int64))


def _tensor_cells(readers: _Readers) -> list[tuple[int, IntArray]]:
    """Elements and cover of the cells of one parameter, each cover once.

    A cover has a row (reader, part, contributes) for each task that reads the cell.
    """
    boxes = readers.boxes
    if boxes.shape[1] == 0:
        boxes = np.tile(np.array([[0, 1]], np.int64), (len(boxes), 1, 1))
    filled = np.asarray((boxes[:, :, 0] < boxes[:, :, 1]).all(axis=1), np.bool_)
    if not filled.any():
        return []
    cuts = [np.unique(boxes[filled, d]) for d in range(boxes.shape[1])]
    first = [np.searchsorted(c, boxes[:, d, 0]) for d, c in enumerate(cuts)]
    last = [np.searchsorted(c, boxes[:, d, 1]) for d, c in enumerate(cuts)]
    shape = tuple(len(c) - 1 for c in cuts)
    signature, elements = np.zeros(shape, np.uint64), np.ones(shape, np.int64)
    for d, cut in enumerate(cuts):
        elements *= np.diff(cut).reshape([-1 if e == d else 1 for e in range(len(cuts))])
    marks = _marks(len(boxes))
    for task in np.flatnonzero(filled):
        signature[tuple(slice(f[task], e[task]) for f, e in zip(first, last, strict=True))] += marks[task]
    kinds, where, which = np.unique(signature.ravel(), return_index=True, return_inverse=True)
    sums = np.bincount(which.ravel(), weights=elements.ravel(), minlength=len(kinds)).astype(np.int64)
    cells = []
    for kind in np.argsort(where):
        index = np.unravel_index(where[kind], shape)
        holds: NDArray[np.bool_] = filled.copy()
        for d, coordinate in enumerate(index):
            np.logical_and(holds, (first[d] <= coordinate) & (coordinate < last[d]), out=holds)
        if holds.any():
            cells.append((int(sums[kind]), _cover(readers, holds)))
    return cells


def _marks(count: int) -> NDArray[np.uint64]:
    """A pseudo-random 64-bit number for each task: equal sums of marks mean equal sets of tasks."""
    return np.random.Generator(np.random.PCG64(0)).integers(0, 2**64, count, dtype=np.uint64)


def _cover(readers: _Readers, holds: NDArray[np.bool_]) -> IntArray:
    """The distinct (reader, part) of the tasks that hold a cell, and whether any access contributes."""
    rows = np.stack([readers.reader[holds], readers.part[holds], readers.contributes[holds]], axis=1)
    order = np.lexsort((1 - rows[:, 2], rows[:, 1], rows[:, 0]))
    rows = rows[order]
    new = np.ones(len(rows), np.bool_)
    new[1:] = (rows[1:, :2] != rows[:-1, :2]).any(axis=1)
    return np.ascontiguousarray(rows[new])
