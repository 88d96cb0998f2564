"""Holds a strategy and its task graph, and changes them: what the simulators of a problem stand on."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import inf
from typing import NamedTuple

import numpy as np

from soaprl.cluster.tables import ClusterTables, FloatArray, IntArray, cluster_tables
from soaprl.cost.kernels import filling_kernel, inner_kernel
from soaprl.cost.transfers import collective_scratch
from soaprl.simulator.adjacency import adjacency
from soaprl.simulator.cells import SyncPools
from soaprl.simulator.follow import GIVEN_UP_S, follow
from soaprl.simulator.lookup import MISSING, Lookup, key_of
from soaprl.simulator.memory import peak_memory
from soaprl.simulator.patch import (
    DONE,
    NO_PLANS,
    NO_ROOM,
    UNKNOWN_PATTERN,
    Change,
    Found,
    Graph,
    Setting,
    add_load,
    apply,
    empty_change,
    rebuild,
)
from soaprl.simulator.patterns import OperatorPattern, OperatorPools, PatternPools
from soaprl.simulator.pools import Pool
from soaprl.simulator.problem import Problem
from soaprl.simulator.queue import Queue, empty_queue
from soaprl.simulator.record import (
    Record,
    begin_following,
    empty_record,
    record_schedule,
    touch_change,
    worth_following,
)
from soaprl.simulator.rooms import empty_rooms, enlarged, need_of_all, placed
from soaprl.simulator.schedule import schedule
from soaprl.simulator.state import (
    ACTIVATION_BYTES,
    GRADIENT_BYTES,
    NUM_TASKS,
    SYNC_BYTES,
    empty_layout,
    empty_plans,
    empty_workspace,
)
from soaprl.simulator.tables import GraphTables, graph_index, graph_tables
from soaprl.strategy.strategy import OpConfig
from soaprl.strategy.validation import check_config

_MOST_NUMBER = 2**31


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What a search needs to know about a strategy.

    Attributes:
        iteration_time_s: Seconds of one training iteration.
        peak_memory_bytes: Largest peak memory of any device.
        feasible: Whether the peak of every device fits in its memory.
        communication_bytes: Bytes that devices send each other: activations, gradients, synchronization (an
            all-reduce of s bytes over n devices counts 2 (n - 1) s).
    """

    iteration_time_s: float
    peak_memory_bytes: int
    feasible: bool
    communication_bytes: int


class Limits(NamedTuple):
    """Of memory.

    Attributes:
        peaks: Shape [devices]; filled.
        live: Shape [devices]; working memory.
        capacity: Shape [devices]; bytes.
        state_per_byte: Bytes of optimizer state for each byte of a trainable parameter.
    """

    peaks: IntArray
    live: IntArray
    capacity: IntArray
    state_per_byte: int


# Entries of `Outcome.numbers`; what `STATUS` may say beyond the answers of `apply`.
STATUS, PEAK_BYTES, FITS, MOVED_BYTES = 0, 1, 2, 3
TOO_LONG = 4


class Outcome(NamedTuple):
    """What came of a change.

    Attributes:
        time_s: Shape [1].
        numbers: Shape [4]; status, largest peak, whether all fits, bytes moved.
    """

    time_s: FloatArray
    numbers: IntArray


class Engine:
    """A strategy, its task graph, and the patterns of all strategies seen so far.

    Not for several threads at once. A *change* is staged (`stage`), then applied (`propose`), and may be
    taken back (`take_back`).

    Attributes:
        problem: What is simulated.
        index: The graph's edges and groups.
        setting: What does not depend on the strategy.
        found: The patterns.
        graph: The strategy and its task graph.
        record: The schedule of the strategy that proposals are changes of; empty if it is not kept.
        queue: Working memory of the schedule.
        change: The change at hand.
        configs: The configurations at hand; None before the first.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        graph, cluster, options = problem.graph, problem.cluster, problem.options
        self.index = graph_index(graph)
        self.tables: ClusterTables = cluster_tables(cluster, paper=options.paper)
        tables: GraphTables = graph_tables(graph, self.index)
        self.setting = Setting(
            graph=tables,
            near=adjacency(self.index),
            tables=self.tables,
            scratch=collective_scratch(self.tables),
            paper=options.paper,
            overlap=options.overlap_synchronization,
        )
        self._patterns = _Patterns(problem)
        n, num_groups = len(graph.operators), len(self.index.groups)
        room = cluster.num_devices
        rooms = empty_rooms(tables, num_groups)
        blocks = placed(rooms)
        self.graph = Graph(
            layout=empty_layout(tables, num_groups, room),
            plans=empty_plans(0),
            rooms=rooms,
            needed=empty_rooms(tables, num_groups),
            blocks=blocks,
            work=empty_workspace(tables, blocks, cluster.num_devices, 0),
        )
        self._everything = empty_change(n, num_groups, 1)
        self._everything.operators[:] = np.arange(n)
        self._everything.groups[:] = np.arange(num_groups)
        self._everything.sizes[:] = n, num_groups, 0
        self.change: Change = empty_change(n, num_groups, room)
        self.record: Record = empty_record(0, cluster.num_devices, 0)
        self.queue: Queue = empty_queue(0, cluster.num_devices, len(cluster.links))
        self.configs: list[OpConfig | None] = [None] * n
        self._limits = Limits(
            peaks=np.zeros(cluster.num_devices, np.int64),
            live=np.zeros(cluster.num_devices, np.int64),
            capacity=np.array([cluster.device_types[d.type].memory_bytes for d in cluster.devices], np.int64),
            state_per_byte=options.state_per_parameter_byte,
        )
        self._outcome = Outcome(time_s=np.zeros(1, np.float64), numbers=np.zeros(4, np.int64))
        self._horizon_s = 0.0

    @property
    def found(self) -> Found:
        """The patterns as compiled code sees them now."""
        return self._patterns.found

    def stage(self, changes: Iterable[tuple[int, OpConfig]]) -> None:
        """Makes these configurations the change at hand; operators must differ.

        Raises:
            StrategyError: A configuration does not fit its operator or the cluster.
        """
        count = 0
        for operator, config in changes:
            pattern = self._pattern(operator, config)
            num_parts = len(config.devices)
            if num_parts > self.change.devices.shape[1]:
                self._widen(num_parts)
            self.change.operators[count] = operator
            self.change.patterns[count] = pattern
            self.change.devices[count, :num_parts] = config.devices
            count += 1
        self.change.sizes[0], self.change.sizes[2] = count, 0

    def propose(self, limit_s: float = inf) -> Evaluation | None:
        """Applies the change at hand and simulates, unless that certainly takes longer than `limit_s`.

        Returns:
            None if the iteration takes longer than `limit_s`; then nothing has changed.
        """
        while True:
            time_s, numbers = self._outcome.time_s, self._outcome.numbers
            _propose(
                self.setting,
                self.found,
                self.graph,
                self.change,
                self.record,
                self.queue,
                self._limits,
                self._outcome,
                self._horizon_s,
                limit_s,
            )
            status = int(numbers[STATUS])
            if status == UNKNOWN_PATTERN:
                self._learn()
                continue
            if status in (NO_PLANS, NO_ROOM):
                self._rebuild(status)
                _simulate(
                    self.setting,
                    self.graph,
                    self.queue,
                    self._limits,
                    self._outcome,
                    self._horizon_s,
                    limit_s,
                )
                if time_s[0] == inf:
                    self.take_back()
                    return None
            elif status == TOO_LONG:
                return None
            self._horizon_s = float(time_s[0])
            return Evaluation(
                iteration_time_s=float(time_s[0]),
                peak_memory_bytes=int(numbers[PEAK_BYTES]),
                feasible=bool(numbers[FITS]),
                communication_bytes=int(numbers[MOVED_BYTES]),
            )

    def take_back(self) -> None:
        """Takes the change at hand back; doing so twice applies it again."""
        status = _take_back(self.setting, self.found, self.graph, self.change)
        if status != DONE:
            self._rebuild(status)

    def refresh(self) -> None:
        """Fills in the times of all tasks of the strategy at hand."""
        _simulate(self.setting, self.graph, self.queue, self._limits, self._outcome, self._horizon_s, inf)

    def keep_schedule(self) -> None:
        """Keeps the schedule of the strategy at hand, so that those of small changes are made faster."""
        self.refresh()
        num_tasks, num_devices = int(self.graph.work.totals[NUM_TASKS]), self.tables.num_devices
        record_schedule(self.graph.work, self.queue.dispatched, num_tasks, num_devices, self.record)

    @property
    def keeps_schedule(self) -> bool:
        """Whether a schedule is kept."""
        return bool(self.record.size[0] > 0)

    def drop_schedule(self) -> None:
        """Forgets a schedule that was kept: the strategy at hand is another one."""
        self.record.size[0] = 0

    def operator_pattern(self, operator: int) -> OperatorPattern:
        """The pattern of an operator under the strategy at hand."""
        return self._patterns.operators[int(self.graph.layout.pattern[operator])]

    def _pattern(self, o: int, config: OpConfig) -> int:
        """The number of the pattern of a configuration, which is checked."""
        operator, num_devices = self.problem.graph.operators[o], self.tables.num_devices
        number = self._patterns.number(o, config.degrees)
        legal = number is not None and self._patterns.operators[number].num_parts == len(config.devices)
        if not legal or min(config.devices) < 0 or max(config.devices) >= num_devices:
            check_config(operator, config, num_devices)
        return self._patterns.add_operator(o, config.degrees) if number is None else number

    def _learn(self) -> None:
        """Computes the patterns that the change at hand needs and that are missing."""
        layout, change, near = self.graph.layout, self.change, self.setting.near
        changed = change.operators[: change.sizes[0]].tolist()
        patterns = layout.pattern.copy()
        patterns[changed] = change.patterns[: change.sizes[0]]
        for o in changed:
            for e in near.edges_of[near.edge_of_begin[o] : near.edge_of_begin[o + 1]].tolist():
                edge = self.index.edges[e]
                self._patterns.need_edge(e, int(patterns[edge.producer]), int(patterns[edge.consumer]))
            for g in near.groups[near.group_begin[o] : near.group_begin[o + 1]].tolist():
                self._patterns.need_group(g, [int(patterns[r]) for r in self.index.groups[g].readers])

    def _rebuild(self, status: int) -> None:
        """Enters all blocks anew, with more room."""
        setting, num_devices, plan_room = self.setting, self.tables.num_devices, 1024
        while status != DONE:
            graph, replan = self.graph, status == NO_PLANS
            back = graph.needed.operators[2].copy()
            need_of_all(
                setting.graph,
                setting.near,
                self.found.pools,
                graph.layout,
                graph.needed,
                setting.paper,
                setting.overlap,
            )
            np.maximum(graph.needed.operators[2], back, out=graph.needed.operators[2])
            rooms = enlarged(graph.rooms, graph.needed, num_devices)
            blocks = placed(rooms)
            most_pairs = int(rooms.operators[4].max(initial=0))
            plans = graph.plans
            if replan:
                plans = empty_plans(plan_room)
                plans.cursor[3] = graph.plans.cursor[3] + 1
            work = empty_workspace(setting.graph, blocks, num_devices, most_pairs)
            self.graph = graph._replace(plans=plans, rooms=rooms, blocks=blocks, work=work)
            num_ids = len(work.need)
            self.record = empty_record(num_ids, num_devices, int(np.diff(blocks.back_begin[[0, -1]])[0]))
            if num_ids > len(self.queue.head):
                self.queue = empty_queue(num_ids, num_devices, len(self.tables.link_latency_s))
            status = rebuild(setting, self.found, self.graph, self._everything, replan)
            if replan and (status == NO_PLANS or 2 * self.graph.plans.cursor[:3].max() > plan_room):
                status, plan_room = NO_PLANS, 2 * plan_room

    def _widen(self, num_parts: int) -> None:
        """Makes room for operators of more tasks."""
        layout, change = self.graph.layout, self.change

        def wider(devices: IntArray) -> IntArray:
            widened = np.zeros((len(devices), 2 * num_parts), np.int64)
            widened[:, : devices.shape[1]] = devices
            return widened

        self.graph = self.graph._replace(layout=layout._replace(devices=wider(layout.devices)))
        self.change = change._replace(devices=wider(change.devices))


class _Patterns:
    """The patterns of a problem by number."""

    def __init__(self, problem: Problem) -> None:
        self._graph = problem.graph
        self._index = graph_index(problem.graph)
        device_types = problem.cluster.device_types
        self._num_types = len(device_types)
        self._operator_pools = OperatorPools(problem.graph, problem.cost, device_types)
        self._sync_pools = SyncPools(problem.graph, problem.cost, device_types)
        self._numbers: list[dict[tuple[int, ...], int]] = [{} for _ in problem.graph.operators]
        self._lookup = Lookup()
        self._rows = Pool(np.int64), Pool(np.int64), Pool(np.int64)
        self._next_node = len(self._index.edges) + len(self._index.groups)
        self.operators: list[OperatorPattern] = []
        self.found: Found = self._gathered()

    def number(self, operator: int, degrees: tuple[int, ...]) -> int | None:
        """The number of the pattern of an operator with `degrees`; None if there is none yet."""
        return self._numbers[operator].get(degrees)

    def add_operator(self, o: int, degrees: tuple[int, ...]) -> int:
        """Computes the pattern of an operator with `degrees`, which are legal; returns its number."""
        pattern = self._operator_pools.add_operator(self._graph.operators[o], degrees)
        number = len(self.operators)
        self.operators.append(pattern)
        self._numbers[o][degrees] = number
        self._rows[0].append(np.array([pattern.num_parts, pattern.part_base, pattern.output_base], np.int64))
        self.found = self._gathered()
        return number

    def need_edge(self, number: int, producer: int, consumer: int) -> None:
        """Computes the pattern of an edge between two patterns of operators, if it is not there."""
        node = self._step(number, producer)
        key = key_of(node, consumer)
        if self._lookup.get(key) != MISSING:
            return
        edge = self._index.edges[number]
        operator = self._graph.operators[edge.producer]
        output = len(operator.inputs) + len(operator.parameters) + edge.output
        written = self.operators[producer].regions(output)
        read = self.operators[consumer].regions(edge.position)
        pattern = self._operator_pools.add_edge(written, read, operator.outputs[edge.output].tensor)
        row = self._rows[1].append(np.array([pattern.row_base, pattern.num_pairs], np.int64))
        self._lookup.add(key, row // 2)
        self.found = self._gathered()

    def need_group(self, number: int, readers: list[int]) -> None:
        """Computes the pattern of a group between the patterns of its readers, if it is not there."""
        node = len(self._index.edges) + number
        for reader in readers[:-1]:
            node = self._step(node, reader)
        key = key_of(node, readers[-1])
        if self._lookup.get(key) != MISSING:
            return
        patterns = tuple(self.operators[reader] for reader in readers)
        pattern = self._sync_pools.add_group(self._index.groups[number], patterns)
        values = np.array([pattern.cell_begin, pattern.cell_end, pattern.num_covers], np.int64)
        self._lookup.add(key, self._rows[2].append(values) // 3)
        self.found = self._gathered()

    def _step(self, node: int, part: int) -> int:
        """The node after `node`, made if it is not there."""
        key = key_of(node, part)
        found = self._lookup.get(key)
        if found != MISSING:
            return found
        assert self._next_node < _MOST_NUMBER, "numbers of patterns have 31 bits"
        self._lookup.add(key, self._next_node)
        self._next_node += 1
        return self._next_node - 1

    def _gathered(self) -> Found:
        operators, sync = self._operator_pools, self._sync_pools
        pools = PatternPools(
            num_types=self._num_types,
            forward_s=operators.forward_s.data,
            backward_s=operators.backward_s.data,
            kept_bytes=operators.kept_bytes.data,
            passing_bytes=operators.passing_bytes.data,
            output_bytes=operators.output_bytes.data,
            rows=operators.rows.data,
            pair_reader=operators.pair_reader.data,
            pair_bytes=operators.pair_bytes.data,
            pair_box=operators.pair_box.data,
            cell_bytes=sync.cell_bytes.data,
            cell_trainable=sync.cell_trainable.data,
            cell_update_s=sync.cell_update_s.data,
            cover_begin=sync.cover_begin.data,
            cover_reader=sync.cover_reader.data,
            cover_part=sync.cover_part.data,
            cover_contributes=sync.cover_contributes.data,
        )
        rows = [pool.data for pool in self._rows]
        return Found(
            pools=pools,
            operators=rows[0][: len(rows[0]) // 3 * 3].reshape(-1, 3),
            edges=rows[1].reshape(-1, 2),
            groups=rows[2][: len(rows[2]) // 3 * 3].reshape(-1, 3),
            table=self._lookup.table,
        )


@filling_kernel
def _simulate(
    setting: Setting,
    graph: Graph,
    queue: Queue,
    limits: Limits,
    outcome: Outcome,
    horizon_s: float,
    limit_s: float,
) -> None:
    """Schedules the task graph; an infinite time: certainly longer than `limit_s`."""
    outcome.time_s[0] = schedule(
        graph.layout, setting.tables, graph.plans, graph.blocks, graph.work, queue, horizon_s, limit_s
    )
    _judge(setting, graph, limits, outcome)


@inner_kernel
def _judge(setting: Setting, graph: Graph, limits: Limits, outcome: Outcome) -> None:
    """What there is to know beside the time, if it is finite."""
    work, time_s = graph.work, outcome.time_s[0]
    if time_s == np.inf:
        return
    outcome.numbers[PEAK_BYTES] = peak_memory(work, limits.peaks, limits.live, limits.state_per_byte)
    outcome.numbers[FITS] = 1
    for device in range(setting.tables.num_devices):
        if limits.peaks[device] > limits.capacity[device]:
            outcome.numbers[FITS] = 0
    totals = work.totals
    outcome.numbers[MOVED_BYTES] = totals[ACTIVATION_BYTES] + totals[GRADIENT_BYTES] + totals[SYNC_BYTES]


@filling_kernel
def _propose(
    setting: Setting,
    found: Found,
    graph: Graph,
    change: Change,
    record: Record,
    queue: Queue,
    limits: Limits,
    outcome: Outcome,
    horizon_s: float,
    limit_s: float,
) -> None:
    """Applies the change and simulates; takes it back if that takes longer than `limit_s`."""
    add_load(setting, found, graph, change, 1)
    _add_load_at_hand(setting, found, graph, change, -1)
    longest_s = 0.0
    for device in range(setting.tables.num_devices):
        longest_s = max(longest_s, graph.work.load_s[device])
    status = TOO_LONG if longest_s > limit_s else apply(setting, found, graph, change)
    if status in (TOO_LONG, UNKNOWN_PATTERN):
        add_load(setting, found, graph, change, -1)
        _add_load_at_hand(setting, found, graph, change, 1)
    outcome.numbers[STATUS] = status
    if status != DONE:
        return
    time_s = GIVEN_UP_S
    if record.size[0] > 0 and worth_following(record):
        _mark(setting, found, graph, change, record)
        time_s = follow(
            graph.layout,
            setting.tables,
            graph.plans,
            graph.blocks,
            graph.work,
            queue,
            record,
            horizon_s,
            limit_s,
        )
    outcome.time_s[0] = time_s
    if time_s == GIVEN_UP_S:
        _simulate(setting, graph, queue, limits, outcome, horizon_s, limit_s)
    else:
        _judge(setting, graph, limits, outcome)
    if outcome.time_s[0] == np.inf:
        outcome.numbers[STATUS] = TOO_LONG
        status = _take_back(setting, found, graph, change)
        assert status == DONE


@inner_kernel
def _mark(setting: Setting, found: Found, graph: Graph, change: Change, record: Record) -> None:
    """Marks in the record what the change, which was applied, touches."""
    begin_following(graph.work, record, setting.tables.num_devices)
    for i in range(change.sizes[0]):
        change.old_parts[i] = found.operators[change.patterns[i], 0]
    touch_change(
        setting.graph,
        setting.near,
        graph.layout,
        graph.blocks,
        graph.work,
        record,
        change.operators[: change.sizes[0]],
        change.old_parts,
        change.groups[: change.sizes[1]],
    )


@filling_kernel
def _add_load_at_hand(setting: Setting, found: Found, graph: Graph, change: Change, sign: int) -> None:
    """Adds `sign` times what the tasks of the operators to be changed take now."""
    load_s, layout, pools = graph.work.load_s, graph.layout, found.pools
    for i in range(change.sizes[0]):
        o = change.operators[i]
        for part in range(layout.num_parts[o]):
            device = layout.devices[o, part]
            timed = (layout.part_base[o] + part) * pools.num_types + setting.tables.device_type[device]
            load_s[device] += sign * (pools.forward_s[timed] + pools.backward_s[timed])


@filling_kernel
def _take_back(setting: Setting, found: Found, graph: Graph, change: Change) -> int:
    """Exchanges the change with the layout again."""
    add_load(setting, found, graph, change, 1)
    _add_load_at_hand(setting, found, graph, change, -1)
    return apply(setting, found, graph, change)
