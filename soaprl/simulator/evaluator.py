"""The simulator: holds the patterns of a problem and scores strategies."""

from dataclasses import dataclass
from math import inf

import numpy as np

from soaprl.cluster.tables import ClusterTables, FloatArray, IntArray, cluster_tables
from soaprl.cost.kernels import filling_kernel
from soaprl.cost.transfers import CollectiveScratch, collective_scratch
from soaprl.simulator.assemble import (
    begin,
    begin_tasks,
    enter_deliveries,
    link_backward,
    link_outputs,
    measure,
)
from soaprl.simulator.cells import SyncPattern, SyncPools
from soaprl.simulator.collectives import plan_groups
from soaprl.simulator.memory import peak_memory
from soaprl.simulator.patterns import EdgePattern, OperatorPattern, OperatorPools, PatternPools
from soaprl.simulator.problem import Problem
from soaprl.simulator.schedule import Queue, empty_queue, schedule
from soaprl.simulator.state import (
    ACTIVATION_BYTES,
    GRADIENT_BYTES,
    SYNC_BYTES,
    Layout,
    Plans,
    Workspace,
    empty_layout,
    empty_plans,
    empty_workspace,
)
from soaprl.simulator.synchronize import link_synchronization
from soaprl.simulator.tables import GraphTables, graph_index, graph_tables
from soaprl.strategy.strategy import OpConfig, Strategy
from soaprl.strategy.validation import check_config, check_strategy

# Relative error that sums of times may have; lower bounds are trusted beyond it.
_ROUNDING = 1e-9
_RECOUNT_EVERY = 4096


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


class Simulator:
    """Simulates strategies of one problem.

    Keeps what it has computed about degrees it has seen, and the strategy it has seen last: operators whose
    configuration is the same object as before cost almost nothing to look at. Not for several threads at
    once: give each thread its own (compiled code runs without the interpreter lock).
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        graph, cluster = problem.graph, problem.cluster
        self.index = graph_index(graph)
        self.graph: GraphTables = graph_tables(graph, self.index)
        self.tables: ClusterTables = cluster_tables(cluster, paper=problem.options.paper)
        self._scratch: CollectiveScratch = collective_scratch(self.tables)
        self._operators = OperatorPools(graph, problem.cost, cluster.device_types)
        self._sync = SyncPools(graph, problem.cost, cluster.device_types)
        n = len(graph.operators)
        self._operator_patterns: list[dict[tuple[int, ...], OperatorPattern]] = [{} for _ in range(n)]
        self._edge_patterns: dict[tuple[int, tuple[int, ...], tuple[int, ...]], EdgePattern] = {}
        self._sync_patterns: dict[tuple[int, tuple[tuple[int, ...], ...]], SyncPattern] = {}
        self._configs: list[OpConfig | None] = [None] * n
        self._peaks: IntArray = np.zeros(cluster.num_devices, np.int64)
        self._live: IntArray = np.zeros(cluster.num_devices, np.int64)
        self._capacity: IntArray = np.array(
            [cluster.device_types[d.type].memory_bytes for d in cluster.devices], np.int64
        )
        self.load_s: FloatArray = np.zeros(cluster.num_devices, np.float64)
        self._next_load_s: FloatArray = np.zeros(cluster.num_devices, np.float64)
        self._num_loads = 0
        self._horizon_s = 0.0
        self.pools: PatternPools = self._gathered()
        self.layout: Layout = empty_layout(self.graph, len(self.index.groups), cluster.num_devices)
        self.plans: Plans = empty_plans(0)
        self.work: Workspace = empty_workspace(self.graph, cluster.num_devices, 0, 0)
        self.queue: Queue = empty_queue(0, cluster.num_devices, len(cluster.links))

    def evaluate(self, strategy: Strategy) -> Evaluation:
        """Simulates one iteration under `strategy`.

        Raises:
            StrategyError: The strategy does not fit the graph or the cluster.
        """
        evaluation = self.evaluate_within(strategy, inf)
        assert evaluation is not None, "without a limit every strategy is simulated to its end"
        return evaluation

    def evaluate_within(self, strategy: Strategy, limit_s: float) -> Evaluation | None:
        """Simulates one iteration under `strategy` unless it certainly takes longer than `limit_s`.

        Two lower bounds are tried: the busiest device's compute time, before anything is assembled, and what
        the devices still have to do, while the schedule is made. An answer is what `evaluate` gives, even if
        its time passes the limit.

        Returns:
            None if the iteration takes longer than `limit_s`.

        Raises:
            StrategyError: The strategy does not fit the graph or the cluster.
        """
        changed = self._changed(strategy)
        self._shift_load(changed, strategy)
        # Sums in another order differ in their last bits: a bound counts only if it passes the limit by more.
        bound_s = limit_s * (1.0 + _ROUNDING)
        if self._next_load_s.max() > bound_s:
            return None
        self._load(changed, strategy)
        options = self.problem.options
        time_s, peak_bytes, fits, communication_bytes = _evaluate(
            self.graph,
            self.pools,
            self.layout,
            self.tables,
            self.plans,
            self.work,
            self.queue,
            self._peaks,
            self._live,
            self._capacity,
            options.state_per_parameter_byte,
            options.paper,
            options.overlap_synchronization,
            self._horizon_s,
            self.load_s,
            bound_s,
        )
        if time_s == inf:
            return None
        self._horizon_s = time_s
        return Evaluation(
            iteration_time_s=time_s,
            peak_memory_bytes=peak_bytes,
            feasible=fits,
            communication_bytes=communication_bytes,
        )

    def load(self, strategy: Strategy) -> None:
        """Makes `strategy` the one at hand: brings patterns, layout and plans up to date."""
        changed = self._changed(strategy)
        self._shift_load(changed, strategy)
        self._load(changed, strategy)

    def _changed(self, strategy: Strategy) -> list[int]:
        """The operators whose configuration is not the one at hand."""
        if len(strategy.configs) != len(self._configs):
            check_strategy(self.problem.graph, self.tables.num_devices, strategy)
        before, after = self._configs, strategy.configs
        return [o for o in range(len(after)) if after[o] is not before[o] and after[o] != before[o]]

    def _shift_load(self, changed: list[int], strategy: Strategy) -> None:
        """Sums into `_next_load_s` how long each device computes under `strategy`; checks its changes."""
        self._next_load_s[:] = self.load_s
        for o in changed:
            old, new = self._configs[o], strategy.configs[o]
            if old is not None:
                self._add_load(self._next_load_s, self._operator_patterns[o][old.degrees], old, -1.0)
            self._add_load(self._next_load_s, self._operator_pattern(o, new), new, 1.0)

    def _add_load(self, load_s: FloatArray, pattern: OperatorPattern, config: OpConfig, sign: float) -> None:
        """Adds (or takes away) what the tasks of one operator take on their devices."""
        pools, devices = self.pools, np.array(config.devices, np.int64)
        add_load(
            load_s,
            pools.forward_s,
            pools.backward_s,
            self.tables.device_type,
            devices,
            pattern.part_base,
            pools.num_types,
            sign,
        )

    def _load(self, changed: list[int], strategy: Strategy) -> None:
        """Loads what `_shift_load` has checked and found the patterns and loads of."""
        if not changed:
            return
        before, after = self._configs, strategy.configs
        edges: set[int] = set()
        groups: set[int] = set()
        self.load_s, self._next_load_s = self._next_load_s, self.load_s
        self._num_loads += 1
        for o in changed:
            old = before[o]
            if old is None or old.degrees != after[o].degrees:
                edges.update(self.index.edges_of[o])
            groups.update(self.index.groups_of[o])
            before[o] = after[o]
            self._place(o, self.operator_pattern(o), after[o])
        if self._num_loads % _RECOUNT_EVERY == 0:
            self._recount_load(strategy)
        for edge in edges:
            self._connect(edge)
        for group in groups:
            self._cut(group)
        self._plan(np.array(sorted(groups), np.int64))
        self._make_room()

    def _recount_load(self, strategy: Strategy) -> None:
        """Sums the load of each device anew, so that rounding errors do not pile up."""
        self.load_s[:] = 0.0
        for o, config in enumerate(strategy.configs):
            self._add_load(self.load_s, self.operator_pattern(o), config, 1.0)

    def operator_pattern(self, operator: int) -> OperatorPattern:
        """The pattern of an operator under the strategy at hand."""
        config = self._configs[operator]
        assert config is not None
        return self._operator_patterns[operator][config.degrees]

    def _operator_pattern(self, o: int, config: OpConfig) -> OperatorPattern:
        """The pattern of a configuration, which is checked."""
        operator = self.problem.graph.operators[o]
        num_devices = self.tables.num_devices
        found = self._operator_patterns[o].get(config.degrees)
        legal = found is not None and found.num_parts == len(config.devices)
        if not legal or min(config.devices) < 0 or max(config.devices) >= num_devices:
            check_config(operator, config, num_devices)
        if found is None:
            found = self._operators.add_operator(operator, config.degrees)
            self._operator_patterns[o][config.degrees] = found
            self.pools = self._gathered()
        return found

    def _place(self, o: int, pattern: OperatorPattern, config: OpConfig) -> None:
        room = self.layout.devices.shape[1]
        if pattern.num_parts > room:
            wider = np.zeros((self.graph.num_operators, 2 * pattern.num_parts), np.int64)
            wider[:, :room] = self.layout.devices
            self.layout = self.layout._replace(devices=wider)
        self.layout.devices[o, : pattern.num_parts] = config.devices
        self.layout.num_parts[o] = pattern.num_parts
        self.layout.part_base[o] = pattern.part_base
        self.layout.output_base[o] = pattern.output_base

    def _connect(self, number: int) -> None:
        """Looks up, or computes, the pattern of an edge between its operators' degrees."""
        edge = self.index.edges[number]
        producer, consumer = self._configs[edge.producer], self._configs[edge.consumer]
        assert producer is not None
        assert consumer is not None
        key = (number, producer.degrees, consumer.degrees)
        pattern = self._edge_patterns.get(key)
        if pattern is None:
            operator = self.problem.graph.operators[edge.producer]
            output = len(operator.inputs) + len(operator.parameters) + edge.output
            written = self.operator_pattern(edge.producer).regions(output)
            read = self.operator_pattern(edge.consumer).regions(edge.position)
            pattern = self._operators.add_edge(written, read, operator.outputs[edge.output].tensor)
            self._edge_patterns[key] = pattern
            self.pools = self._gathered()
        self.layout.row_base[number] = pattern.row_base
        self.layout.num_pairs[number] = pattern.num_pairs

    def _cut(self, number: int) -> None:
        """Looks up, or computes, the cells of a group under its readers' degrees."""
        group = self.index.groups[number]
        patterns = tuple(self.operator_pattern(reader) for reader in group.readers)
        key = (number, tuple(config.degrees for r in group.readers if (config := self._configs[r])))
        pattern = self._sync_patterns.get(key)
        if pattern is None:
            pattern = self._sync.add_group(group, patterns)
            self._sync_patterns[key] = pattern
            self.pools = self._gathered()
        self.layout.cell_begin[number] = pattern.cell_begin
        self.layout.cell_end[number] = pattern.cell_end
        self.layout.num_covers[number] = pattern.num_covers

    def _plan(self, groups: IntArray) -> None:
        """Plans the synchronization of `groups`; of all groups when the room for plans is used up."""
        room = 1024
        while not plan_groups(
            self.graph,
            self.pools,
            self.layout,
            self.tables,
            self._scratch,
            self.plans,
            self.work,
            groups,
            paper=self.problem.options.paper,
        ):
            groups = np.arange(len(self.index.groups), dtype=np.int64)
            if self.plans.cursor[0] == 0 or len(groups) == len(self.index.groups):
                room = 2 * max(len(self.plans.time_s), room)
                self.plans = empty_plans(room)
            self.plans.cursor[:] = 0

    def _make_room(self) -> None:
        """Enlarges the workspace if the strategy needs it."""
        num_devices, paper = self.tables.num_devices, self.problem.options.paper
        num_ids, num_edges = measure(self.graph, self.layout, num_devices, paper=paper)
        if num_ids > len(self.work.in_degree) or num_edges > len(self.work.successors):
            num_ids, num_edges = num_ids + num_ids // 2, num_edges + num_edges // 2
            self.work = empty_workspace(self.graph, num_devices, num_ids, num_edges)
            self.queue = empty_queue(num_ids, num_devices, len(self.tables.link_latency_s))

    def _gathered(self) -> PatternPools:
        """The pools as compiled code sees them now."""
        operators, sync = self._operators, self._sync
        return PatternPools(
            num_types=len(self.problem.cluster.device_types),
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


@filling_kernel
def assemble(
    graph: GraphTables,
    pools: PatternPools,
    layout: Layout,
    tables: ClusterTables,
    plans: Plans,
    work: Workspace,
    paper: bool,
    overlap: bool,
) -> None:
    """The task graph of the strategy in `layout`, into `work`."""
    begin(graph, layout, work, tables.num_devices, paper=paper)
    begin_tasks(graph, pools, layout, tables, work)
    link_outputs(graph, pools, layout, work)
    enter_deliveries(graph, tables, work)
    link_synchronization(graph, pools, layout, tables, plans, work, paper=paper, overlap=overlap)
    link_backward(graph, layout, work)


@filling_kernel
def _evaluate(
    graph: GraphTables,
    pools: PatternPools,
    layout: Layout,
    tables: ClusterTables,
    plans: Plans,
    work: Workspace,
    queue: Queue,
    peaks: IntArray,
    live: IntArray,
    capacity: IntArray,
    state_per_byte: int,
    paper: bool,
    overlap: bool,
    horizon_s: float,
    load_s: FloatArray,
    limit_s: float,
) -> tuple[float, int, bool, int]:
    """Iteration time, largest peak memory, whether all fits, bytes moved; infinite time: past the limit."""
    assemble(graph, pools, layout, tables, plans, work, paper, overlap)
    time_s = schedule(graph, layout, tables, plans, work, queue, horizon_s, load_s, limit_s)
    if time_s == np.inf:
        return time_s, 0, False, 0
    peak_bytes = peak_memory(work, peaks, live, state_per_byte)
    fits = True
    for device in range(tables.num_devices):
        fits = fits and peaks[device] <= capacity[device]
    moved = work.totals[ACTIVATION_BYTES] + work.totals[GRADIENT_BYTES] + work.totals[SYNC_BYTES]
    return time_s, peak_bytes, fits, moved


@filling_kernel
def add_load(
    load_s: FloatArray,
    forward_s: FloatArray,
    backward_s: FloatArray,
    device_type: IntArray,
    devices: IntArray,
    part_base: int,
    num_types: int,
    sign: float,
) -> None:
    """Adds `sign` times what the tasks of an operator take to the loads of their devices."""
    for part, device in enumerate(devices):
        timed = (part_base + part) * num_types + device_type[device]
        load_s[device] += sign * (forward_s[timed] + backward_s[timed])
