"""Delta simulation: what a strategy with a few changed operators would take, without starting afresh."""

from collections.abc import Mapping
from dataclasses import replace
from math import inf

from soaprl.errors import SimulationError
from soaprl.simulator.book import Patterns
from soaprl.simulator.engine import Evaluation
from soaprl.simulator.engines import engine_for
from soaprl.simulator.micro_batches import expanded_changes
from soaprl.simulator.problem import Problem
from soaprl.simulator.result import SimulationResult, describe
from soaprl.strategy.strategy import OpConfig, Strategy
from soaprl.strategy.validation import check_strategy

# Keeping a schedule costs as much as making one: it pays off where the strategy stays for a while.
_KEEP_AFTER = 1


class DeltaSimulator:
    """Holds a current strategy and simulates changes of it.

    A change is proposed, then committed or rolled back:

        simulator = DeltaSimulator(problem, strategy)
        evaluation = simulator.propose(operator, config)
        if evaluation.iteration_time_s < simulator.evaluation.iteration_time_s:
            simulator.commit()
        else:
            simulator.rollback()

    Only the blocks of the task graph that a change touches are rewritten, and only what does not repeat the
    schedule of the current strategy, earlier or later, is scheduled. Every result is what `simulate` says
    about the same strategy, to the last bit. Not for several threads at once.

    Args:
        problem: What the strategies are for.
        strategy: The first current strategy.
        patterns: To share with other simulators, see `soaprl.simulator.book.Patterns`; None: its own.

    Raises:
        StrategyError: The strategy does not fit the graph or the cluster.
    """

    def __init__(self, problem: Problem, strategy: Strategy, *, patterns: Patterns | None = None) -> None:
        check_strategy(problem.graph, problem.cluster.num_devices, strategy)
        self.problem = problem
        self._first = strategy
        self._engine = engine_for(problem, strategy, patterns)
        self._stage(dict(enumerate(strategy.configs)))
        evaluation = self._engine.propose()
        assert evaluation is not None, "without a limit every strategy is simulated to its end"
        self._engine.keep()
        self._evaluation: Evaluation = evaluation
        self._configs = list(strategy.configs)
        self._proposed: Evaluation | None = None
        self._changes: dict[int, OpConfig] = {}
        # Proposals refused since the last one that was committed.
        self._refused = 0

    @property
    def strategy(self) -> Strategy:
        """The current strategy."""
        return replace(self._first, configs=tuple(self._configs))

    @property
    def evaluation(self) -> Evaluation:
        """What the simulator said about the current strategy."""
        return self._evaluation

    def propose(self, operator: int, config: OpConfig) -> Evaluation:
        """Simulates the current strategy with another configuration of one operator.

        Raises:
            StrategyError: The configuration does not fit the operator or the cluster.
            SimulationError: The last proposal was neither committed nor rolled back.
        """
        return self.propose_all({operator: config})

    def propose_all(self, changes: Mapping[int, OpConfig]) -> Evaluation:
        """Simulates the current strategy with other configurations of some operators."""
        evaluation = self.propose_within(changes, inf)
        assert evaluation is not None, "without a limit every strategy is simulated to its end"
        return evaluation

    def propose_within(self, changes: Mapping[int, OpConfig], limit_s: float) -> Evaluation | None:
        """Like `propose_all`, unless the iteration certainly takes longer than `limit_s`.

        Returns:
            None if the iteration takes longer than `limit_s`; then there is nothing to commit or roll back.
        """
        if self._proposed is not None:
            raise SimulationError(
                "expected no open proposal, found one. Call `commit` or `rollback` before the next proposal."
            )
        if self._refused >= _KEEP_AFTER and not self._engine.keeps_schedule:
            self._engine.keep_schedule()
        self._stage(changes)
        self._proposed = self._engine.propose(limit_s)
        self._changes = dict(changes)
        self._refused += self._proposed is None
        return self._proposed

    def commit(self) -> None:
        """Makes the proposed strategy the current one."""
        self._evaluation = self._open_proposal()
        for operator, config in self._changes.items():
            self._configs[operator] = config
        self._proposed = None
        self._refused = 0
        self._engine.keep()

    def rollback(self) -> None:
        """Forgets the proposed strategy."""
        self._open_proposal()
        self._engine.take_back()
        self._proposed = None
        self._refused += 1

    def result(self) -> SimulationResult:
        """Everything about the proposed strategy, or about the current one if nothing is proposed."""
        evaluation, strategy = self._evaluation, self.strategy
        if self._proposed is not None:
            configs = [self._changes.get(o, config) for o, config in enumerate(self._configs)]
            evaluation, strategy = self._proposed, replace(self._first, configs=tuple(configs))
        self._engine.refresh()
        return describe(self.problem, self._engine, strategy, evaluation)

    def _stage(self, changes: Mapping[int, OpConfig]) -> None:
        """Stages a change of operators, in every micro-batch."""
        num_operators, copies = len(self.problem.graph.operators), self._engine.num_copies
        self._engine.stage(expanded_changes(changes, num_operators, copies).items())

    def _open_proposal(self) -> Evaluation:
        if self._proposed is None:
            raise SimulationError(
                "expected an open proposal, found none. Call `propose` first (a proposal that takes longer"
                " than its limit is closed already)."
            )
        return self._proposed
