"""Cells: the finest boxes into which the tasks that read a parameter cut it.

All elements of a cell are held by the same tasks, so their gradients are summed over the same devices. Cells
that the same tasks hold, of one parameter or of several, are merged: they are one all-reduce.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from soaprl.cluster.cluster import DeviceType
from soaprl.cluster.tables import IntArray
from soaprl.cost.compression import Compression, codec_time, find_compression
from soaprl.cost.kernels import kernel
from soaprl.cost.model import CostModel
from soaprl.cost.ticks import all_in_ticks
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
class _Cells:
    """The merged cells of a group.

    Attributes:
        num_bytes: Bytes of each.
        sent_bits: Bits of the gradient of each on the wire.
        trainable: Whether each gets a gradient.
        covers: For each, a row (reader, part, contributes) for each task that holds it.
    """

    num_bytes: list[int]
    sent_bits: list[int]
    trainable: list[bool]
    covers: list[IntArray]


class SyncPools:
    """The pools of cells; see `soaprl.simulator.patterns.PatternPools` for what each holds.

    Args:
        graph: The graph.
        cost: Update times.
        device_types: The types of devices.
        compression: Of gradients on the wire; None for none.
        most_pieces: Into how many pieces cells are sharded at most; each may be updated in pieces.
    """

    def __init__(
        self,
        graph: OperatorGraph,
        cost: CostModel,
        device_types: tuple[DeviceType, ...],
        *,
        compression: Compression | None = None,
        most_pieces: int = 1,
    ) -> None:
        self._graph = graph
        self._cost = cost
        self._device_types = device_types
        self._compression = compression or find_compression("none")
        self._most_pieces = most_pieces
        self.cell_bytes = Pool(np.int64)
        self.cell_sent_bytes = Pool(np.int64) if self._compression.active else self.cell_bytes
        self.cell_codec_s = Pool(np.float64)
        self.cell_update_begin = Pool(np.int64)
        self.cell_trainable = Pool(np.int64)
        self.cell_update_s = Pool(np.float64)
        self.cover_begin = Pool(np.int64)
        self.cover_begin.append(np.zeros(1, np.int64))
        self.cover_reader = Pool(np.int64)
        self.cover_part = Pool(np.int64)
        self.cover_contributes = Pool(np.int64)

    @property
    def pools(self) -> tuple[Pool, ...]:
        """All of them."""
        cells = self.cell_bytes, self.cell_sent_bytes, self.cell_codec_s, self.cell_trainable
        updates, covers = (self.cell_update_begin, self.cell_update_s), (self.cover_begin, self.cover_reader)
        return *cells, *updates, *covers, self.cover_part, self.cover_contributes

    def add_group(self, group: SyncGroup, patterns: tuple[OperatorPattern, ...]) -> SyncPattern:
        """Computes the cells of `group`; `patterns` are those of its readers."""
        cells = self._cells(group, patterns)
        if not cells.covers:
            return SyncPattern(cell_begin=self.cell_bytes.size, cell_end=self.cell_bytes.size, num_covers=0)
        first = self.cell_bytes.append(np.array(cells.num_bytes, np.int64))
        self.cell_trainable.append(np.array(cells.trainable, np.int64))
        self._add_update_times(cells)
        if self._compression.active:
            self._add_sent(cells)
        covers = np.concatenate(cells.covers)
        first_cover = self.cover_reader.append(covers[:, 0])
        self.cover_part.append(covers[:, 1])
        self.cover_contributes.append(covers[:, 2])
        self.cover_begin.append(first_cover + np.cumsum([len(c) for c in cells.covers], dtype=np.int64))
        return SyncPattern(cell_begin=first, cell_end=self.cell_bytes.size, num_covers=len(covers))

    def _add_update_times(self, cells: _Cells) -> None:
        """Seconds by cell, number of pieces (from 1 on) and device type, of one piece."""
        known: dict[int, list[float]] = {}
        rows, counts = [], []
        for size, trainable, cover in zip(cells.num_bytes, cells.trainable, cells.covers, strict=True):
            counts.append(min(self._most_pieces, len(cover)))
            for pieces in range(1, counts[-1] + 1):
                piece = -(-size // pieces) if trainable else 0
                if piece not in known:
                    known[piece] = [self._cost.update_time(piece, t) for t in self._device_types]
                rows.append(known[piece] if trainable else [0.0] * len(self._device_types))
        first = self.cell_update_s.append(all_in_ticks(np.array(rows, np.float64).ravel()))
        if self._most_pieces > 1:
            before = np.cumsum([0, *counts[:-1]], dtype=np.int64)
            self.cell_update_begin.append(first // max(1, len(self._device_types)) + before)

    def _add_sent(self, cells: _Cells) -> None:
        """Bytes of gradients on the wire by cell, and seconds of encoding and decoding by device type."""
        sent = [-(-bits // 8) for bits in cells.sent_bits]
        self.cell_sent_bytes.append(np.array(sent, np.int64))
        pairs = zip(cells.num_bytes, sent, strict=True)
        times = [[codec_time(size, small, t) for t in self._device_types] for size, small in pairs]
        self.cell_codec_s.append(np.array(times, np.float64).ravel())

    def _cells(self, group: SyncGroup, patterns: tuple[OperatorPattern, ...]) -> _Cells:
        """The merged cells in order: by parameter, then row-major."""
        number: dict[tuple[bytes, bool], int] = {}
        merged = _Cells(num_bytes=[], sent_bits=[], trainable=[], covers=[])
        for tensor in group.tensors:
            stored = self._graph.tensors[tensor]
            bits = self._compression.bits_of(stored.itemsize)
            elements, begin, rows = tensor_cells(*self._readers(group, patterns, tensor))
            for k, count in enumerate(elements.tolist()):
                cover = rows[begin[k] : begin[k + 1]]
                trainable = stored.requires_grad and bool(cover[:, 2].any())
                at = number.setdefault((cover.tobytes(), trainable), len(number))
                if at == len(merged.covers):
                    merged.num_bytes.append(0)
                    merged.sent_bits.append(0)
                    merged.trainable.append(trainable)
                    merged.covers.append(cover)
                merged.num_bytes[at] += count * stored.itemsize
                merged.sent_bits[at] += count * bits
        return merged

    def _readers(
        self, group: SyncGroup, patterns: tuple[OperatorPattern, ...], tensor: int
    ) -> tuple[IntArray, IntArray]:
        """The arguments of `tensor_cells`."""
        tasks, boxes = [], []
        for number, (operator_index, pattern) in enumerate(zip(group.readers, patterns, strict=True)):
            operator = self._graph.operators[operator_index]
            for position, access in enumerate(operator.parameters):
                if access.tensor == tensor:
                    rows = np.empty((pattern.num_parts, 3), np.int64)
                    rows[:, 0] = number
                    rows[:, 1] = np.arange(pattern.num_parts)
                    rows[:, 2] = contributes(operator, access)
                    tasks.append(rows)
                    boxes.append(pattern.regions(len(operator.inputs) + position))
        joined = np.concatenate(boxes)
        if joined.shape[1] == 0:
            joined = np.tile(np.array([[0, 1]], np.int64), (len(joined), 1, 1))
        return np.concatenate(tasks), joined


@kernel
def tensor_cells(tasks: IntArray, boxes: IntArray) -> tuple[IntArray, IntArray, IntArray]:
    """The cells of one parameter; those that the same tasks hold count as one.

    Args:
        tasks: Shape [tasks, 3]: reader, part, and 1 if the task computes a gradient; a task that reads the
            parameter twice has two rows.
        boxes: Shape [tasks, dims, 2]: what each reads; empty boxes hold nothing.

    Returns:
        Elements of each cell [cells]; where its cover begins [cells + 1]; the covers, rows as in `tasks`,
        ascending, each task once.
    """
    num_tasks, num_dims = boxes.shape[0], boxes.shape[1]
    grid = _grid(boxes)
    first, last, cuts, sides = grid
    strides = np.ones(num_dims, np.int64)
    for d in range(num_dims - 2, -1, -1):
        strides[d] = strides[d + 1] * sides[d + 1]
    num_boxes = max(strides[0] * sides[0], 0)
    signature = np.zeros(num_boxes, np.uint64)
    index = np.zeros(num_dims, np.int64)
    for task in range(num_tasks):
        mark = _mark(task)
        size = 1
        for d in range(num_dims):
            size *= max(last[task, d] - first[task, d], 0)
            index[d] = first[task, d]
        for _ in range(size):
            at = 0
            for d in range(num_dims):
                at += index[d] * strides[d]
            signature[at] += mark
            for d in range(num_dims - 1, -1, -1):
                index[d] += 1
                if index[d] < last[task, d]:
                    break
                index[d] = first[task, d]
    return _covers(tasks, first, last, cuts, sides, strides, signature)


@kernel
def _grid(boxes: IntArray) -> tuple[IntArray, IntArray, IntArray, IntArray]:
    """The cuts of each dimension, how many intervals they make, and each box as a range of intervals."""
    num_tasks, num_dims = boxes.shape[0], boxes.shape[1]
    first, last = np.zeros((num_tasks, num_dims), np.int64), np.zeros((num_tasks, num_dims), np.int64)
    cuts, sides = np.zeros((num_dims, 2 * num_tasks), np.int64), np.zeros(num_dims, np.int64)
    filled = np.ones(num_tasks, np.bool_)
    for task in range(num_tasks):
        for d in range(num_dims):
            filled[task] = filled[task] and boxes[task, d, 0] < boxes[task, d, 1]
    for d in range(num_dims):
        edges = np.unique(boxes[filled, d, :].copy().ravel())
        cuts[d, : len(edges)] = edges
        sides[d] = len(edges) - 1
        for task in range(num_tasks):
            if filled[task]:
                first[task, d] = np.searchsorted(edges, boxes[task, d, 0])
                last[task, d] = np.searchsorted(edges, boxes[task, d, 1])
    return first, last, cuts, sides


@kernel
def _mark(task: int) -> np.uint64:
    """A pseudo-random number for each task (SplitMix64): equal sums of marks mean equal sets of tasks."""
    z = np.uint64(task + 1) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.uint64(z ^ (z >> np.uint64(31)))


@kernel
def _covers(
    tasks: IntArray,
    first: IntArray,
    last: IntArray,
    cuts: IntArray,
    sides: IntArray,
    strides: IntArray,
    signature: NDArray[np.uint64],
) -> tuple[IntArray, IntArray, IntArray]:
    """The distinct signatures in order of appearance, with their elements and the tasks behind them."""
    order = np.argsort(signature, kind="mergesort")
    cell_of, num_kinds = np.zeros(len(signature), np.int64), 0
    where = np.zeros(len(signature), np.int64)
    for i, at in enumerate(order):
        if i == 0 or signature[at] != signature[order[i - 1]]:
            where[num_kinds] = at
            num_kinds += 1
        cell_of[at] = num_kinds - 1
    elements = np.zeros(num_kinds, np.int64)
    for at in range(len(signature)):
        size = 1
        for d in range(len(sides)):
            k = at // strides[d] % sides[d]
            size *= cuts[d, k + 1] - cuts[d, k]
        elements[cell_of[at]] += size
    room = 0
    for kind in range(num_kinds):
        for task in range(len(tasks)):
            room += _holds(first, last, sides, strides, where[kind], task)
    rows = np.zeros((room, 3), np.int64)
    begin, sizes = np.zeros(num_kinds + 1, np.int64), np.zeros(num_kinds, np.int64)
    num_cells, end = 0, 0
    for kind in np.argsort(where[:num_kinds]):
        if signature[where[kind]] == 0:
            continue
        for task in range(len(tasks)):
            if _holds(first, last, sides, strides, where[kind], task):
                end = _insert(rows, begin[num_cells], end, tasks[task])
        sizes[num_cells] = elements[kind]
        num_cells += 1
        begin[num_cells] = end
    return sizes[:num_cells].copy(), begin[: num_cells + 1].copy(), rows[:end].copy()


@kernel
def _holds(first: IntArray, last: IntArray, sides: IntArray, strides: IntArray, at: int, task: int) -> bool:
    """Whether a task's box covers the interval box number `at`."""
    for d in range(len(sides)):
        k = at // strides[d] % sides[d]
        if not first[task, d] <= k < last[task, d]:
            return False
    return True


@kernel
def _insert(rows: IntArray, begin: int, end: int, row: IntArray) -> int:
    """Inserts a task into the ascending ``rows[begin:end]``, or marks that it contributes if it is there."""
    at = end
    while at > begin and (
        rows[at - 1, 0] > row[0] or (rows[at - 1, 0] == row[0] and rows[at - 1, 1] > row[1])
    ):
        at -= 1
    if at > begin and rows[at - 1, 0] == row[0] and rows[at - 1, 1] == row[1]:
        rows[at - 1, 2] = max(rows[at - 1, 2], row[2])
        return end
    for k in range(end, at, -1):
        rows[k] = rows[k - 1]
    rows[at] = row
    return end + 1
