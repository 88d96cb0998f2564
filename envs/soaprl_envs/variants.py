"""Variants: families with given degrees, and what their tasks take and touch, whatever the devices."""

import numpy as np

from soaprl.cluster.tables import FloatArray, IntArray
from soaprl.graph.operators import Access, OperatorGraph, TensorRole
from soaprl.simulator.cells import SyncPattern, SyncPools
from soaprl.simulator.patterns import OperatorPattern, OperatorPools
from soaprl.simulator.problem import Problem
from soaprl.simulator.tables import SyncGroup


class Variants:
    """Variants by number, computed as they are asked for.

    Args:
        problem: The problem.
        operators: For each family, one of its operators.
    """

    def __init__(self, problem: Problem, operators: tuple[int, ...]) -> None:
        self._graph: OperatorGraph = problem.graph
        self._operators = operators
        self._state = problem.options.state_per_parameter_byte
        types = problem.cluster.device_types
        self._num_types = len(types)
        self._pools = OperatorPools(problem.graph, problem.cost, types, task_s=problem.overheads.task_s)
        self.sync_pools = SyncPools(
            problem.graph, problem.cost, types, compression=problem.options.compression
        )
        self._numbers: dict[tuple[int, tuple[int, ...]], int] = {}
        self._families: list[int] = []
        self._patterns: list[OperatorPattern] = []
        self._sync: list[SyncPattern] = []
        self._boxes: list[IntArray] = []
        self._num_box_values = 0
        self._box_at: dict[tuple[int, int], int] = {}

    def number(self, family: int, degrees: tuple[int, ...]) -> int:
        """The number of a variant."""
        key = family, degrees
        if key not in self._numbers:
            operator = self._operators[family]
            pattern = self._pools.add_operator(self._graph.operators[operator], degrees)
            self._numbers[key] = len(self._patterns)
            self._families.append(family)
            self._patterns.append(pattern)
            self._sync.append(self.sync_pools.add_group(self._own_group(operator), (pattern,)))
        return self._numbers[key]

    def sync_pattern(self, variant: int) -> SyncPattern:
        """The cells of the operator's own parameters."""
        return self._sync[variant]

    def boxes_at(self, variant: int, access: int) -> int:
        """Where the boxes of an access begin in `boxes`; see `OperatorPattern.table` for its number."""
        key = variant, access
        if key not in self._box_at:
            regions = self._patterns[variant].regions(access)
            self._box_at[key] = self._num_box_values
            self._boxes.append(regions.ravel())
            self._num_box_values += regions.size
        return self._box_at[key]

    def boxes(self) -> IntArray:
        """All boxes asked for: for each task and dimension of the tensor, start and stop."""
        return np.concatenate([np.zeros(0, np.int64), *self._boxes])

    def task_times(self, width: int) -> FloatArray:
        """Forward and backward seconds, shape [variants, width, device types]; 0 beyond the last task."""
        times = np.zeros((len(self._patterns), width, self._num_types), np.float64)
        for v, pattern in enumerate(self._patterns):
            first = pattern.part_base * self._num_types
            rows = slice(first, first + pattern.num_parts * self._num_types)
            both = self._pools.forward_s.data[rows] + self._pools.backward_s.data[rows]
            times[v, : pattern.num_parts] = both.reshape(-1, self._num_types)
        return times

    def task_bytes(self, width: int) -> IntArray:
        """Bytes that each task keeps for the whole iteration, shape [variants, width].

        Its part of the parameters with their gradients and the optimizer's state, and the activations that it
        writes or that the backward pass needs beside them.
        """
        kept = np.zeros((len(self._patterns), width), np.int64)
        for v, pattern in enumerate(self._patterns):
            operator = self._graph.operators[self._operators[self._families[v]]]
            parts = slice(pattern.part_base, pattern.part_base + pattern.num_parts)
            total = self._pools.kept_bytes.data[parts].copy()
            for access, found in enumerate((*operator.inputs, *operator.parameters, *operator.outputs)):
                tensor = self._graph.tensors[found.tensor]
                copies = 0
                if tensor.role is TensorRole.PARAMETER:
                    copies = 2 + self._state if tensor.requires_grad else 1
                elif access >= len(operator.inputs) + len(operator.parameters) and operator.has_backward:
                    copies = 1
                if copies:
                    boxes = pattern.regions(access)
                    elements = np.prod(np.maximum(boxes[:, :, 1] - boxes[:, :, 0], 0), axis=1)
                    total += copies * tensor.itemsize * elements
            kept[v, : pattern.num_parts] = total
        return kept

    def _own_group(self, operator: int) -> SyncGroup:
        """The parameters of an operator, as if it alone read them."""
        read = {access.tensor for access in self._graph.operators[operator].parameters}
        tensors = sorted(t for t in read if self._graph.tensors[t].role is TensorRole.PARAMETER)
        return SyncGroup(readers=(operator,), tensors=tuple(tensors))


def whole_bytes(graph: OperatorGraph, accesses: tuple[Access, ...]) -> float:
    """Bytes of the tensors behind `accesses`; each counts once."""
    return float(sum(graph.tensors[tensor].num_bytes for tensor in {access.tensor for access in accesses}))
