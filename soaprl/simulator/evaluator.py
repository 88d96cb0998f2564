"""The simulator: scores strategies of one problem."""

from dataclasses import dataclass
from math import inf

import numpy as np

from soaprl.cluster.tables import IntArray
from soaprl.simulator.book import Patterns
from soaprl.simulator.engine import Candidates, Engine, Evaluation
from soaprl.simulator.engines import engine_for
from soaprl.simulator.micro_batches import OrderKey, expanded_strategy, order_key, program_order
from soaprl.simulator.problem import Problem
from soaprl.simulator.trial import Scale
from soaprl.strategy.schedules import Schedule
from soaprl.strategy.strategy import Sharding, Strategy
from soaprl.strategy.validation import check_strategy


@dataclass(frozen=True, slots=True, kw_only=True)
class _Expanded:
    """An engine of an expanded problem, and what it is for."""

    key: tuple[Sharding, int, bool]
    order: OrderKey
    engine: Engine


class Simulator:
    """Simulates strategies of one problem.

    Keeps what it has computed about degrees it has seen, and the strategy it has seen last, of which only the
    operators that differ are changed. Not for several threads at once: give each thread its own (compiled
    code runs without the interpreter lock).

    Args:
        problem: What the strategies are for.
        patterns: Of strategies that are not sharded, to share with other simulators of the same thread (see
            `soaprl.simulator.book.Patterns`); None: its own.

    Attributes:
        problem: What the strategies are for.
        engine: The strategy at hand and its task graph; one for each sharding is kept, and the
            last one for micro-batches.
    """

    def __init__(self, problem: Problem, *, patterns: Patterns | None = None) -> None:
        self.problem = problem
        self.engine = Engine(problem, patterns=patterns)
        self._engines = {Sharding.NONE: self.engine}
        self._expanded: _Expanded | None = None
        self._pattern_numbers: dict[Engine, tuple[object, IntArray]] = {}

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
        engine = self._engine_of(strategy)
        return engine.move_to(expanded_strategy(strategy), limit_s)

    def scan(
        self, strategy: Strategy, candidates: Candidates, first: int, end: int, scale: Scale
    ) -> tuple[int, Evaluation | None]:
        """Simulates changes of `strategy`, one after the other, until one is within its limit.

        The same as calling `evaluate_within` for each, but that nothing returns to Python in between.

        Args:
            strategy: What the candidates are changes of.
            candidates: Changes.
            first: The first candidate to look at.
            end: One past the last.
            scale: What the limits depend on.

        Returns:
            The number of that candidate, and what came of it; `end` and None if there is none.

        Raises:
            StrategyError: The strategy does not fit the graph or the cluster.
        """
        return self._engine_of(strategy).scan(expanded_strategy(strategy), candidates, first, end, scale)

    def pattern_numbers(self, owner: object, strategy: Strategy, count: int) -> IntArray:
        """What `Rows.patterns` of an owner of degree vectors is to be: the same array whenever it asks.

        Args:
            owner: Whose degree vectors they are; compared by identity.
            strategy: What the candidates will be changes of.
            count: How many they are.
        """
        engine = self._engine_of(strategy)
        known_owner, numbers = self._pattern_numbers.get(engine, (None, np.zeros(0, np.int64)))
        if known_owner is not owner:
            numbers = np.full(count, -1, np.int64)
            self._pattern_numbers[engine] = owner, numbers
        return numbers

    def _engine_of(self, strategy: Strategy) -> Engine:
        """The engine for the strategy's sharding and micro-batches, which becomes the one at hand."""
        if not strategy.is_whole:
            self.engine = self._engine_of_micro_batches(strategy)
            return self.engine
        if self.engine.problem is not self.problem:
            self.engine = self._engines[Sharding.NONE]
        if strategy.sharding is not self.engine.sharding:
            if strategy.sharding not in self._engines:
                self._engines[strategy.sharding] = Engine(self.problem, strategy.sharding)
            self.engine = self._engines[strategy.sharding]
        return self.engine

    def _engine_of_micro_batches(self, strategy: Strategy) -> Engine:
        """The engine for the strategy's micro-batches, of which only the last one is kept: it is large."""
        number, order_of = strategy.micro_batches, order_key(strategy)
        key = (strategy.sharding, number, strategy.schedule is Schedule.NONE)
        if self._expanded is not None and self._expanded.key == key:
            engine = self._expanded.engine
            # Of a strategy in the order at hand the engine checks what it enters.
            if self._expanded.order == order_of and len(strategy.configs) * number == len(engine.configs):
                return engine
        check_strategy(self.problem.graph, self.problem.cluster.num_devices, strategy)
        same = self._expanded is not None and self._expanded.key == key
        if self._expanded is not None and same and not strategy.sharding.synchronizes_each_pass:
            engine = self._expanded.engine
            order = program_order(engine.problem.graph, order_of, number)
            assert order is not None, "engines with and without an order have different keys"
            engine.reorder(order)
        else:
            # The old one goes before the new one comes.
            if self._expanded is not None:
                self._pattern_numbers.pop(self._expanded.engine, None)
            self._expanded, self.engine = None, self._engines[Sharding.NONE]
            engine = engine_for(self.problem, strategy)
        self._expanded = _Expanded(key=key, order=order_of, engine=engine)
        return engine
