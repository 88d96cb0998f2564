"""Micro-batches in the simulator: the problem with a copy of every operator for each of them.

What a strategy with m micro-batches takes is what its *expanded* strategy takes of the expanded problem:
every operator m times (`soaprl.graph.repeat`), each copy with the operator's configuration. Parameters are
shared, so their memory counts once, and gradients are synchronized after the last micro-batch. Where
devices keep pieces of gradients (``zero2``, ``zero3``), these are reduced and scattered after each
micro-batch instead, and added up in pieces; under ``zero3`` each micro-batch gathers the parameters for its
forward and for its backward pass, as PyTorch's FSDP does. Synchronization groups are then of one
micro-batch. With a schedule every device does its tasks in the order of the program
(`soaprl.strategy.schedules`), one after the other, whichever is ready first, and its update after all of
them, as an optimizer's step comes after the last backward pass; transfers and collectives stay first in,
first out.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeAlias

import numpy as np

from soaprl.graph.operators import OperatorGraph
from soaprl.graph.repeat import repeated
from soaprl.simulator.order import ProgramOrder
from soaprl.simulator.problem import Problem
from soaprl.strategy.schedules import Schedule, program_steps
from soaprl.strategy.strategy import OpConfig, Strategy

# What of a strategy decides the order of its passes.
OrderKey: TypeAlias = tuple[Schedule, tuple[int, ...]]


def expanded_problem(problem: Problem, num_micro_batches: int) -> Problem:
    """`problem` with a copy of every operator for each micro-batch.

    Raises:
        GraphError: The batch cannot be cut so.
    """
    return replace(problem, graph=repeated(problem.graph, num_micro_batches).graph)


def expanded_strategy(strategy: Strategy) -> Strategy:
    """The strategy of the expanded problem: every copy has its operator's configuration."""
    if strategy.is_whole:
        return strategy
    return Strategy(strategy.configs * strategy.micro_batches, strategy.sharding)


def expanded_changes(
    changes: Mapping[int, OpConfig], num_operators: int, num_micro_batches: int
) -> dict[int, OpConfig]:
    """Configurations of operators as configurations of all their copies."""
    return {
        copy * num_operators + operator: config
        for copy in range(num_micro_batches)
        for operator, config in changes.items()
    }


def order_key(strategy: Strategy) -> OrderKey:
    """What decides the order of passes, apart from the graph and the number of micro-batches."""
    return strategy.schedule, strategy.stages


def program_order(graph: OperatorGraph, key: OrderKey, num_micro_batches: int) -> ProgramOrder | None:
    """The order of passes of an expanded graph; None for none.

    Args:
        graph: The expanded graph.
        key: Of the strategy.
        num_micro_batches: Of how many copies the graph consists.
    """
    schedule, stages = key
    if schedule is Schedule.NONE:
        return None
    n = len(graph.operators)
    stages = stages or (0,) * (n // num_micro_batches)
    forward, backward = program_steps(schedule, stages, num_micro_batches)
    passes = np.argsort(np.array(forward + backward, np.int64))
    trained = np.array([operator.has_backward for operator in graph.operators])
    exists = np.concatenate((np.ones(n, np.bool_), trained))
    return ProgramOrder(
        forward_step=np.array(forward, np.int64),
        backward_step=np.array(backward, np.int64),
        turns=passes[exists[passes]].astype(np.int64),
        stages=np.array(stages * num_micro_batches, np.int64),
    )
