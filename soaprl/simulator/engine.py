"""Holds a strategy and its task graph, and changes them: what the simulators of a problem stand on."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import inf
from typing import NamedTuple

import numpy as np

from soaprl.cluster.tables import ClusterTables, IntArray, cluster_tables
from soaprl.cost.kernels import compiled_for
from soaprl.cost.transfers import collective_scratch
from soaprl.errors import SimulationError
from soaprl.simulator.adjacency import adjacency
from soaprl.simulator.book import Patterns
from soaprl.simulator.edges import Found
from soaprl.simulator.entry import (
    KEEP_SCHEDULE,
    NO_SCALE,
    PROPOSE,
    REBUILD,
    REPLAN,
    SCAN,
    SIMULATE,
    TAKE_BACK,
    no_rows,
    perform,
)
from soaprl.simulator.order import ProgramOrder, runtime_order
from soaprl.simulator.patch import (
    DONE,
    NO_PLANS,
    NO_ROOM,
    UNKNOWN_PATTERN,
    Change,
    Graph,
    Setting,
    empty_change,
)
from soaprl.simulator.patterns import OperatorPattern
from soaprl.simulator.problem import Problem
from soaprl.simulator.queue import Queue, empty_queue
from soaprl.simulator.record import Record, empty_record
from soaprl.simulator.rooms import empty_rooms, enlarged, need_of_all, placed
from soaprl.simulator.state import empty_layout, empty_plans, empty_workspace
from soaprl.simulator.tables import GraphTables, graph_index, graph_tables
from soaprl.simulator.trial import (
    FITS,
    MOVED_BYTES,
    NUM_NUMBERS,
    OPEN,
    PEAK_BYTES,
    STATUS,
    TOO_LONG,
    UNKNOWN_VECTOR,
    Limits,
    Outcome,
    Rows,
    Scale,
)
from soaprl.strategy.strategy import OpConfig, Sharding, Strategy
from soaprl.strategy.validation import check_config, check_strategy


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


class Candidates(NamedTuple):
    """Changes to try, of operators of one micro-batch in all of them.

    Attributes:
        rows: The changes.
        degrees: For each operator its degree vectors, by number.
    """

    rows: Rows
    degrees: list[list[tuple[int, ...]]]


class Engine:
    """A strategy, its task graph, and the patterns of all strategies seen so far.

    Not for several threads at once. A *change* is staged (`stage`), then applied (`propose`), and may be
    taken back (`take_back`).

    Args:
        problem: What is simulated.
        sharding: Of all strategies.
        num_copies: Of how many equal copies (micro-batches) the graph consists.
        order: In which devices do their tasks; None: first in, first out, or, where messages take time of
            processors, as ranks do them.
        patterns: To share with other engines of the same thread; None: ones of its own.

    Attributes:
        problem: What is simulated.
        sharding: Of all strategies.
        num_copies: Of how many equal copies (micro-batches) the graph consists.
        ordered: Whether devices do their tasks in the order of the program.
        index: The graph's edges and groups.
        setting: What does not depend on the strategy.
        found: The patterns.
        graph: The strategy and its task graph.
        record: The schedule of the strategy that proposals are changes of; empty if it is not kept.
        queue: Working memory of the schedule.
        change: The change at hand.
        configs: The configurations at hand; None before the first.
    """

    def __init__(
        self,
        problem: Problem,
        sharding: Sharding = Sharding.NONE,
        *,
        num_copies: int = 1,
        order: ProgramOrder | None = None,
        patterns: Patterns | None = None,
    ) -> None:
        self.problem, self.sharding = problem, sharding
        graph, cluster, options = problem.graph, problem.cluster, problem.options
        if order is None and problem.overheads.occupy:
            order = runtime_order(graph.operators)
        self.num_copies, self.ordered = num_copies, order is not None
        if sharding is not Sharding.NONE and options.paper:
            raise SimulationError(
                f"sharding {sharding.value!r} takes collectives, and the paper's assumptions know none:"
                " choose a strategy without sharding, or simulate without the paper's assumptions."
            )
        apart = sharding.synchronizes_each_pass
        self.index = graph_index(graph, num_copies if apart else 1)
        self.tables: ClusterTables = cluster_tables(cluster, paper=options.paper)
        tables: GraphTables = graph_tables(graph, self.index, prefetch=options.prefetch, order=order)
        self.setting = Setting(
            graph=tables,
            near=adjacency(self.index, num_copies, groups_apart=apart),
            tables=self.tables,
            scratch=collective_scratch(self.tables),
            paper=options.paper,
            overlap=options.overlap_synchronization,
            sharding=sharding.level,
            num_copies=num_copies,
        )
        self._patterns = patterns or Patterns(problem, sharding, num_copies)
        if self._patterns.key != (problem, sharding, num_copies):
            raise SimulationError(
                "expected patterns of this problem and sharding, found others: make them with"
                " Patterns(problem, sharding)."
            )
        n, num_groups = len(graph.operators), len(self.index.groups)
        room = cluster.num_devices
        rooms = empty_rooms(tables, num_groups)
        blocks = placed(rooms)
        self.graph = Graph(
            layout=empty_layout(tables, num_groups, room, 0 if order is None else len(order.turns)),
            plans=empty_plans(0),
            rooms=rooms,
            needed=empty_rooms(tables, num_groups),
            blocks=blocks,
            work=empty_workspace(tables, blocks, cluster.num_devices, 0, sharding.level),
        )
        self._everything = empty_change(n, num_groups, 1)
        self._everything.operators[:] = np.arange(n)
        self._everything.groups[:] = np.arange(num_groups)
        self._everything.sizes[:] = n, num_groups, 0
        self.change: Change = empty_change(n, num_groups, room)
        self.record: Record = empty_record(0, cluster.num_devices, 0)
        self.queue: Queue = empty_queue(0, cluster.num_devices, len(cluster.links))
        self.configs: list[OpConfig | None] = [None] * n
        self._refused = 0
        self._limits = Limits(
            peaks=np.zeros(cluster.num_devices, np.int64),
            live=np.zeros(cluster.num_devices, np.int64),
            capacity=np.array([cluster.device_types[d.type].memory_bytes for d in cluster.devices], np.int64),
            state_per_byte=options.state_per_parameter_byte,
        )
        self._no_rows = no_rows()
        self._outcome = Outcome(time_s=np.zeros(1, np.float64), numbers=np.zeros(NUM_NUMBERS, np.int64))
        self._horizon_s = 0.0
        self._entry: Callable[..., int] | None = None
        if order is not None:
            self._enter_order(order)

    @property
    def found(self) -> Found:
        """The patterns as compiled code sees them now."""
        return self._patterns.found

    def reorder(self, order: ProgramOrder) -> None:
        """Puts passes in another order; the next strategy is entered afresh."""
        assert self.ordered, "an engine with an order stays one with an order"
        assert not self.sharding.synchronizes_each_pass, "what is gathered, and when, is of the order"
        self._enter_order(order)
        self.configs = [None] * len(self.configs)

    def _enter_order(self, order: ProgramOrder) -> None:
        layout = self.graph.layout
        layout.forward_step[:], layout.backward_step[:] = order.forward_step, order.backward_step
        layout.turns[:] = order.turns

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
            status = self._perform(PROPOSE, limit_s=limit_s)
            if status == UNKNOWN_PATTERN:
                self._learn()
                continue
            if status in (NO_PLANS, NO_ROOM):
                self._rebuild(status)
                self._perform(SIMULATE, limit_s=limit_s)
                if self._outcome.time_s[0] == inf:
                    self.take_back()
                    return None
            elif status == TOO_LONG:
                return None
            return self._evaluation()

    def move_to(self, strategy: Strategy, limit_s: float = inf) -> Evaluation | None:
        """Makes `strategy` the one at hand and simulates it, unless that takes longer than `limit_s`.

        Returns:
            None if the iteration takes longer than `limit_s`; then the strategy at hand stays as it was, if
            there was one.

        Raises:
            StrategyError: The strategy does not fit the graph or the cluster.
        """
        self.settle(strategy)
        before, after = self.configs, strategy.configs
        changed = self._different(strategy)
        self.stage((o, after[o]) for o in changed)
        if changed:
            self.drop_schedule()
        # The first strategy of all cannot be taken back.
        first = None in before
        evaluation = self.propose(inf if first else limit_s)
        if evaluation is not None:
            for o in changed:
                before[o] = after[o]
            self.keep()
        return None if first and evaluation and evaluation.iteration_time_s > limit_s else evaluation

    def settle(self, strategy: Strategy) -> None:
        """Ends an open proposal: it stays if it is part of `strategy`, and is taken back otherwise.

        What compiled code notes of its state, not what was done with its answer, says where things stand: so
        an interrupt at any moment does no harm.
        """
        numbers = self._outcome.numbers
        if numbers[STATUS] in (NO_PLANS, NO_ROOM):
            self._rebuild(int(numbers[STATUS]))
        if numbers[OPEN] == 0:
            return
        layout, changed = self.graph.layout, self.change.operators[: self.change.sizes[0]].tolist()
        stays = all(
            self._patterns.number(o, strategy.configs[o].degrees) == layout.pattern[o]
            and strategy.configs[o].devices == tuple(layout.devices[o, : layout.num_parts[o]].tolist())
            for o in changed
        )
        if not stays:
            self._refused += 1
            self.take_back()
            return
        for o in changed:
            self.configs[o] = strategy.configs[o]
        self.keep()

    def keep(self) -> None:
        """Ends an open proposal: it is the strategy at hand now."""
        self._refused = 0
        # In this order: an interrupt in between must not leave the schedule of another strategy.
        self.drop_schedule()
        self._outcome.numbers[OPEN] = 0

    def scan(
        self, strategy: Strategy, candidates: Candidates, first: int, end: int, scale: Scale
    ) -> tuple[int, Evaluation | None]:
        """The first of the candidates from `first` to `end` that is within its limit, and what came of it.

        Args:
            strategy: What the candidates are changes of.
            candidates: Changes; patterns that are missing are filled in.
            first: The first candidate to look at.
            end: One past the last.
            scale: What the limits depend on.

        Returns:
            Its number and evaluation; `end` and None if there is none.
        """
        self.settle(strategy)
        if self._different(strategy):
            self.move_to(strategy)
        row = first
        while True:
            if self._refused > 0 and not self.keeps_schedule:
                self.keep_schedule()
            before = row
            stop = end if self._refused > 0 else min(row + 1, end)
            row = self._perform(SCAN, rows=candidates.rows, scale=scale, first=row, end=stop)
            self._refused += row - before
            status = int(self._outcome.numbers[STATUS])
            if status == DONE:
                return row, self._evaluation()
            if status in (NO_PLANS, NO_ROOM):
                self._rebuild(status)
                self.take_back()
            elif status == UNKNOWN_PATTERN:
                self._learn()
            elif status == UNKNOWN_VECTOR:
                self._learn_vectors(candidates, row)
            elif row == end:
                return end, None

    def _perform(
        self,
        action: int,
        *,
        change: Change | None = None,
        rows: Rows | None = None,
        scale: Scale = NO_SCALE,
        limit_s: float = inf,
        first: int = 0,
        end: int = 0,
    ) -> int:
        """See `soaprl.simulator.entry.perform`."""
        arguments = (
            action,
            self.setting,
            self._patterns.found,
            self.graph,
            self.change if change is None else change,
            self.record,
            self.queue,
            self._limits,
            self._outcome,
            self._no_rows if rows is None else rows,
            scale,
            self._horizon_s,
            limit_s,
            first,
            end,
        )
        if self._entry is None:
            self._entry = compiled_for(perform, *arguments)
        return self._entry(*arguments)

    def _learn_vectors(self, candidates: Candidates, row: int) -> None:
        """Computes the patterns of operators that a candidate needs."""
        rows = candidates.rows
        operator = int(rows.operators[row])
        for member in rows.ties[rows.tie_begin[operator] : rows.tie_begin[operator + 1]].tolist():
            degrees = candidates.degrees[member][int(rows.vectors[row])]
            number = self._patterns.number(member, degrees)
            if number is None:
                number = self._patterns.add_operator(member, degrees)
            rows.patterns[rows.first[member] + rows.vectors[row]] = number

    def _different(self, strategy: Strategy) -> list[int]:
        """The operators whose configuration is not the one at hand."""
        before, after = self.configs, strategy.configs
        if len(after) != len(before):
            check_strategy(self.problem.graph, self.problem.cluster.num_devices, strategy)
        return [o for o in range(len(after)) if after[o] is not before[o] and after[o] != before[o]]

    def _evaluation(self) -> Evaluation:
        numbers = self._outcome.numbers
        self._horizon_s = float(self._outcome.time_s[0])
        return Evaluation(
            iteration_time_s=self._horizon_s,
            peak_memory_bytes=int(numbers[PEAK_BYTES]),
            feasible=bool(numbers[FITS]),
            communication_bytes=int(numbers[MOVED_BYTES]),
        )

    def take_back(self) -> None:
        """Takes the change at hand back; doing so twice applies it again."""
        status = self._perform(TAKE_BACK)
        if status != DONE:
            self._rebuild(status)

    def refresh(self) -> None:
        """Fills in the times of all tasks of the strategy at hand."""
        self._perform(SIMULATE)

    def keep_schedule(self) -> None:
        """Keeps the schedule of the strategy at hand, so that those of small changes are made faster.

        Not where tasks wait for gathers of sharded parameters or for their turn: they are in no run.
        """
        if self.sharding is Sharding.ZERO3 or self.ordered:
            return
        self._perform(KEEP_SCHEDULE)

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
        """Computes the patterns of groups that the change needs, and makes room for those of edges."""
        layout, change, near = self.graph.layout, self.change, self.setting.near
        changed = change.operators[: change.sizes[0]].tolist()
        patterns = layout.pattern.copy()
        patterns[changed] = change.patterns[: change.sizes[0]]
        groups: dict[int, None] = {}
        for o in changed:
            groups.update(dict.fromkeys(near.groups[near.group_begin[o] : near.group_begin[o + 1]].tolist()))
        # Copies of operators have groups in common: each is asked for once.
        self._patterns.reserve_edge()
        for g in groups:
            self._patterns.need_group(g, [int(patterns[r]) for r in self.index.groups[g].readers])

    def _rebuild(self, status: int) -> None:
        """Enters all blocks anew, with more room."""
        setting, num_devices, num_links = (
            self.setting,
            self.tables.num_devices,
            len(self.tables.link_latency_s),
        )
        plan_room = max(1024, len(self.graph.plans.time_s))
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
                setting.sharding,
            )
            np.maximum(graph.needed.operators[2], back, out=graph.needed.operators[2])
            rooms = enlarged(graph.rooms, graph.needed, num_devices)
            blocks = placed(rooms)
            most_pairs = int(rooms.operators[4].max(initial=0))
            plans = graph.plans
            if replan:
                plans = empty_plans(plan_room)
                plans.cursor[3] = graph.plans.cursor[3] + 1
            work = empty_workspace(setting.graph, blocks, num_devices, most_pairs, setting.sharding)
            self.graph = graph._replace(plans=plans, rooms=rooms, blocks=blocks, work=work)
            num_ids = len(work.need)
            self.record = empty_record(num_ids, num_devices, int(np.diff(blocks.back_begin[[0, -1]])[0]))
            if num_ids > len(self.queue.head):
                self.queue = empty_queue(num_ids, num_devices, num_links)
            status = self._perform(REPLAN if replan else REBUILD, change=self._everything)
            # Room for the plans of the strategy at hand, of the one before, and of the next try of a change
            # that is tried again: with less, taking a change back and trying it again could plan for ever.
            needed = 3 * int(self.graph.plans.cursor[:3].max()) + num_devices + num_links
            if replan and (status == NO_PLANS or needed > plan_room):
                status, plan_room = NO_PLANS, 2 * plan_room
        self._outcome.numbers[STATUS] = DONE

    def _widen(self, num_parts: int) -> None:
        """Makes room for operators of more tasks."""
        layout, change = self.graph.layout, self.change

        def wider(devices: IntArray) -> IntArray:
            widened = np.zeros((len(devices), 2 * num_parts), np.int64)
            widened[:, : devices.shape[1]] = devices
            return widened

        self.graph = self.graph._replace(layout=layout._replace(devices=wider(layout.devices)))
        self.change = change._replace(devices=wider(change.devices))
