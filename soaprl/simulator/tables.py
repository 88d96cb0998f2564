"""An operator graph as flat arrays: what does not depend on the strategy.

Edges are the (output, consumer, input position) triples, in the order of operators, their outputs, the
consuming operators and their inputs. A synchronization group is a set of parameters that the same operators
read (tied parameters and those of unrolled steps have several readers). Of a graph that consists of copies
for micro-batches, groups may be of the readers in one copy: parameters then belong to a group in each copy.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from soaprl.cluster.tables import IntArray
from soaprl.graph.operators import Access, Operator, OperatorGraph, TensorRole
from soaprl.simulator.order import ProgramOrder, plain_order
from soaprl.simulator.pacing import pace_groups


class GraphTables(NamedTuple):
    """The arrays of a graph with n operators, U outputs, E edges and G synchronization groups.

    Attributes:
        num_operators: n.
        has_backward: Shape [n]; 1 where the operator has backward tasks.
        output_begin: Shape [n + 1]; the outputs of operator o are ``output_begin[o]:output_begin[o + 1]``.
        output_saved: Shape [U]; 1 where the producer itself keeps the output for its backward pass.
        edge_begin: Shape [U + 1]; the edges of each output.
        edge_consumer: Shape [E]; the reading operator.
        edge_gradient: Shape [E]; 1 where a gradient flows back.
        edge_saved: Shape [E]; 1 where the reader keeps what it reads for its backward pass.
        reader_begin: Shape [G + 1]; the readers of each group.
        reader_operator: The reading operators, ascending in each group.
        group_holds: Shape [G]; 1 where the group's parameters, their state and update count: with a group in
            each copy, in the first.
        group_pace: Shape [G, 7]; when sharded parameters are gathered (`soaprl.simulator.pacing`).
        paces: Shape [2, n]; 1 where gathers wait for an operator's forward tasks, backward tasks.
    """

    num_operators: int
    has_backward: IntArray
    output_begin: IntArray
    output_saved: IntArray
    edge_begin: IntArray
    edge_consumer: IntArray
    edge_gradient: IntArray
    edge_saved: IntArray
    reader_begin: IntArray
    reader_operator: IntArray
    group_holds: IntArray
    group_pace: IntArray
    paces: IntArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """One reading of an activation: which output of which operator goes to which input of which operator."""

    producer: int
    output: int
    consumer: int
    position: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncGroup:
    """Parameters that the same operators read.

    Attributes:
        readers: The operators, ascending.
        tensors: The parameters, ascending.
    """

    readers: tuple[int, ...]
    tensors: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphIndex:
    """The edges and groups of a graph, by number and by operator.

    Attributes:
        edges: All edges.
        groups: All synchronization groups.
        edges_of: For each operator, the edges it is at either end of.
        groups_of: For each operator, the groups it reads.
    """

    edges: tuple[Edge, ...]
    groups: tuple[SyncGroup, ...]
    edges_of: tuple[tuple[int, ...], ...]
    groups_of: tuple[tuple[int, ...], ...]


def graph_index(graph: OperatorGraph, num_copies: int = 1) -> GraphIndex:
    """Numbers the edges and the synchronization groups of `graph`.

    Args:
        graph: The graph.
        num_copies: Of how many equal copies the graph consists, each of which is to have groups of its own.
    """
    edges = tuple(
        Edge(producer=o, output=k, consumer=consumer, position=position)
        for o, operator in enumerate(graph.operators)
        for k, access in enumerate(operator.outputs)
        for consumer, position in graph.consumers[access.tensor]
    )
    groups = _sync_groups(graph, num_copies)
    edges_of: list[list[int]] = [[] for _ in graph.operators]
    groups_of: list[list[int]] = [[] for _ in graph.operators]
    for number, edge in enumerate(edges):
        edges_of[edge.producer].append(number)
        edges_of[edge.consumer].append(number)
    for number, group in enumerate(groups):
        for reader in group.readers:
            groups_of[reader].append(number)
    return GraphIndex(
        edges=edges,
        groups=groups,
        edges_of=tuple(tuple(e) for e in edges_of),
        groups_of=tuple(tuple(g) for g in groups_of),
    )


def graph_tables(
    graph: OperatorGraph, index: GraphIndex, *, prefetch: int = 1, order: ProgramOrder | None = None
) -> GraphTables:
    """The arrays of `graph`; `prefetch` is of `soaprl.simulator.pacing`; without an order, the plain one."""
    operators = graph.operators
    outputs = [(operator, access) for operator in operators for access in operator.outputs]
    edges_per_output = [len(graph.consumers[access.tensor]) for _, access in outputs]
    has_backward = _flags(operator.has_backward for operator in operators)
    order = plain_order(len(operators)) if order is None else order
    readers = [group.readers for group in index.groups]
    group_pace, paces = pace_groups(readers, has_backward, prefetch, order)
    return GraphTables(
        num_operators=len(operators),
        has_backward=has_backward,
        output_begin=_offsets(len(operator.outputs) for operator in operators),
        output_saved=_flags(access.saved and operator.has_backward for operator, access in outputs),
        edge_begin=_offsets(edges_per_output),
        edge_consumer=np.array([edge.consumer for edge in index.edges], np.int64),
        edge_gradient=_flags(_carries_gradient(graph, edge) for edge in index.edges),
        edge_saved=_flags(
            edge_access(graph, edge).saved and operators[edge.consumer].has_backward for edge in index.edges
        ),
        reader_begin=_offsets(len(group.readers) for group in index.groups),
        reader_operator=np.array([r for group in index.groups for r in group.readers], np.int64),
        group_holds=_first_with(group.tensors for group in index.groups),
        group_pace=group_pace,
        paces=paces,
    )


def edge_access(graph: OperatorGraph, edge: Edge) -> Access:
    """How the consumer reads."""
    return graph.operators[edge.consumer].inputs[edge.position]


def contributes(operator: Operator, access: Access) -> bool:
    """Whether tasks of `operator` compute a gradient for what they read of a parameter."""
    return access.gradient and operator.has_backward


def _carries_gradient(graph: OperatorGraph, edge: Edge) -> bool:
    both = graph.operators[edge.consumer].has_backward and graph.operators[edge.producer].has_backward
    return both and edge_access(graph, edge).gradient


def _sync_groups(graph: OperatorGraph, num_copies: int) -> tuple[SyncGroup, ...]:
    per_copy = len(graph.operators) // num_copies
    readers: dict[tuple[int, int], set[int]] = {}
    for number, operator in enumerate(graph.operators):
        for access in operator.parameters:
            if graph.tensors[access.tensor].role is TensorRole.PARAMETER:
                readers.setdefault((number // per_copy, access.tensor), set()).add(number)
    tensors: dict[tuple[int, ...], list[int]] = {}
    for key in sorted(readers):
        tensors.setdefault(tuple(sorted(readers[key])), []).append(key[1])
    return tuple(SyncGroup(readers=r, tensors=tuple(tensors[r])) for r in sorted(tensors))


def _first_with(groups: Iterable[tuple[int, ...]]) -> IntArray:
    """1 where these parameters appear for the first time."""
    seen: set[tuple[int, ...]] = set()
    first = []
    for tensors in groups:
        first.append(tensors not in seen)
        seen.add(tensors)
    return _flags(first)


def _flags(values: Iterable[bool]) -> IntArray:
    return np.array([1 if value else 0 for value in values], np.int64)


def _offsets(counts: Iterable[int]) -> IntArray:
    return np.cumsum([0, *counts], dtype=np.int64)
