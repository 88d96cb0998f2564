"""The simulator: scores strategies of one problem."""

from math import inf

from soaprl.simulator.engine import Engine, Evaluation
from soaprl.simulator.problem import Problem
from soaprl.strategy.strategy import Strategy
from soaprl.strategy.validation import check_strategy


class Simulator:
    """Simulates strategies of one problem.

    Keeps what it has computed about degrees it has seen, and the strategy it has seen last, of which only the
    operators that differ are changed. Not for several threads at once: give each thread its own (compiled
    code runs without the interpreter lock).

    Attributes:
        problem: What the strategies are for.
        engine: The strategy at hand and its task graph.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.engine = Engine(problem)

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
        engine = self.engine
        before, after = engine.configs, strategy.configs
        if len(after) != len(before):
            check_strategy(self.problem.graph, self.problem.cluster.num_devices, strategy)
        changed = [o for o in range(len(after)) if after[o] is not before[o] and after[o] != before[o]]
        engine.stage((o, after[o]) for o in changed)
        evaluation = engine.propose(limit_s)
        if evaluation is not None:
            for o in changed:
                before[o] = after[o]
        return evaluation
