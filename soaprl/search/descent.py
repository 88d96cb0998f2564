"""Greedy coordinate descent: all candidates of one operator at a time, until no single change improves.

The check of local optimality that the SOAP paper makes (Jia, Zaharia, Aiken, MLSys 2019, section on
optimality), as a search. A *coordinate* is one operator, or a whole group of operators that share parameters
(`soaprl.search.proposals.tied_groups`), which then all take the same configuration. Its candidates, listed by
`candidates`:

    degrees    every even vector: each degree divides its factor's extent, the number of tasks k divides the
               number of devices
    devices    consecutive from a multiple of k; one of each node, or equally spaced over the cluster
               (`soaprl.strategy.candidates.device_groups`, without k tasks on a single device)

This is the finite part of what the mixture of `soaprl.search.proposals` draws: no uneven degrees, no blocks
across their alignment, no arbitrary devices. All candidates of a coordinate are simulated and the best one is
taken if it is strictly better. Sweeps over the coordinates, in an order that the seed decides, end when none
of them changed since it was last looked at: the strategy is then a local optimum of this neighbourhood.

It descends from the best of data parallelism and the experts, or from a given strategy. As a candidate must
beat the best so far of its coordinate, the simulator may stop as soon as it certainly does not.
"""

from dataclasses import dataclass, replace
from math import prod
from typing import Any, NamedTuple

import numpy as np

from soaprl.cluster.cluster import Cluster
from soaprl.graph.operators import Operator, OperatorGraph
from soaprl.search.experts import starts_for
from soaprl.search.proposals import even_rows, tied_groups
from soaprl.search.state import Signature
from soaprl.search.stepping import Replay, Scored, Trial, View, packed, run_procedure
from soaprl.search.task import Evaluation, SearchResult, SearchTask, rank
from soaprl.strategy.candidates import DegreeLimits, device_groups, legal_degrees
from soaprl.strategy.strategy import OpConfig, Strategy

METHOD = "coordinate-descent"


def coordinate_descent(task: SearchTask, start: Strategy | None = None) -> SearchResult:
    """Descend from `start`, or from the best of data parallelism and the experts; see the module.

    Ends before its budget where no single change improves.

    Raises:
        SearchError: The budget has no limit, or the state file is missing or belongs to another search.
        StrategyError: `start` does not fit the graph or the cluster.
        OutputError: The state file cannot be written.
    """
    return run_procedure(task, Descent(task, start))


def candidates(operator: Operator, cluster: Cluster) -> tuple[OpConfig, ...]:
    """The configurations that are tried for `operator`: even degrees, structured devices; see the module."""
    n = cluster.num_devices
    vectors = [tuple(row) for row in legal_degrees(operator, DegreeLimits(max_tasks=n)).tolist()]
    even = even_rows(operator.extents, vectors, n)
    return tuple(
        OpConfig(degrees, group.devices)
        for degrees, keep in zip(vectors, even, strict=True)
        if keep
        for group in device_groups(prod(degrees), cluster)
        if group.kind != "single" or prod(degrees) == 1
    )


def coordinates(graph: OperatorGraph, seed: int) -> tuple[tuple[int, ...], ...]:
    """Operators alone, and groups of operators that share parameters, in the seed's order."""
    groups = {group for group in tied_groups(graph) if len(group) > 1}
    known = [(index,) for index in range(len(graph.operators))] + sorted(groups)
    order = np.random.default_rng(seed).permutation(len(known))
    return tuple(known[index] for index in order)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a descent stands: before a candidate that differs from the current strategy, or at its end.

    Attributes:
        num_starts: Starts evaluated.
        current: The current strategy; None before the first evaluation.
        visits: Coordinates looked at to their end.
        candidate: The next candidate of the coordinate at hand.
        found: The best strategy among the candidates before, if better than the current one.
        unchanged: Coordinates in a row that brought no change.
        num_changes: Changes so far.
    """

    num_starts: int = 0
    current: Scored | None = None
    visits: int = 0
    candidate: int = 0
    found: Scored | None = None
    unchanged: int = 0
    num_changes: int = 0


class _Coordinate(NamedTuple):
    operators: tuple[int, ...]
    configs: tuple[OpConfig, ...]


class Descent:
    """The procedure; see the module."""

    method = METHOD

    def __init__(self, task: SearchTask, start: Strategy | None) -> None:
        graph, cluster = task.part.graph, task.problem.cluster
        self._starts = starts_for(task, start)
        shared: dict[object, tuple[OpConfig, ...]] = {}
        for operator in graph.operators:
            if operator.factors not in shared:
                shared[operator.factors] = candidates(operator, cluster)
        self._coordinates = tuple(
            _Coordinate(operators, shared[graph.operators[operators[0]].factors])
            for operators in coordinates(graph, task.seed)
        )

    @property
    def settings(self) -> Signature:
        """The starts' names."""
        return {"starts": ", ".join(name for name, _ in self._starts)}

    def begin(self) -> Place:
        """Before the starts."""
        return Place()

    def propose(self, state: Place) -> Trial | None:
        """The next start, or the next candidate; None at a local optimum."""
        if state.num_starts < len(self._starts):
            return Trial(self._starts[state.num_starts][1])
        assert state.current is not None
        if state.unchanged == len(self._coordinates):
            return None
        best = state.found or state.current
        return Trial(self._candidate(state, state.current.strategy), best.limit_s)

    def advance(self, state: Place, trial: Trial, evaluation: Evaluation | None) -> Place:
        """After the trial; at the end of a coordinate what was found there becomes the current strategy."""
        tried = None if evaluation is None else Scored(trial.strategy, evaluation)
        if state.num_starts < len(self._starts):
            assert tried is not None, "starts are evaluated without a limit"
            better = state.current is None or rank(tried.evaluation) < rank(state.current.evaluation)
            current = tried if better else state.current
            return self._settled(Place(num_starts=state.num_starts + 1, current=current))
        best = state.found or state.current
        assert best is not None
        found = state.found
        if tried is not None and rank(tried.evaluation) < rank(best.evaluation):
            found = tried
        return self._settled(replace(state, candidate=state.candidate + 1, found=found))

    def view(self, state: Place) -> View:
        """The sweep and the number of changes."""
        if state.current is None:
            return View("starts", 0.0, 0)
        sweep = 1 + state.visits // len(self._coordinates)
        stage = f"sweep {sweep}, {state.num_changes} changes"
        return View(stage, state.current.evaluation.iteration_time_s, state.num_changes)

    def pack(self, state: Place) -> dict[str, Any]:
        """Numbers as they are, strategies as the state file has them."""
        return {
            "num_starts": state.num_starts,
            "current": None if state.current is None else packed(state.current),
            "visits": state.visits,
            "candidate": state.candidate,
            "found": None if state.found is None else packed(state.found),
            "unchanged": state.unchanged,
            "num_changes": state.num_changes,
        }

    def unpack(self, content: dict[str, Any], replay: Replay) -> Place:
        """The place that was packed."""
        return Place(
            num_starts=int(content["num_starts"]),
            current=None if content["current"] is None else replay(content["current"]),
            visits=int(content["visits"]),
            candidate=int(content["candidate"]),
            found=None if content["found"] is None else replay(content["found"]),
            unchanged=int(content["unchanged"]),
            num_changes=int(content["num_changes"]),
        )

    def _at_hand(self, state: Place) -> _Coordinate:
        return self._coordinates[state.visits % len(self._coordinates)]

    def _candidate(self, state: Place, current: Strategy) -> Strategy:
        """The strategy with the candidate at hand."""
        operators, configs = self._at_hand(state)
        if len(operators) == 1:
            return current.replaced(operators[0], configs[state.candidate])
        changed = list(current.configs)
        for operator in operators:
            changed[operator] = configs[state.candidate]
        return replace(current, configs=tuple(changed))

    def _settled(self, state: Place) -> Place:
        """`state` moved on to the next candidate that differs from the current strategy, or to the end."""
        if state.num_starts < len(self._starts):
            return state
        assert state.current is not None
        while state.unchanged < len(self._coordinates):
            operators, configs = self._at_hand(state)
            current, candidate = state.current.strategy, state.candidate
            while candidate < len(configs) and all(
                current.configs[operator] == configs[candidate] for operator in operators
            ):
                candidate += 1
            if candidate < len(configs):
                return replace(state, candidate=candidate)
            changed = state.found is not None
            state = Place(
                num_starts=state.num_starts,
                current=state.found or state.current,
                visits=state.visits + 1,
                unchanged=0 if changed else state.unchanged + 1,
                num_changes=state.num_changes + changed,
            )
            assert state.current is not None
        return state
