"""The engine that a strategy needs."""

from soaprl.simulator.book import Patterns
from soaprl.simulator.engine import Engine
from soaprl.simulator.micro_batches import expanded_problem, order_key, program_order
from soaprl.simulator.problem import Problem
from soaprl.strategy.strategy import Strategy
from soaprl.strategy.validation import check_strategy


def engine_for(problem: Problem, strategy: Strategy, patterns: Patterns | None = None) -> Engine:
    """An engine for strategies with the sharding, the micro-batches and the order of passes of this one.

    Args:
        problem: What the strategies are for.
        strategy: One of them.
        patterns: To share with other engines, if they are of the same problem and sharding, and the
            strategy has no micro-batches; otherwise the engine has its own.

    Raises:
        StrategyError: The strategy has micro-batches or stages that are none of the graph.
        GraphError: The batch cannot be cut into these micro-batches.
    """
    if strategy.is_whole:
        shared = patterns is not None and patterns.key == (problem, strategy.sharding, 1)
        return Engine(problem, strategy.sharding, patterns=patterns if shared else None)
    check_strategy(problem.graph, problem.cluster.num_devices, strategy)
    number = strategy.micro_batches
    expanded = expanded_problem(problem, number)
    order = program_order(expanded.graph, order_key(strategy), number)
    return Engine(expanded, strategy.sharding, num_copies=number, order=order)
