"""Kernels over regions: which box of each tensor each task touches, and how boxes overlap.

A region is a box in the refined coordinates of a tensor, stored as (start, stop) for each dimension; it is
empty if any start >= stop. A tensor without dimensions has one element, which every region holds.
"""

from typing import NamedTuple

import numpy as np

from soaprl.cluster.tables import IntArray
from soaprl.cost.kernels import inner_kernel, kernel
from soaprl.graph.operators import Access


class SpanTable(NamedTuple):
    """The spans of several accesses, one after the other; see `soaprl.graph.factors.Span`.

    Attributes:
        spans: Shape [spans, 7]; factor, lower, upper, mul, div, add_first, add_last.
        access_begin: Shape [accesses + 1]; the spans of each access.
    """

    spans: IntArray
    access_begin: IntArray


def span_table(accesses: tuple[Access, ...]) -> SpanTable:
    """The spans of `accesses` as arrays."""
    rows = [
        (s.factor, s.lower, s.upper, s.mul, s.div, s.add_first, s.add_last)
        for access in accesses
        for s in access.spans
    ]
    return SpanTable(
        spans=np.array(rows, np.int64).reshape(-1, 7),
        access_begin=np.cumsum([0, *(len(access.spans) for access in accesses)], dtype=np.int64),
    )


@kernel
def factor_intervals(extents: IntArray, degrees: IntArray) -> IntArray:
    """The factor intervals of all tasks, shape [tasks, factors, 2]; tasks are row-major over the factors."""
    num_factors = len(extents)
    num_tasks = 1
    for f in range(num_factors):
        num_tasks *= degrees[f]
    intervals = np.empty((num_tasks, num_factors, 2), np.int64)
    for task in range(num_tasks):
        rest = task
        for f in range(num_factors - 1, -1, -1):
            part = rest % degrees[f]
            rest //= degrees[f]
            size = extents[f] // degrees[f]
            remainder = extents[f] % degrees[f]
            intervals[task, f, 0] = part * size + min(part, remainder)
            intervals[task, f, 1] = intervals[task, f, 0] + size + (1 if part < remainder else 0)
    return intervals


@kernel
def span_intervals(intervals: IntArray, table: SpanTable) -> IntArray:
    """What tasks with these factor intervals touch of each dimension, shape [tasks, spans, 2]."""
    num_tasks, num_spans = len(intervals), len(table.spans)
    touched = np.empty((num_tasks, num_spans, 2), np.int64)
    for s in range(num_spans):
        factor, lower, upper = table.spans[s, 0], table.spans[s, 1], table.spans[s, 2]
        mul, div = table.spans[s, 3], table.spans[s, 4]
        for task in range(num_tasks):
            start, stop = lower, upper
            if factor >= 0:
                first = (intervals[task, factor, 0] * mul + table.spans[s, 5]) // div
                last = ((intervals[task, factor, 1] - 1) * mul + table.spans[s, 6]) // div
                start, stop = max(first, lower), min(last + 1, upper)
            touched[task, s, 0] = start
            touched[task, s, 1] = stop
    return touched


@kernel
def region_elements(touched: IntArray, table: SpanTable) -> IntArray:
    """Number of elements of each task's region of each access, shape [tasks, accesses]."""
    num_tasks, num_accesses = len(touched), len(table.access_begin) - 1
    elements = np.ones((num_tasks, num_accesses), np.int64)
    for task in range(num_tasks):
        for a in range(num_accesses):
            for s in range(table.access_begin[a], table.access_begin[a + 1]):
                elements[task, a] *= max(0, touched[task, s, 1] - touched[task, s, 0])
    return elements


@inner_kernel
def _overlap(written: IntArray, read: IntArray, shape: IntArray) -> tuple[int, int]:
    """Elements in both boxes, and a number that only this box of the tensor has.

    The number is exact below 3e9 elements, and a 64-bit hash (it wraps around) for larger tensors.
    """
    elements, box = 1, 0
    for d in range(len(shape)):
        start = max(written[d, 0], read[d, 0])
        stop = min(written[d, 1], read[d, 1])
        if start >= stop:
            return 0, 0
        elements *= stop - start
        box = (box * shape[d] + start) * shape[d] + stop - 1
    return elements, box


@kernel
def overlaps(
    written: IntArray, read: IntArray, shape: IntArray
) -> tuple[IntArray, IntArray, IntArray, IntArray]:
    """All pairs of a writing and a reading task whose boxes of one tensor overlap.

    Args:
        written: Shape [writers, dims, 2].
        read: Shape [readers, dims, 2].
        shape: Refined shape of the tensor.

    Returns:
        Where each writer's pairs begin (shape [writers + 1]), and for each pair the reader, the number of
        elements in both, and a number of the box they have in common.
    """
    begin = np.zeros(len(written) + 1, np.int64)
    capacity = 2 * (len(written) + len(read))
    readers, elements, boxes = (
        np.empty(capacity, np.int64),
        np.empty(capacity, np.int64),
        np.empty(capacity, np.int64),
    )
    count = 0
    for w in range(len(written)):
        for r in range(len(read)):
            size, box = _overlap(written[w], read[r], shape)
            if size == 0:
                continue
            if count == capacity:
                capacity *= 2
                readers, elements, boxes = _grown(readers), _grown(elements), _grown(boxes)
            readers[count], elements[count], boxes[count] = r, size, box
            count += 1
        begin[w + 1] = count
    return begin, readers[:count], elements[:count], boxes[:count]


@kernel
def _grown(values: IntArray) -> IntArray:
    """A copy with twice the room."""
    larger = np.empty(2 * len(values), np.int64)
    larger[: len(values)] = values
    return larger
