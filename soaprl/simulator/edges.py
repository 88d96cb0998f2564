"""Computes the patterns of edges: which tasks of a producer and a consumer exchange how many bytes.

Many changes make neighbours of two configurations that were not neighbours before. So this is done in
compiled code, as a change is applied, where Python has made room.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from soaprl.cluster.tables import IntArray
from soaprl.cost.kernels import inner_kernel
from soaprl.graph.operators import OperatorGraph
from soaprl.simulator.lookup import MISSING, Table, find, has_room, put, step_key
from soaprl.simulator.patterns import EdgePatterns, PatternPools
from soaprl.simulator.regions import access_spans
from soaprl.simulator.tables import Edge

# Entries of `EdgePatterns.sizes`.
_PATTERNS, _ROWS, _PAIRS = 0, 1, 2
# Numbers of patterns are below it: see `soaprl.simulator.lookup.step_key`.
MOST_NUMBER = 2**31


class EdgeEnds(NamedTuple):
    """What both ends of E edges access, whatever their degrees.

    Attributes:
        written_at: Shape [E]; the producer's first span of the tensor (see `OperatorPattern.table`).
        read_at: Shape [E]; the consumer's.
        shape_begin: Shape [E + 1]; where the refined shape of each tensor begins.
        shape: Those shapes.
        itemsize: Shape [E]; bytes of an element.
    """

    written_at: IntArray
    read_at: IntArray
    shape_begin: IntArray
    shape: IntArray
    itemsize: IntArray


class Found(NamedTuple):
    """All patterns that were computed so far, and where they are.

    Attributes:
        pools: What they consist of.
        operators: Shape [patterns, 6]: tasks, part base, output base, number of the degrees, where its boxes
            begin in `boxes`, and spans of each operator pattern.
        groups: Shape [patterns, 3]: first cell, end of cells, covers of each group pattern.
        boxes: What tasks touch: for each task of an operator pattern and each span, start and stop.
        ends: Of the edges.
        table: From an edge and the patterns of its producer and its consumer, and from a group (its number
            beyond the edges) and the patterns of its readers, step by step to the pattern.
        next_node: Shape [1]; the number of the next step.
    """

    pools: PatternPools
    operators: IntArray
    groups: IntArray
    boxes: IntArray
    ends: EdgeEnds
    table: Table
    next_node: IntArray


def no_edges() -> EdgePatterns:
    """No patterns of edges, with room for some."""
    pairs = [np.zeros(1024, np.int64) for _ in range(3)]
    return EdgePatterns(
        patterns=np.zeros((64, 2), np.int64),
        rows=np.zeros(1024, np.int64),
        pair_reader=pairs[0],
        pair_bytes=pairs[1],
        pair_box=pairs[2],
        sizes=np.zeros(3, np.int64),
    )


def with_room(edges: EdgePatterns, most_parts: int) -> EdgePatterns:
    """The same patterns, and room for one more between operators of at most so many tasks."""
    num_patterns, num_rows, num_pairs = edges.sizes.tolist()
    most_pairs = num_pairs + most_parts**2
    return EdgePatterns(
        patterns=_grown(edges.patterns, num_patterns + 1),
        rows=_grown(edges.rows, num_rows + most_parts + 1),
        pair_reader=_grown(edges.pair_reader, most_pairs),
        pair_bytes=_grown(edges.pair_bytes, most_pairs),
        pair_box=_grown(edges.pair_box, most_pairs),
        sizes=edges.sizes.copy(),
    )


def _grown(values: IntArray, count: int) -> IntArray:
    """These values in an array that has `count` rows; they themselves if it has."""
    if count <= len(values):
        return values
    larger = np.zeros((2 * count, *values.shape[1:]), np.int64)
    larger[: len(values)] = values
    return larger


def edge_ends(graph: OperatorGraph, edges: Sequence[Edge]) -> EdgeEnds:
    """The ends of `edges`."""
    written_at, read_at, itemsize = [], [], []
    shapes: list[tuple[int, ...]] = []
    for edge in edges:
        producer, consumer = graph.operators[edge.producer], graph.operators[edge.consumer]
        output = len(producer.inputs) + len(producer.parameters) + edge.output
        written_at.append(access_spans(producer, output))
        read_at.append(access_spans(consumer, edge.position))
        tensor = graph.tensors[producer.outputs[edge.output].tensor]
        itemsize.append(tensor.itemsize)
        shapes.append(tensor.refined_shape)
    return EdgeEnds(
        written_at=np.array(written_at, np.int64),
        read_at=np.array(read_at, np.int64),
        shape_begin=np.cumsum([0, *map(len, shapes)], dtype=np.int64),
        shape=np.array([extent for shape in shapes for extent in shape], np.int64),
        itemsize=np.array(itemsize, np.int64),
    )


@inner_kernel
def learn_edge(found: Found, e: int, producer: int, consumer: int) -> int:
    """Computes the pattern of an edge between two patterns of operators.

    Args:
        found: All patterns; this one is added.
        e: The edge, of the first micro-batch.
        producer: The pattern of the producer.
        consumer: The pattern of the consumer.

    Returns:
        Its number; `MISSING` if the pools have not enough room for it.
    """
    edges, edge = found.pools.edges, found.pools.edges.sizes[_PATTERNS]
    first, end = edges.sizes[_ROWS], edges.sizes[_ROWS] + found.operators[producer, 0] + 1
    if not has_room(found.table, 2) or edge >= len(edges.patterns) or end > len(edges.rows):
        return MISSING
    num_pairs = _fill_pairs(found, edges, e, producer, consumer)
    if num_pairs < 0 or found.next_node[0] >= MOST_NUMBER:
        return MISSING
    edges.patterns[edge, 0], edges.patterns[edge, 1] = first, num_pairs
    edges.sizes[_PATTERNS], edges.sizes[_ROWS] = edge + 1, end
    edges.sizes[_PAIRS] += num_pairs
    node = find(found.table, step_key(e, producer))
    if node == MISSING:
        node = found.next_node[0]
        found.next_node[0] += 1
        put(found.table, step_key(e, producer), node)
    put(found.table, step_key(node, consumer), edge)
    return int(edge)


@inner_kernel
def _fill_pairs(found: Found, edges: EdgePatterns, e: int, producer: int, consumer: int) -> int:
    """Fills in all pairs of a writing and a reading task whose boxes overlap; how many they are.

    -1 if there is not enough room.
    """
    boxes, ends, operators = found.boxes, found.ends, found.operators
    row, pair, room = edges.sizes[_ROWS], edges.sizes[_PAIRS], len(edges.pair_reader)
    num_writers, num_readers = operators[producer, 0], operators[consumer, 0]
    shape_begin, num_dims = ends.shape_begin[e], ends.shape_begin[e + 1] - ends.shape_begin[e]
    write_step, read_step = 2 * operators[producer, 5], 2 * operators[consumer, 5]
    first_written = operators[producer, 4] + 2 * ends.written_at[e]
    first_read = operators[consumer, 4] + 2 * ends.read_at[e]
    for writer in range(num_writers):
        edges.rows[row + writer], written = pair, first_written + writer * write_step
        for reader in range(num_readers):
            read = first_read + reader * read_step
            elements, box = _overlap(boxes, written, read, ends.shape, shape_begin, num_dims)
            if elements == 0:
                continue
            if pair >= room:
                return -1
            edges.pair_reader[pair], edges.pair_box[pair] = reader, box
            edges.pair_bytes[pair] = elements * ends.itemsize[e]
            pair += 1
    edges.rows[row + num_writers] = pair
    return int(pair - edges.sizes[_PAIRS])


@inner_kernel
def _overlap(
    boxes: IntArray, written: int, read: int, shape: IntArray, shape_begin: int, num_dims: int
) -> tuple[int, int]:
    """Elements in both of two boxes of a tensor, and a number that only what they have in common has.

    The number is exact below 3e9 elements, and a 64-bit hash (it wraps around) for larger tensors.
    """
    elements, box = 1, 0
    for d in range(num_dims):
        start = max(boxes[written + 2 * d], boxes[read + 2 * d])
        stop = min(boxes[written + 2 * d + 1], boxes[read + 2 * d + 1])
        if start >= stop:
            return 0, 0
        elements *= stop - start
        box = (box * shape[shape_begin + d] + start) * shape[shape_begin + d] + stop - 1
    return elements, box
