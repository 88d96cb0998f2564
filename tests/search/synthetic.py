"""Strategies with made-up costs that can be enumerated, for tests of searches."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise, product
from math import prod
from pathlib import Path

import numpy as np

from soaprl.graph.operators import OperatorGraph
from soaprl.search.task import Budget, Evaluator, Progress, SearchTask
from soaprl.simulator.problem import Problem
from soaprl.strategy.candidates import DegreeLimits, legal_degrees
from soaprl.strategy.strategy import OpConfig, Strategy
from tests.toys import TableCost, ToyBuilder, uniform_cluster


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """An evaluation with everything a search looks at."""

    iteration_time_s: float
    peak_memory_bytes: int = 1
    feasible: bool = True
    communication_bytes: int = 0


@dataclass(slots=True, kw_only=True)
class Synthetic:
    """Scores a strategy by a table of random numbers: one for each configuration and each consecutive pair.

    Attributes:
        seed: Of the tables.
        pair: Weight of the pairs.
        calls: Strategies scored so far.
    """

    seed: int = 0
    pair: float = 0.5
    calls: int = 0
    tables: dict[object, float] = field(default_factory=dict)

    def evaluate(self, strategy: Strategy) -> Score:
        self.calls += 1
        return Score(iteration_time_s=self.cost(strategy))

    def cost(self, strategy: Strategy) -> float:
        configs = strategy.configs
        single = sum(self._number((index, config)) for index, config in enumerate(configs))
        pairs = pairwise(configs)
        return 1.0 + single + self.pair * sum(self._number((i, *two)) for i, two in enumerate(pairs))

    def _number(self, key: tuple[int | OpConfig, ...]) -> float:
        if key not in self.tables:
            flat = [self.seed, len(key)]
            for item in key:
                flat += [*item.degrees, 97, *item.devices] if isinstance(item, OpConfig) else [item]
            self.tables[key] = float(np.random.default_rng(flat).random())
        return self.tables[key]


@dataclass(slots=True)
class Steps:
    """A clock that moves by `step` seconds whenever it is read."""

    step: float = 1e-6
    now: float = 0.0

    def __call__(self) -> float:
        self.now += self.step
        return self.now


def pointwise_chain(*, num_operators: int = 3, sample: int = 2, channel: int = 1) -> OperatorGraph:
    """Operators without parameters in a row."""
    builder = ToyBuilder(sample=sample)
    x = builder.input("x", channel=channel)
    for index in range(num_operators):
        x = builder.add(f"op{index}", x)
    return builder.build("pointwise")


def toy_problem(graph: OperatorGraph, num_devices: int) -> Problem:
    return Problem(graph=graph, cluster=uniform_cluster(num_devices), cost=TableCost())


def toy_task(
    problem: Problem,
    evaluator: Evaluator,
    *,
    evaluations: int | None = 100,
    seconds: float | None = None,
    clock: Callable[[], float] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    state_path: Path | None = None,
    resume: bool = False,
) -> SearchTask:
    return SearchTask(
        problem=problem,
        evaluator=evaluator,
        budget=Budget(evaluations=evaluations, seconds=seconds),
        clock=clock or Steps(),
        seed=seed,
        progress=progress,
        state_path=state_path,
        resume=resume,
    )


def all_configs(graph: OperatorGraph, operator: int, num_devices: int) -> Iterator[OpConfig]:
    """Every legal configuration with at most `num_devices` tasks."""
    limits = DegreeLimits(max_tasks=num_devices)
    for row in legal_degrees(graph.operators[operator], limits).tolist():
        for devices in product(range(num_devices), repeat=prod(row)):
            yield OpConfig(tuple(row), devices)


def all_strategies(graph: OperatorGraph, num_devices: int) -> Iterator[Strategy]:
    """Every legal strategy."""
    choices = [list(all_configs(graph, index, num_devices)) for index in range(len(graph.operators))]
    return (Strategy(configs) for configs in product(*choices))
