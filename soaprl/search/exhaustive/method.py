"""Exhaustive search with lower bounds (A*): the optimum of a space of strategies, and the proof.

Operators are chosen in the order of the graph, but light ones without producers last. The beginnings of
strategies wait in order of their lower bounds (`soaprl.search.exhaustive.bounds`). The one with the lowest
goes first: it is continued by every configuration of the next operator that keeps it canonical
(`soaprl.search.exhaustive.space`), and continuations whose bound is not below the best time so far are
dropped. Whole strategies are simulated. When no beginning is left, the best strategy is the optimum of the
space: nothing in it is faster by more than `tolerance`, a share of its time that has to cover at least the
rounding of sums of times. Stopped earlier, what is known is that no strategy takes less than the lowest bound
that is left.
"""

from contextlib import suppress
from dataclasses import dataclass, field, replace
from math import inf

import numpy as np

from soaprl.cluster.tables import IntArray
from soaprl.errors import SearchError, StrategyError
from soaprl.graph.files import graph_fingerprint
from soaprl.search.exhaustive.bounds import bounds_within
from soaprl.search.exhaustive.frontier import Frontier, Node
from soaprl.search.exhaustive.scratch import Scratch, make_scratch
from soaprl.search.exhaustive.space import Space, SpaceSettings, canonical_rows, make_space, with_devices
from soaprl.search.exhaustive.state import (
    ExhaustiveState,
    Signature,
    load_exhaustive,
    pack_nodes,
    save_exhaustive,
    unpack_nodes,
)
from soaprl.search.exhaustive.tables import BoundTables, bound_tables, choosing_order
from soaprl.search.exhaustive.trips import Trips, make_trips
from soaprl.search.experts import refusal_prefix
from soaprl.search.proposals import tied_groups
from soaprl.search.task import (
    Best,
    ProgressReport,
    SearchResult,
    SearchTask,
    improved,
    score_within,
    search_result,
)
from soaprl.strategy.baselines import data_parallel, single_device
from soaprl.strategy.strategy import OpConfig, Sharding, Strategy

METHOD = "exhaustive"
ROUNDING = 1e-9
_REPORT_EVERY_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class ExhaustiveSettings:
    """What is searched, and how.

    Attributes:
        space: Which configurations.
        tolerance: By which share of its time the answer may be slower than the optimum; at least 1e-9.
        max_open: How many beginnings wait in order of their bounds; see `Frontier`.
        beam: How many beginnings a first dive for a good strategy keeps; see `_Search._dive`.
        save_every_s: Seconds between writes of the state file.
    """

    space: SpaceSettings = field(default_factory=SpaceSettings)
    tolerance: float = ROUNDING
    max_open: int = 1_000_000
    beam: int = 200
    save_every_s: float = 60.0

    def __post_init__(self) -> None:
        if not ROUNDING <= self.tolerance < 1:
            raise SearchError(f"expected a tolerance from {ROUNDING} to below 1, found {self.tolerance}.")
        if self.max_open < 1:
            raise SearchError(f"expected room for at least 1 open node, found {self.max_open}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What an exhaustive search knows in the end.

    Attributes:
        num_strategies: Strategies in the space, those that differ by exchanges of devices counted each.
        num_expanded: Beginnings that were continued.
        num_bounded: Beginnings and strategies that a bound was computed of.
        num_pruned: Those among them that were dropped.
        num_open: Beginnings that were left.
        lower_bound_s: No strategy of the space takes less.
        proved: Whether nothing was left: the best strategy is optimal within `tolerance`.
        tolerance: See `ExhaustiveSettings`.
    """

    num_strategies: int
    num_expanded: int
    num_bounded: int
    num_pruned: int
    num_open: int
    lower_bound_s: float
    proved: bool
    tolerance: float

    def gap(self, time_s: float) -> float:
        """By which share of `time_s` the optimum may at most be faster."""
        return 1.0 - self.lower_bound_s / time_s if time_s < inf else 1.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ExhaustiveOutcome:
    """The best strategy, and what is proved of it."""

    result: SearchResult
    proof: Proof


@dataclass(frozen=True, slots=True, kw_only=True)
class _Counts:
    """How far a search is; see `Proof`."""

    evaluations: int = 0
    expanded: int = 0
    bounded: int = 0
    pruned: int = 0
    nodes: int = 1


def search_exhaustive(task: SearchTask, settings: ExhaustiveSettings | None = None) -> SearchResult:
    """The result of `prove_optimum`; the last report's stage says what is proved."""
    return prove_optimum(task, settings).result


def prove_optimum(task: SearchTask, settings: ExhaustiveSettings | None = None) -> ExhaustiveOutcome:
    """Search the whole space; see the module.

    A KeyboardInterrupt or a spent budget ends the search: the state is saved, and the best strategy so far is
    returned with the bound that is proved.

    Raises:
        SearchError: The space is too large to be listed, the task asks for a sharding, or the state file is
            missing or belongs to another search.
        OutputError: The state file cannot be written.
    """
    if task.sharding is not Sharding.NONE:
        raise SearchError(
            f"{refusal_prefix(METHOD)}its lower bounds are of strategies without sharding, and"
            f" {task.sharding.value} is asked for."
        )
    search = _Search(task, settings or ExhaustiveSettings())
    return search.run()


class _Search:
    """One search: the space, the bounds, and what is open."""

    def __init__(self, task: SearchTask, settings: ExhaustiveSettings) -> None:
        problem = task.problem
        self._task, self._settings = task, settings
        self._origin_s = task.clock()
        self._space: Space = make_space(problem.graph, problem.cluster, settings.space)
        self._tables: BoundTables = bound_tables(problem, self._space)
        self._trips: Trips = make_trips(self._tables)
        self._scratch: Scratch = make_scratch(self._tables)
        self._order: IntArray = choosing_order(self._tables, self._space.leaders)
        self._configs: list[OpConfig] = [c for configs in self._space.configs for c in configs]
        self._continuations: dict[tuple[int, int], IntArray] = {}
        self._score = score_within(task.evaluator)
        self._frontier = Frontier(settings.max_open)
        self._at_hand: Node | None = None
        self._counts = _Counts()
        self._best: Best | None = None
        self._initial_time_s = 0.0
        self._report_s = self._save_s = 0.0

    def run(self) -> ExhaustiveOutcome:
        """Search until nothing is open, the budget is spent, or an interruption."""
        interrupted = False
        try:
            if self._task.resume:
                self._resume()
            else:
                self._begin()
            self._save_s = self._elapsed() + self._settings.save_every_s
            while len(self._frontier) and not self._spent():
                self._step()
                self._visit()
        except KeyboardInterrupt:
            if self._best is None:
                raise
            interrupted = True
            if self._at_hand is not None:
                self._frontier.push(self._at_hand)
        proof = self._proof()
        self._save()
        with suppress(KeyboardInterrupt):
            # Everything is done and kept: an interrupt by the listener has nothing left to end.
            self._report(_summary(proof, self._time_s()))
        assert self._best is not None
        result = search_result(
            method=METHOD,
            seed=self._task.seed,
            best=self._best,
            initial_time_s=self._initial_time_s,
            num_evaluations=self._counts.evaluations,
            search_time_s=self._elapsed(),
            interrupted=interrupted,
        )
        return ExhaustiveOutcome(result=result, proof=proof)

    def _elapsed(self) -> float:
        return self._task.clock() - self._origin_s

    def _spent(self) -> bool:
        return self._task.budget.spent(self._counts.evaluations, self._elapsed())

    def _time_s(self) -> float:
        return inf if self._best is None else self._best.time_s

    def _limit_s(self) -> float:
        """What is not below this is not worth looking at."""
        return self._time_s() * (1.0 - self._settings.tolerance)

    def _begin(self) -> None:
        """Simulates known strategies of the space and opens the empty beginning."""
        root = Node(bound_s=0.0, minus_depth=0, number=0, rows=())
        self._frontier.push(root)
        graph, cluster = self._task.problem.graph, self._task.problem.cluster
        known = [single_device(graph, cluster)]
        try:
            known.append(data_parallel(graph, cluster))
        except StrategyError:
            # The batch is smaller than the devices: there is no data parallelism to begin with.
            known = known[:1]
        for strategy in known:
            if self._space.contains(strategy) and not self._spent():
                self._evaluate(strategy)
        self._dive(root)

    def _dive(self, root: Node) -> None:
        """Looks for a good strategy: continues only the `beam` beginnings with the lowest bounds."""
        beam = [root]
        for depth in range(1, len(self._order) + 1):
            found: list[Node] = []
            for node in beam:
                rows, bounds = self._continued(node)
                found += [
                    Node(float(bound), -depth, 0, (*node.rows, int(row)))
                    for row, bound in zip(rows, bounds, strict=True)
                    if bound < self._limit_s()
                ]
            beam = sorted(found)[: self._settings.beam]
        for node in beam:
            if node.bound_s < self._limit_s() and not self._spent():
                self._evaluate(self._strategy(node.rows))
        self._descend()

    def _descend(self) -> None:
        """Changes single operators of the best strategy, or all that share parameters, while that helps."""
        before, graph = inf, self._task.problem.graph
        while self._best is not None and self._time_s() < before:
            before = self._time_s()
            for o, group in enumerate(tied_groups(graph)):
                for operators in dict.fromkeys((self._tied_to(group), self._tied_to((o,)))):
                    for config in self._space.configs[o]:
                        if self._spent():
                            return
                        configs = list(self._best.strategy.configs)
                        for o in operators:
                            configs[o] = config
                        self._evaluate(Strategy(tuple(configs)))

    def _tied_to(self, operators: tuple[int, ...]) -> tuple[int, ...]:
        """All operators that have one configuration with any of these."""
        leaders = self._space.leaders
        return tuple(o for o in range(len(leaders)) if leaders[o] in {leaders[own] for own in operators})

    def _step(self) -> None:
        """Takes the next node; after an interruption it is open again, perhaps beside what it led to."""
        # In this order: a node that is lost would be taken for one that was looked at.
        node = self._at_hand = self._frontier.first()
        self._frontier.pop()
        if node.bound_s >= self._limit_s():
            self._counts = replace(self._counts, pruned=self._counts.pruned + 1)
        elif not self._expand(node):
            self._frontier.push(node)
        self._at_hand = None

    def _expand(self, node: Node) -> bool:
        """Continues a beginning in all ways; false if the budget did not suffice, and nothing was opened."""
        depth = len(node.rows)
        rows, bounds = self._continued(node)
        limit_s = self._limit_s()
        hopeful = np.flatnonzero(bounds < limit_s)
        hopeful = hopeful[np.argsort(bounds[hopeful], kind="stable")]
        pruned = len(rows) - len(hopeful)
        if depth + 1 == len(self._space.configs):
            for place in hopeful.tolist():
                if bounds[place] >= self._limit_s():
                    pruned += 1
                    continue
                if self._spent():
                    return False
                chosen = (*node.rows, int(rows[place]))
                self._evaluate(self._strategy(chosen))
            opened: list[Node] = []
        else:
            # The lowest bound last, which a stack gives back first.
            first = self._counts.nodes
            opened = [
                Node(float(bounds[place]), -depth - 1, first + i, (*node.rows, int(rows[place])))
                for i, place in enumerate(reversed(hopeful.tolist()))
            ]
        for child in opened:
            self._frontier.push(child)
        self._counts = replace(
            self._counts,
            expanded=self._counts.expanded + 1,
            bounded=self._counts.bounded + len(rows),
            pruned=self._counts.pruned + pruned,
            nodes=self._counts.nodes + len(opened),
        )
        return True

    def _continued(self, node: Node) -> tuple[IntArray, "np.ndarray[tuple[int], np.dtype[np.float64]]"]:
        """The configurations of the next operator that keep a beginning canonical, and their bounds."""
        rows = self._next_rows(node)
        bounds = np.zeros(len(rows))
        prefix = np.array(node.rows, np.int64)
        bounds_within(
            self._tables, self._trips, self._scratch, self._order, prefix, rows, self._limit_s(), bounds
        )
        return rows, np.maximum(bounds, node.bound_s)

    def _next_rows(self, node: Node) -> IntArray:
        """The configurations of the next operator that keep a beginning canonical, or that of its leader."""
        o = int(self._order[len(node.rows)])
        begin, leader = self._tables.config_begin, self._space.leaders[o]
        for row, chosen in zip(node.rows, self._order.tolist(), strict=False):
            if self._space.leaders[chosen] == leader:
                return np.array([row - begin[chosen] + begin[o]], np.int64)
        used = 0
        for row in node.rows:
            used = with_devices(used, self._configs[row])
        if (o, used) not in self._continuations:
            own = canonical_rows(self._space.configs[o], self._space.classes, used)
            self._continuations[o, used] = own + begin[o]
        return self._continuations[o, used]

    def _strategy(self, rows: tuple[int, ...]) -> Strategy:
        """The strategy that a whole list of rows stands for."""
        by_operator = dict(zip(self._order.tolist(), rows, strict=True))
        return Strategy(tuple(self._configs[by_operator[o]] for o in range(len(rows))))

    def _evaluate(self, strategy: Strategy) -> None:
        evaluation = self._score(strategy, self._time_s())
        number = self._counts.evaluations + 1
        self._counts = replace(self._counts, evaluations=number)
        if evaluation is None:
            return
        if self._best is None:
            self._initial_time_s = evaluation.iteration_time_s
        elapsed_s = self._elapsed()
        self._best = improved(self._best, strategy, evaluation, number=number, elapsed_s=elapsed_s)

    def _proof(self) -> Proof:
        proved = len(self._frontier) == 0
        lower_bound_s = min(self._limit_s(), self._frontier.bound_s)
        return Proof(
            num_strategies=self._space.num_strategies,
            num_expanded=self._counts.expanded,
            num_bounded=self._counts.bounded,
            num_pruned=self._counts.pruned,
            num_open=len(self._frontier),
            lower_bound_s=lower_bound_s,
            proved=proved,
            tolerance=self._settings.tolerance,
        )

    def _visit(self) -> None:
        """Reports and saves now and then."""
        now = self._elapsed()
        if now >= self._report_s and self._task.progress is not None:
            self._report_s = now + _REPORT_EVERY_S
            lowest = self._frontier.bound_s
            gap = max(0.0, 1.0 - lowest / self._time_s()) if self._time_s() < inf else 1.0
            open_nodes = f"{self._counts.expanded:,} expanded, {len(self._frontier):,} open"
            self._report(f"{open_nodes}, gap {gap:.2%}")
        if now >= self._save_s:
            self._save()
            self._save_s = self._elapsed() + self._settings.save_every_s

    def _report(self, stage: str) -> None:
        if self._task.progress is None:
            return
        assert self._best is not None
        self._task.progress(
            ProgressReport(
                method=METHOD,
                stage=stage,
                num_evaluations=self._counts.evaluations,
                elapsed_s=self._elapsed(),
                best_time_s=self._best.time_s,
                current_time_s=self._best.evaluation.iteration_time_s,
                num_accepted=0,
            )
        )

    def _signature(self) -> Signature:
        problem, space = self._task.problem, self._settings.space
        return {
            "graph": graph_fingerprint(problem.graph),
            "cluster": problem.cluster.fingerprint,
            "cost": problem.cost.name,
            "options": str(problem.options),
            "degrees": space.degrees,
            "placements": space.placements,
            "reductions": space.reductions,
            "tied": space.tied,
            "tolerance": self._settings.tolerance,
        }

    def _save(self) -> None:
        if self._task.state_path is None or self._best is None:
            return
        counts = self._counts
        state = ExhaustiveState(
            signature=self._signature(),
            elapsed_s=self._elapsed(),
            num_evaluations=counts.evaluations,
            num_expanded=counts.expanded,
            num_bounded=counts.bounded,
            num_pruned=counts.pruned,
            next_number=counts.nodes,
            initial_time_s=self._initial_time_s,
            best=[(config.degrees, config.devices) for config in self._best.strategy.configs],
            history=self._best.history,
            nodes=pack_nodes(self._frontier.nodes(), len(self._space.configs)),
        )
        save_exhaustive(self._task.state_path, state)

    def _resume(self) -> None:
        if self._task.state_path is None:
            raise SearchError("to go on from a state, name its file.")
        state = load_exhaustive(self._task.state_path, self._signature())
        self._origin_s -= state.elapsed_s
        self._counts = _Counts(
            evaluations=state.num_evaluations,
            expanded=state.num_expanded,
            bounded=state.num_bounded,
            pruned=state.num_pruned,
            nodes=state.next_number,
        )
        self._initial_time_s = state.initial_time_s
        strategy = Strategy(tuple(OpConfig(degrees, devices) for degrees, devices in state.best))
        for node in unpack_nodes(state.nodes, len(self._space.configs)):
            self._frontier.push(node)
        # Simulated again: this also shows that the model, the cluster and the costs are still the same. Last:
        # what is interrupted before it knows a strategy does not write over its state.
        self._best = Best(
            strategy=strategy, evaluation=self._task.evaluator.evaluate(strategy), history=state.history
        )


def _summary(proof: Proof, time_s: float) -> str:
    """One line for people."""
    if not proof.proved:
        return f"not proved: the optimum may be {proof.gap(time_s):.2%} faster, {proof.num_open:,} open"
    if proof.tolerance > ROUNDING:
        return f"proved optimal within {proof.tolerance:.2%} of {proof.num_strategies:.2e} strategies"
    return f"proved optimal of {proof.num_strategies:.2e} strategies"
