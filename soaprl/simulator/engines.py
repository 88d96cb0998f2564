"""The engine that a strategy needs."""

from soaprl.simulator.engine import Engine
from soaprl.simulator.micro_batches import expanded_problem, order_key, program_order
from soaprl.simulator.problem import Problem
from soaprl.strategy.strategy import Strategy
from soaprl.strategy.validation import check_strategy


def engine_for(problem: Problem, strategy: Strategy) -> Engine:
    """An engine for strategies with the sharding, the micro-batches and the order of passes of this one.

    Raises:
        StrategyError: The strategy has micro-batches or stages that are none of the graph.
        GraphError: The batch cannot be cut into these micro-batches.
    """
    if strategy.is_whole:
        return Engine(problem, strategy.sharding)
    check_strategy(problem.graph, problem.cluster.num_devices, strategy)
    number = strategy.micro_batches
    expanded = expanded_problem(problem, number)
    order = program_order(expanded.graph, order_key(strategy), number)
    return Engine(expanded, strategy.sharding, num_copies=number, order=order)
