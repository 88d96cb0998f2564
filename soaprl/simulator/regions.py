"""Kernels over regions: which box of each tensor each task touches.

A region is a box in the refined coordinates of a tensor, stored as (start, stop) for each dimension; it is
empty if any start >= stop. A tensor without dimensions has one element, which every region holds.
"""

from typing import NamedTuple

import numpy as np

from soaprl.cluster.tables import IntArray
from soaprl.cost.kernels import kernel
from soaprl.graph.operators import Access, Operator


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


def operator_accesses(operator: Operator) -> tuple[Access, ...]:
    """The accesses of an operator in the order in which patterns number them."""
    return (*operator.inputs, *operator.parameters, *operator.outputs, *operator.buffers)


def access_spans(operator: Operator, access: int) -> int:
    """The number of the first span of access number `access`."""
    return sum(len(before.spans) for before in operator_accesses(operator)[:access])


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
