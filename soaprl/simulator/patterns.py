"""Patterns: what the task graph looks like for given degrees, whatever the devices.

Three kinds, each computed once and kept in flat pools that grow:

- of an operator with given degrees: time and memory of each task (`OperatorPattern`);
- of an edge whose producer and consumer have given degrees: which tasks exchange how many bytes
  (computed in `soaprl.simulator.edges`);
- of a synchronization group whose readers have given degrees: into which cells the parameters fall and which
  tasks hold each (`SyncPattern`, computed in `soaprl.simulator.cells`).

`PatternPools` is what compiled code sees of them.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from soaprl.cluster.cluster import DeviceType
from soaprl.cluster.tables import FloatArray, IntArray
from soaprl.cost.model import CostModel, Shard
from soaprl.cost.ticks import all_in_ticks
from soaprl.graph.operators import Operator, OperatorGraph, TensorRole, evaluate_terms
from soaprl.simulator.pools import Pool
from soaprl.simulator.regions import (
    SpanTable,
    factor_intervals,
    operator_accesses,
    region_elements,
    span_intervals,
    span_table,
)


class EdgePatterns(NamedTuple):
    """All patterns of edges as flat arrays with room for more, which compiled code adds.

    Attributes:
        patterns: Shape [room, 2]; row base and number of pairs of each.
        rows: Where the pairs of a writing task begin, at ``row_base + p``.
        pair_reader: The reading task of each pair.
        pair_bytes: Bytes that both have in common.
        pair_box: Number of the common box within the tensor.
        sizes: Shape [3]; how many patterns, rows and pairs there are.
    """

    patterns: IntArray
    rows: IntArray
    pair_reader: IntArray
    pair_bytes: IntArray
    pair_box: IntArray
    sizes: IntArray


class PatternPools(NamedTuple):
    """All patterns as flat arrays; T is the number of device types.

    Attributes:
        num_types: T.
        forward_s: Forward time of task p on type t: ``forward_s[(part_base + p) * T + t]``.
        backward_s: Backward time, likewise.
        kept_bytes: Bytes of a task kept from its forward to its backward, beyond activations.
        passing_bytes: Bytes of a task needed in its forward pass only, beyond activations.
        output_bytes: Bytes of output k of task p of an operator with K outputs, at
            ``output_base + p * K + k``.
        edges: The patterns of edges.
        cell_bytes: Bytes of each cell.
        cell_sent_bytes: Bytes of its gradient on the wire.
        cell_codec_s: Seconds of encoding and decoding the gradient of cell c on type t, at ``c * T + t``;
            empty without compression.
        cell_trainable: 1 where the cell gets a gradient and an update.
        cell_update_s: Update time of cell c on type t, at ``c * T + t``; where cells are sharded, that of one
            of n pieces, at ``(cell_update_begin[c] + n - 1) * T + t``.
        cell_update_begin: See there; empty where cells are not sharded.
        cover_begin: Where the holders of each cell begin; one entry more than cells.
        cover_reader: Position of the holding operator among the group's readers.
        cover_part: The holding task.
        cover_contributes: 1 where that task computes a gradient for the cell.
    """

    num_types: int
    forward_s: FloatArray
    backward_s: FloatArray
    kept_bytes: IntArray
    passing_bytes: IntArray
    output_bytes: IntArray
    edges: EdgePatterns
    cell_bytes: IntArray
    cell_sent_bytes: IntArray
    cell_codec_s: FloatArray
    cell_trainable: IntArray
    cell_update_s: FloatArray
    cell_update_begin: IntArray
    cover_begin: IntArray
    cover_reader: IntArray
    cover_part: IntArray
    cover_contributes: IntArray


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorPattern:
    """An operator with given degrees.

    Attributes:
        num_parts: Number of tasks.
        part_base: See `PatternPools`.
        output_base: See `PatternPools`.
        touched: What each task touches of each dimension of each access, shape [tasks, spans, 2].
        table: The spans: of the inputs, the parameters, the outputs and the buffers, in this order.
    """

    num_parts: int
    part_base: int
    output_base: int
    touched: IntArray
    table: SpanTable

    def regions(self, access: int) -> IntArray:
        """The boxes of access number `access` (see `table`), shape [tasks, dims, 2]."""
        begin, end = self.table.access_begin[access], self.table.access_begin[access + 1]
        return self.touched[:, begin:end]


class OperatorPools:
    """The pools of operator patterns.

    Args:
        graph: The graph.
        cost: Times of tasks.
        device_types: Of the cluster.
        task_s: What is added to each pass of a task.
    """

    def __init__(
        self,
        graph: OperatorGraph,
        cost: CostModel,
        device_types: tuple[DeviceType, ...],
        *,
        task_s: float = 0.0,
    ) -> None:
        self._graph, self._task_s = graph, task_s
        self._cost = cost
        self._device_types = device_types
        self.forward_s = Pool(np.float64)
        self.backward_s = Pool(np.float64)
        self.kept_bytes = Pool(np.int64)
        self.passing_bytes = Pool(np.int64)
        self.output_bytes = Pool(np.int64)

    @property
    def pools(self) -> tuple[Pool, ...]:
        """All of them."""
        times, sizes = (self.forward_s, self.backward_s), (self.kept_bytes, self.passing_bytes)
        return *times, *sizes, self.output_bytes

    def add_operator(self, operator: Operator, degrees: tuple[int, ...]) -> OperatorPattern:
        """Computes the pattern of `operator` with `degrees` and keeps it."""
        accesses = operator_accesses(operator)
        table = span_table(accesses)
        extents = np.array(operator.extents, np.int64)
        intervals = factor_intervals(extents, np.array(degrees, np.int64))
        touched = span_intervals(intervals, table)
        sizes = np.array([self._graph.tensors[a.tensor].itemsize for a in accesses], np.int64)
        num_bytes = region_elements(touched, table) * sizes
        part_extents = intervals[:, :, 1] - intervals[:, :, 0]
        part_base = self._add_times(operator, part_extents, num_bytes)
        first_output = len(operator.inputs) + len(operator.parameters)
        first_buffer = first_output + len(operator.outputs)
        output_base = self.output_bytes.append(num_bytes[:, first_output:first_buffer].ravel())
        kept, passing = self._other_memory(operator, part_extents, num_bytes)
        self.kept_bytes.append(kept)
        self.passing_bytes.append(passing)
        return OperatorPattern(
            num_parts=len(intervals),
            part_base=part_base,
            output_base=output_base,
            touched=touched,
            table=table,
        )

    def _add_times(self, operator: Operator, extents: IntArray, num_bytes: IntArray) -> int:
        """Asks the cost model once for each distinct shard; returns the first row."""
        keys = np.concatenate([extents, num_bytes], axis=1)
        times: dict[bytes, tuple[list[float], list[float]]] = {}
        forward, backward = [], []
        for row, (part_extents, part_bytes) in enumerate(zip(extents, num_bytes, strict=True)):
            key = keys[row].tobytes()
            if key not in times:
                times[key] = self._shard_times(operator, part_extents, part_bytes)
            forward += times[key][0]
            backward += times[key][1]
        base = self.forward_s.append(all_in_ticks(np.array(forward, np.float64)))
        self.backward_s.append(all_in_ticks(np.array(backward, np.float64)))
        return base // max(1, len(self._device_types))

    def _shard_times(
        self, operator: Operator, extents: IntArray, num_bytes: IntArray
    ) -> tuple[list[float], list[float]]:
        """Forward and backward time on each device type."""
        sizes = tuple(num_bytes.tolist())
        first_parameter, first_output = len(operator.inputs), len(operator.inputs) + len(operator.parameters)
        first_buffer = first_output + len(operator.outputs)
        shard = Shard(
            extents=tuple(extents.tolist()),
            input_bytes=sizes[:first_parameter],
            parameter_bytes=sizes[first_parameter:first_output],
            output_bytes=sizes[first_output:first_buffer],
        )
        times = [self._cost.task_time(self._graph, operator, shard, t) for t in self._device_types]
        back_s = self._task_s if operator.has_backward else 0.0
        return [t.forward_s + self._task_s for t in times], [t.backward_s + back_s for t in times]

    def _other_memory(
        self, operator: Operator, extents: IntArray, num_bytes: IntArray
    ) -> tuple[IntArray, IntArray]:
        """Bytes of each task kept until its backward, and needed in its forward pass only."""
        passing = num_bytes[:, num_bytes.shape[1] - len(operator.buffers) :].sum(axis=1)
        kept = np.zeros_like(passing)
        for position, access in enumerate(operator.inputs):
            if self._graph.tensors[access.tensor].role is not TensorRole.ACTIVATION:
                held = kept if access.saved and operator.has_backward else passing
                held += num_bytes[:, position]
        if operator.has_backward:
            terms = operator.internal_saved_bytes
            kept += np.array([round(evaluate_terms(terms, tuple(e))) for e in extents.tolist()], np.int64)
        return kept, passing
