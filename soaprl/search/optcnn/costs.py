"""OptCNN's objective as tables over variables (see `soaprl.search.optcnn.space`).

The cost of a strategy, for layers that run one after the other, is the sum of

- for each operator: its slowest part's forward time and its slowest part's backward time;
- for each group of parameters: their synchronization and update (`soaprl.search.optcnn.synchronization`);
- for each edge: the transfers between the layouts of both ends, forward and back
  (`soaprl.search.optcnn.transfers`).

Implemented in `CostTables`. Each is a table over the one or two variables that it depends on. A group of
parameters that three or more variables read has no such table: each of its variables pays an equal share of
what it would pay if all of its readers were its own. Equal operators, edges and groups (the layers of a deep
model) share their tables.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from soaprl.cluster.tables import ClusterTables, FloatArray, IntArray, cluster_tables
from soaprl.cost.transfers import collective_scratch
from soaprl.graph.operators import Access, Operator
from soaprl.search.optcnn.elimination import Scope, add_table
from soaprl.search.optcnn.space import Variable
from soaprl.search.optcnn.synchronization import synchronization_time
from soaprl.search.optcnn.transfers import transfer_matrix
from soaprl.simulator.cells import SyncPools
from soaprl.simulator.patterns import OperatorPattern, OperatorPools
from soaprl.simulator.problem import Problem
from soaprl.simulator.tables import Edge, GraphIndex, SyncGroup, graph_index, graph_tables


class CostTables:
    """Computes the tables of one problem; each distinct operator, edge and group once."""

    def __init__(self, problem: Problem, variables: tuple[Variable, ...]) -> None:
        graph, cluster = problem.graph, problem.cluster
        self._problem = problem
        self._variables = variables
        self._variable_of = {o: v for v, variable in enumerate(variables) for o in variable.operators}
        self._index: GraphIndex = graph_index(graph)
        self._edge_gradient: IntArray = graph_tables(graph, self._index).edge_gradient
        self._cluster: ClusterTables = cluster_tables(cluster, paper=problem.options.paper)
        self._scratch = collective_scratch(self._cluster)
        self._pools = OperatorPools(
            graph, problem.cost, cluster.device_types, task_s=problem.overheads.task_s
        )
        self._sync_pools = SyncPools(
            graph, problem.cost, cluster.device_types, compression=problem.options.compression
        )
        self._signatures = [self._signature(operator) for operator in graph.operators]
        self._patterns: dict[object, tuple[OperatorPattern, ...]] = {}
        self._known: dict[object, FloatArray] = {}

    def tables(self, visit: Callable[[int, int], None]) -> dict[Scope, FloatArray]:
        """All tables by ascending scope.

        Args:
            visit: Called after each piece with the number of pieces done, and of all.
        """
        tables: dict[Scope, FloatArray] = {}
        num_operators, num_edges = len(self._problem.graph.operators), len(self._index.edges)
        num_pieces = num_operators + num_edges + len(self._index.groups)
        for number in range(num_pieces):
            if number < num_operators:
                self._add_operator(tables, number)
            elif number < num_operators + num_edges:
                self._add_edge(tables, number - num_operators)
            else:
                self._add_group(tables, self._index.groups[number - num_operators - num_edges])
            visit(number + 1, num_pieces)
        return tables

    def _signature(self, operator: Operator) -> object:
        """Equal for operators whose patterns are equal."""
        roles = (operator.inputs, operator.parameters, operator.outputs, operator.buffers)
        accesses = tuple(tuple(self._access_signature(a) for a in role) for role in roles)
        plain = replace(
            operator, name="", inputs=(), parameters=(), outputs=(), buffers=(), body=(), body_outputs=()
        )
        return plain, accesses

    def _access_signature(self, access: Access) -> object:
        tensor = self._problem.graph.tensors[access.tensor]
        return (
            access.spans,
            access.gradient,
            access.saved,
            tensor.refined,
            tensor.itemsize,
            tensor.role,
            tensor.requires_grad,
        )

    def _operator_patterns(self, o: int) -> tuple[OperatorPattern, ...]:
        """The patterns of an operator under all degrees of its variable."""
        key = self._signatures[o]
        if key not in self._patterns:
            operator = self._problem.graph.operators[o]
            degrees = self._variables[self._variable_of[o]].degrees
            self._patterns[key] = tuple(self._pools.add_operator(operator, d) for d in degrees)
        return self._patterns[key]

    def _add_operator(self, tables: dict[Scope, FloatArray], o: int) -> None:
        key = ("operator", self._signatures[o])
        if key not in self._known:
            times = [self._slowest(pattern) for pattern in self._operator_patterns(o)]
            self._known[key] = np.array(times, np.float64)
        add_table(tables, (self._variable_of[o],), self._known[key])

    def _slowest(self, pattern: OperatorPattern) -> float:
        """Forward and backward time of the slowest parts, part p on device p."""
        num_types = len(self._problem.cluster.device_types)
        rows = (pattern.part_base + np.arange(pattern.num_parts)) * num_types
        rows += self._cluster.device_type[: pattern.num_parts]
        return float(self._pools.forward_s.data[rows].max() + self._pools.backward_s.data[rows].max())

    def _add_edge(self, tables: dict[Scope, FloatArray], number: int) -> None:
        edge, gradient = self._index.edges[number], bool(self._edge_gradient[number])
        key = (
            "edge",
            self._signatures[edge.producer],
            edge.output,
            self._signatures[edge.consumer],
            edge.position,
            gradient,
        )
        if key not in self._known:
            self._known[key] = self._edge_matrix(edge, gradient=gradient)
        u, v = self._variable_of[edge.producer], self._variable_of[edge.consumer]
        # Both ends in one variable have the same degrees: only the diagonal counts.
        scope, table = ((u, v), self._known[key]) if u != v else ((u,), np.diagonal(self._known[key]))
        add_table(tables, scope, table)

    def _edge_matrix(self, edge: Edge, *, gradient: bool) -> FloatArray:
        graph = self._problem.graph
        operator = graph.operators[edge.producer]
        output = len(operator.inputs) + len(operator.parameters) + edge.output
        written, written_begin = _joined(self._operator_patterns(edge.producer), output)
        read, read_begin = _joined(self._operator_patterns(edge.consumer), edge.position)
        itemsize = graph.tensors[operator.outputs[edge.output].tensor].itemsize
        return transfer_matrix(self._cluster, written, written_begin, read, read_begin, itemsize, gradient)

    def _add_group(self, tables: dict[Scope, FloatArray], group: SyncGroup) -> None:
        involved = tuple(sorted({self._variable_of[reader] for reader in group.readers}))
        if len(involved) <= 2:
            add_table(tables, involved, self._group_table(group, involved))
            return
        for v in involved:
            own = tuple(reader for reader in group.readers if self._variable_of[reader] == v)
            part = SyncGroup(readers=own, tensors=group.tensors)
            add_table(tables, (v,), self._group_table(part, (v,)) / len(involved))

    def _group_table(self, group: SyncGroup, involved: Scope) -> FloatArray:
        """What synchronizing the group takes, by the degrees of one or two variables."""
        places = {tensor: place for place, tensor in enumerate(group.tensors)}
        reads = tuple(
            tuple(
                (p, places.get(a.tensor)) for p, a in enumerate(self._problem.graph.operators[r].parameters)
            )
            for r in group.readers
        )
        key = ("group", tuple(self._signatures[r] for r in group.readers), reads)
        if key not in self._known:
            shape = tuple(len(self._variables[v].degrees) for v in involved)
            table = np.zeros(shape, np.float64)
            for values in np.ndindex(shape):
                chosen = dict(zip(involved, values, strict=True))
                patterns = tuple(
                    self._operator_patterns(r)[chosen[self._variable_of[r]]] for r in group.readers
                )
                table[values] = self._group_time(group, patterns)
            self._known[key] = table
        return self._known[key]

    def _group_time(self, group: SyncGroup, patterns: tuple[OperatorPattern, ...]) -> float:
        pattern = self._sync_pools.add_group(group, patterns)
        return synchronization_time(
            self._cluster,
            self._scratch,
            self._sync_pools,
            pattern,
            num_types=len(self._problem.cluster.device_types),
            paper=self._problem.options.paper,
        )


def _joined(patterns: tuple[OperatorPattern, ...], access: int) -> tuple[IntArray, IntArray]:
    """The boxes of one access under all degrees, one after the other, and where each begins."""
    boxes = [pattern.regions(access) for pattern in patterns]
    begin = np.cumsum([0, *(len(box) for box in boxes)], dtype=np.int64)
    return np.ascontiguousarray(np.concatenate(boxes)), begin
