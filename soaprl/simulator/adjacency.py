"""Who is next to whom in an operator graph, as flat arrays: what a change of one operator touches."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from soaprl.cluster.tables import IntArray
from soaprl.simulator.tables import GraphIndex


class Adjacency(NamedTuple):
    """Lists by operator; the list of operator o is ``lists[begin[o] : begin[o + 1]]``.

    Attributes:
        in_begin: Of `in_edges`.
        in_edges: The edges that an operator reads.
        edge_producer: Shape [edges]; the producing operator.
        before_begin: Of `before`.
        before: The operators whose outputs an operator reads, ascending.
        after_begin: Of `after`.
        after: The operators that read outputs of an operator, ascending.
        group_begin: Of `groups`.
        groups: The synchronization groups of which an operator is a reader.
        edge_of_begin: Of `edges_of`.
        edges_of: The edges at either end of which an operator is.
        edge_like: Shape [edges]; the first edge that has the same patterns: that of the first micro-batch.
        group_like: Shape [groups]; the first group that has the same patterns, likewise.
    """

    in_begin: IntArray
    in_edges: IntArray
    edge_producer: IntArray
    before_begin: IntArray
    before: IntArray
    after_begin: IntArray
    after: IntArray
    group_begin: IntArray
    groups: IntArray
    edge_of_begin: IntArray
    edges_of: IntArray
    edge_like: IntArray
    group_like: IntArray


def adjacency(index: GraphIndex, num_copies: int = 1, *, groups_apart: bool = False) -> Adjacency:
    """The lists of the graph of `index`, which consists of so many equal copies.

    Args:
        index: The graph's edges and groups.
        num_copies: The number of copies.
        groups_apart: Whether each copy has groups of its own.
    """
    num_groups = len(index.groups) // (num_copies if groups_apart else 1)
    operators = range(len(index.edges_of))
    in_edges: list[list[int]] = [[] for _ in operators]
    before: list[set[int]] = [set() for _ in operators]
    after: list[set[int]] = [set() for _ in operators]
    for number, edge in enumerate(index.edges):
        in_edges[edge.consumer].append(number)
        before[edge.consumer].add(edge.producer)
        after[edge.producer].add(edge.consumer)
    in_begin, in_list = flat_lists(in_edges)
    before_begin, before_list = flat_lists([sorted(s) for s in before])
    after_begin, after_list = flat_lists([sorted(s) for s in after])
    group_begin, group_list = flat_lists(index.groups_of)
    edge_begin, edge_list = flat_lists(index.edges_of)
    return Adjacency(
        in_begin=in_begin,
        in_edges=in_list,
        edge_producer=np.array([edge.producer for edge in index.edges], np.int64),
        before_begin=before_begin,
        before=before_list,
        after_begin=after_begin,
        after=after_list,
        group_begin=group_begin,
        groups=group_list,
        edge_of_begin=edge_begin,
        edges_of=edge_list,
        edge_like=np.arange(len(index.edges), dtype=np.int64) % max(1, len(index.edges) // num_copies),
        group_like=np.arange(len(index.groups), dtype=np.int64) % max(1, num_groups),
    )


def flat_lists(lists: Iterable[Sequence[int]]) -> tuple[IntArray, IntArray]:
    """Where each list begins, with one entry more than lists, and the lists one after the other."""
    kept = list(lists)
    begin = np.cumsum([0, *(len(values) for values in kept)], dtype=np.int64)
    return begin, np.array([value for values in kept for value in values], np.int64)
