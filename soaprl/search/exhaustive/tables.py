"""What the lower bounds of `soaprl.search.exhaustive.bounds` read, as flat arrays."""

from collections.abc import Sequence
from itertools import pairwise, product
from math import prod
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from soaprl.cluster.tables import ClusterTables, FloatArray, IntArray, cluster_tables
from soaprl.cost.ticks import TICK_S, all_in_ticks
from soaprl.cost.transfers import all_reduce_time, collective_scratch
from soaprl.errors import SearchError
from soaprl.search.exhaustive.space import Space
from soaprl.simulator.cells import SyncPools
from soaprl.simulator.patterns import OperatorPattern, OperatorPools
from soaprl.simulator.pools import Pool
from soaprl.simulator.problem import Problem
from soaprl.simulator.tables import GraphIndex, SyncGroup, graph_index, graph_tables
from soaprl.strategy.strategy import OpConfig

BoolArray: TypeAlias = NDArray[np.bool_]

MAX_PATTERNS = 100_000
LIGHT = 0.01


class BoundTables(NamedTuple):
    """A problem and a space. T is the largest number of tasks, K the number of device types, D of devices.

    Attributes:
        cluster: The cluster; latencies of routes are a tick shorter, for rounding.
        paper: Whether gradients go to the first holder and back.
        has_backward: By operator.
        config_begin: By operator: its first row in the next three; one entry more than operators.
        config_degrees: By configuration: number of the degree vector among the operator's.
        config_tasks: By configuration: number of tasks.
        config_devices: Shape [configurations, T].
        degrees_begin: By operator: its first degree vector in the next two; one entry more.
        forward_s: Shape [degree vectors, T, K].
        backward_s: Likewise.
        edge_producer: By edge.
        edge_consumer: By edge.
        edge_gradient: By edge: whether a gradient flows back.
        edge_tensor: By edge: the tensor it reads.
        edge_pairs: By edge: where its tables of bytes begin.
        pair_bytes: Bytes that writing task w and reading task r of an edge have in common, at ``edge_pairs +
            ((degrees of producer) * number of degrees of consumer + (degrees of consumer)) * T * T + w * T +
            r``.
        in_begin: By operator: its incoming edges in `in_edges`; one entry more.
        in_edges: Edges.
        out_begin: By operator: its outgoing edges in `out_edges`; one entry more.
        out_edges: Edges.
        group_begin: By group: its readers in `group_readers`; one entry more.
        group_readers: Operators, ascending in each group.
        group_patterns: By group: where its patterns begin in `pattern_begin`.
        pattern_begin: By pattern (row-major over the degrees of the readers): its first cell; one entry more.
        cell_size: By cell: number of its size among all sizes, or -1 if it is not trained.
        cell_bytes: By cell.
        cell_update_s: Shape [cells, K].
        cover_begin: By cell: the tasks that hold it; one entry more.
        cover_reader: The reader's position in its group.
        cover_part: The task.
        cover_contributes: Whether the task computes a gradient.
        reduce_s: Shape [sizes, 2 ** D]: the time of an all-reduce over a set of devices.
        reduce_busy_s: Shape [sizes, 2 ** D, links].
        least_update_s: By group: least update of all its holders together.
        least_work_s: By operator: least work of all its tasks together, without updates.
        least_forward_s: By operator: least time of a forward task.
        least_backward_s: By operator: least time of a backward task.
        edge_everywhere: By edge: whether every task of the consumer reads something of it, whatever the
            degrees.
        edge_wanted: By edge: whether every task of the producer is read by one of the consumer, likewise.
        edge_joint: By edge: whether every task of the consumer reads something of every task of the producer,
            likewise.
        reaches: Shape [operators, operators]; whether every forward task of the first comes before every one
            of the second.
        reaches_back: Likewise, whether every backward task of the second comes before every one of the first.
    """

    cluster: ClusterTables
    paper: bool
    has_backward: IntArray
    config_begin: IntArray
    config_degrees: IntArray
    config_tasks: IntArray
    config_devices: IntArray
    degrees_begin: IntArray
    forward_s: FloatArray
    backward_s: FloatArray
    edge_producer: IntArray
    edge_consumer: IntArray
    edge_gradient: IntArray
    edge_tensor: IntArray
    edge_pairs: IntArray
    pair_bytes: IntArray
    in_begin: IntArray
    in_edges: IntArray
    out_begin: IntArray
    out_edges: IntArray
    group_begin: IntArray
    group_readers: IntArray
    group_patterns: IntArray
    pattern_begin: IntArray
    cell_size: IntArray
    cell_bytes: IntArray
    cell_update_s: FloatArray
    cover_begin: IntArray
    cover_reader: IntArray
    cover_part: IntArray
    cover_contributes: IntArray
    reduce_s: FloatArray
    reduce_busy_s: FloatArray
    least_update_s: FloatArray
    least_work_s: FloatArray
    least_forward_s: FloatArray
    least_backward_s: FloatArray
    edge_everywhere: IntArray
    edge_wanted: IntArray
    edge_joint: IntArray
    reaches: BoolArray
    reaches_back: BoolArray


def bound_tables(problem: Problem, space: Space) -> BoundTables:
    """The arrays of `problem` and `space`.

    Raises:
        SearchError: Operators that share parameters have too many combinations of degrees.
    """
    return _Builder(problem, space).tables()


def choosing_order(tables: BoundTables, leaders: Sequence[int]) -> IntArray:
    """In which order operators are chosen: heavy ones first, as they change the bounds most.

    First, in the order of the graph, the operators with at least `LIGHT` of all work, and those between them:
    bounds live from chains without gaps. Those that share parameters come together, because their gradients
    are summed once all are chosen, and so do those with the same `leaders`, which have one configuration.
    Then light ones without producers, because updates of their parameters (embeddings) may be heavy; then all
    others.
    """
    work_s, n = tables.least_work_s, len(tables.least_work_s)
    heavy = work_s >= LIGHT * work_s.sum()
    leads = heavy.copy()
    for o in reversed(range(n)):
        readers = tables.edge_consumer[tables.out_edges[tables.out_begin[o] : tables.out_begin[o + 1]]]
        leads[o] |= bool(leads[readers].any())
    source = np.diff(tables.in_begin) == 0
    turn = np.where(source & ~heavy, 1, np.where(leads, 0, 2))
    return np.lexsort((np.arange(n), _first_together(tables, leaders), turn)).astype(np.int64)


def _first_together(tables: BoundTables, leaders: Sequence[int]) -> IntArray:
    """For each operator the first one that it shares parameters or a leader with, directly or not."""
    first = np.array(leaders, np.int64)
    for begin, end in pairwise(tables.group_begin.tolist()):
        readers = tables.group_readers[begin:end]
        first[np.isin(first, first[readers])] = first[readers].min(initial=len(first))
    return first


class _Builder:
    """Holds the patterns while the arrays are made."""

    def __init__(self, problem: Problem, space: Space) -> None:
        graph, cluster = problem.graph, problem.cluster
        self.problem, self.space = problem, space
        self.index: GraphIndex = graph_index(graph)
        self.cluster = cluster_tables(cluster, paper=problem.options.paper)
        # A transfer's duration is rounded as a whole: with its parts rounded, a tick may be too much.
        self.rounded_down = np.maximum(self.cluster.route_latency_s - TICK_S, 0.0)
        self.num_types = len(cluster.device_types)
        self.room = max(config.num_tasks for configs in space.configs for config in configs)
        self.pools = OperatorPools(graph, problem.cost, cluster.device_types, task_s=problem.overheads.task_s)
        self.sync = SyncPools(
            graph, problem.cost, cluster.device_types, compression=problem.options.compression
        )
        self.patterns: list[list[OperatorPattern]] = [
            [self.pools.add_operator(operator, vector) for vector in vectors]
            for operator, vectors in zip(graph.operators, space.degrees, strict=True)
        ]

    def tables(self) -> BoundTables:
        """All arrays."""
        flags = graph_tables(self.problem.graph, self.index)
        forward_s, backward_s = self._times()
        edge_pairs, pair_bytes = self._pairs()
        group_patterns, pattern_begin, least_update_s = self._cells()
        sizes, cell_size = self._sizes()
        begin = _offsets([len(p) for p in self.patterns])
        everywhere, wanted, joint = self._everywhere(edge_pairs, pair_bytes)
        least_forward_s, least_backward_s = self._least_task(forward_s), self._least_task(backward_s)
        work_s = (forward_s + backward_s).min(axis=2).sum(axis=1)
        least_work_s = np.array([work_s[a:b].min() for a, b in pairwise(begin.tolist())])
        configs = [config for configs in self.space.configs for config in configs]
        number = [{vector: i for i, vector in enumerate(vectors)} for vectors in self.space.degrees]
        reduce_s, reduce_busy_s = self._reductions(sizes)
        return BoundTables(
            cluster=self.cluster._replace(route_latency_s=self.rounded_down),
            paper=self.problem.options.paper,
            has_backward=flags.has_backward,
            config_begin=_offsets([len(configs) for configs in self.space.configs]),
            config_degrees=np.array(
                [number[o][c.degrees] for o, own in enumerate(self.space.configs) for c in own], np.int64
            ),
            config_tasks=np.array([config.num_tasks for config in configs], np.int64),
            config_devices=self._devices(configs),
            degrees_begin=begin,
            forward_s=forward_s,
            backward_s=backward_s,
            edge_gradient=flags.edge_gradient,
            **self._edges(),
            edge_pairs=edge_pairs,
            pair_bytes=pair_bytes,
            group_begin=_offsets([len(g.readers) for g in self.index.groups]),
            group_readers=np.array([r for g in self.index.groups for r in g.readers], np.int64),
            group_patterns=group_patterns,
            pattern_begin=pattern_begin,
            cell_size=cell_size,
            cell_bytes=_used(self.sync.cell_bytes),
            cell_update_s=_used(self.sync.cell_update_s).reshape(-1, self.num_types),
            cover_begin=_used(self.sync.cover_begin),
            cover_reader=_used(self.sync.cover_reader),
            cover_part=_used(self.sync.cover_part),
            cover_contributes=_used(self.sync.cover_contributes),
            reduce_s=reduce_s,
            reduce_busy_s=reduce_busy_s,
            least_update_s=least_update_s,
            least_work_s=least_work_s,
            least_forward_s=least_forward_s,
            least_backward_s=least_backward_s,
            edge_everywhere=everywhere,
            edge_wanted=wanted,
            edge_joint=joint,
            reaches=self._reaches(joint, wanted, np.ones_like(flags.edge_gradient)),
            reaches_back=self._reaches(joint, wanted, flags.edge_gradient),
        )

    def _edges(self) -> dict[str, IntArray]:
        """Which operators and tensors edges join, and the edges into and out of each operator."""
        operators, edges = self.problem.graph.operators, self.index.edges
        producer = np.array([e.producer for e in edges], np.int64)
        consumer = np.array([e.consumer for e in edges], np.int64)
        tensor = [operators[e.producer].outputs[e.output].tensor for e in edges]
        return {
            "edge_producer": producer,
            "edge_consumer": consumer,
            "edge_tensor": np.array(tensor, np.int64),
            "in_begin": _offsets(np.bincount(consumer, minlength=len(operators)).tolist()),
            "in_edges": np.argsort(consumer, kind="stable"),
            "out_begin": _offsets(np.bincount(producer, minlength=len(operators)).tolist()),
            "out_edges": np.argsort(producer, kind="stable"),
        }

    def _devices(self, configs: Sequence[OpConfig]) -> IntArray:
        devices = np.zeros((len(configs), self.room), np.int64)
        for row, config in enumerate(configs):
            devices[row, : config.num_tasks] = config.devices
        return devices

    def _times(self) -> tuple[FloatArray, FloatArray]:
        """Forward and backward times by degree vector, task and device type; 0 for missing tasks."""
        rows = [pattern for patterns in self.patterns for pattern in patterns]
        times = np.zeros((2, len(rows), self.room, self.num_types))
        for row, pattern in enumerate(rows):
            first, last = pattern.part_base, pattern.part_base + pattern.num_parts
            for which, pool in enumerate((self.pools.forward_s, self.pools.backward_s)):
                own = pool.data[first * self.num_types : last * self.num_types]
                times[which, row, : pattern.num_parts] = own.reshape(-1, self.num_types)
        return times[0], times[1]

    def _pairs(self) -> tuple[IntArray, IntArray]:
        """Where each edge's tables begin, and all tables."""
        graph, tables, begin = self.problem.graph, [], [0]
        for edge in self.index.edges:
            operator = graph.operators[edge.producer]
            output = len(operator.inputs) + len(operator.parameters) + edge.output
            itemsize = graph.tensors[operator.outputs[edge.output].tensor].itemsize
            writers = [pattern.regions(output) for pattern in self.patterns[edge.producer]]
            readers = [pattern.regions(edge.position) for pattern in self.patterns[edge.consumer]]
            table = np.zeros((len(writers), len(readers), self.room, self.room), np.int64)
            for i, written in enumerate(writers):
                for j, read in enumerate(readers):
                    table[i, j, : len(written), : len(read)] = itemsize * _common(written, read)
            tables.append(table.ravel())
            begin.append(begin[-1] + table.size)
        return np.array(begin, np.int64), np.concatenate([np.zeros(0, np.int64), *tables])

    def _cells(self) -> tuple[IntArray, IntArray, FloatArray]:
        """Where the patterns of groups and the cells of patterns begin, and each group's least update."""
        group_patterns, pattern_begin = [0], [0]
        least_update_s = np.zeros(len(self.index.groups))
        for number, group in enumerate(self.index.groups):
            counts = [len(self.patterns[reader]) for reader in group.readers]
            if prod(counts) > MAX_PATTERNS:
                raise SearchError(
                    f"{len(counts)} operators that share parameters have {prod(counts):,} combinations of"
                    f" degrees, more than {MAX_PATTERNS:,}. Use even degrees, or another method."
                )
            updates = [self._add_cells(group, chosen) for chosen in product(*map(range, counts))]
            pattern_begin += [end for end, _ in updates]
            least_update_s[number] = min(update_s for _, update_s in updates)
            group_patterns.append(group_patterns[-1] + prod(counts))
        return np.array(group_patterns, np.int64), np.array(pattern_begin, np.int64), least_update_s

    def _add_cells(self, group: SyncGroup, chosen: tuple[int, ...]) -> tuple[int, float]:
        """Adds the cells under the chosen degrees; returns their end and their least update time."""
        readers = zip(group.readers, chosen, strict=True)
        added = self.sync.add_group(group, tuple(self.patterns[reader][i] for reader, i in readers))
        rows = self.sync.cell_update_s.data[
            added.cell_begin * self.num_types : added.cell_end * self.num_types
        ]
        return added.cell_end, float(rows.reshape(-1, self.num_types).min(axis=1).sum())

    def _sizes(self) -> tuple[list[int], IntArray]:
        """The distinct sizes of gradients on the wire, and each cell's number among them.

        What compressing them takes is left out of bounds.
        """
        num_bytes, trained = _used(self.sync.cell_sent_bytes), _used(self.sync.cell_trainable)
        sizes = sorted(set(num_bytes[trained > 0].tolist()))
        places = np.searchsorted(np.array(sizes, np.int64), num_bytes)
        return sizes, np.where(trained > 0, places, -1).astype(np.int64)

    def _reductions(self, sizes: list[int]) -> tuple[FloatArray, FloatArray]:
        """Times of all-reduces of each size over each set of devices."""
        num_sets, num_links = 1 << self.cluster.num_devices, len(self.cluster.link_latency_s)
        time_s, busy_s = np.zeros((len(sizes), num_sets)), np.zeros((len(sizes), num_sets, num_links))
        if self.problem.options.paper:
            return time_s, busy_s
        scratch = collective_scratch(self.cluster)
        for row, size in enumerate(sizes):
            for members in range(num_sets):
                devices = [d for d in range(self.cluster.num_devices) if members >> d & 1]
                collective = all_reduce_time(self.cluster, devices, float(size), scratch=scratch)
                time_s[row, members] = collective.time_s
                for link, link_s in collective.busy_s.items():
                    busy_s[row, members, link] = link_s
        return all_in_ticks(time_s), all_in_ticks(busy_s)

    def _least_task(self, time_s: FloatArray) -> FloatArray:
        """The least time of a task of each operator, of times by degree vector, task and device type."""
        rows = iter(time_s)
        least = [[next(rows)[: p.num_parts].min() for p in patterns] for patterns in self.patterns]
        return np.array([min(times) for times in least])

    def _everywhere(self, edge_pairs: IntArray, pair_bytes: IntArray) -> tuple[IntArray, IntArray, IntArray]:
        """`BoundTables.edge_everywhere`, `BoundTables.edge_wanted`, and `BoundTables.edge_joint`."""
        everywhere, wanted, joint = [], [], []
        for number, edge in enumerate(self.index.edges):
            writers, readers = self.patterns[edge.producer], self.patterns[edge.consumer]
            shape = (len(writers), len(readers), self.room, self.room)
            table = pair_bytes[edge_pairs[number] : edge_pairs[number + 1]].reshape(shape)
            read, sent = np.asarray(table.any(axis=2)), np.asarray(table.any(axis=3))
            everywhere.append(all(read[:, j, : reader.num_parts].all() for j, reader in enumerate(readers)))
            wanted.append(all(sent[i, :, : writer.num_parts].all() for i, writer in enumerate(writers)))
            joint.append(
                all(
                    table[i, j, : writer.num_parts, : reader.num_parts].all()
                    for i, writer in enumerate(writers)
                    for j, reader in enumerate(readers)
                )
            )
        return np.array(everywhere, np.int64), np.array(wanted, np.int64), np.array(joint, np.int64)

    def _reaches(self, joint: IntArray, wanted: IntArray, follows: IntArray) -> BoolArray:
        """Which operators come wholly before which, by the edges that `follows` says.

        All of a producer comes before a reader that reads all of it. If each of its tasks is read, it also
        comes before all that its readers come before.
        """
        edges, n = self.index.edges, len(self.problem.graph.operators)
        reaches = np.zeros((n, n), np.bool_)
        for number in sorted(range(len(edges)), key=lambda e: -edges[e].producer):
            producer, consumer = edges[number].producer, edges[number].consumer
            if follows[number] and wanted[number]:
                reaches[producer] |= reaches[consumer]
            if follows[number] and joint[number]:
                reaches[producer, consumer] = True
        return reaches


def _common(written: IntArray, read: IntArray) -> IntArray:
    """Number of elements in both boxes, shape [writers, readers]; boxes have the shape [tasks, dims, 2]."""
    start = np.maximum(written[:, None, :, 0], read[None, :, :, 0])
    stop = np.minimum(written[:, None, :, 1], read[None, :, :, 1])
    return np.asarray(np.maximum(stop - start, 0).prod(axis=2), np.int64)


def _offsets(counts: list[int]) -> IntArray:
    return np.cumsum([0, *counts], dtype=np.int64)


def _used(pool: Pool) -> NDArray[Any]:
    return pool.data[: pool.size]
