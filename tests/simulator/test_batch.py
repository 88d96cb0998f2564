"""Batches on any number of threads say what one simulator says."""

import random

import pytest

from soaprl.errors import SimulationError, StrategyError
from soaprl.simulator import Evaluation, Problem, Simulator
from soaprl.simulator.batch import BatchSimulator, available_cores
from soaprl.strategy.strategy import OpConfig, Strategy
from tests.simulator.random_problems import random_problem, random_strategy


def some(seed: int, *, count: int) -> tuple[Problem, list[Strategy]]:
    """A random problem, and random strategies of it."""
    rng = random.Random(seed)
    problem = random_problem(rng, num_operators=8)
    num_devices = problem.cluster.num_devices
    return problem, [random_strategy(rng, problem.graph, num_devices) for _ in range(count)]


def one_by_one(problem: Problem, strategies: list[Strategy]) -> list[Evaluation]:
    """Each in a simulator that has seen nothing else."""
    return [Simulator(problem).evaluate(strategy) for strategy in strategies]


@pytest.mark.parametrize("seed", range(5))
def test_results_are_those_of_fresh_simulators_in_order_and_bits(seed: int) -> None:
    problem, strategies = some(seed, count=40)
    expected = one_by_one(problem, strategies)
    for num_threads in (1, 2, 3, 7):
        batch = BatchSimulator(problem, num_threads)
        # The second time every simulator is somewhere else.
        assert batch.evaluate(strategies) == expected
        assert batch.evaluate(strategies[::-1]) == expected[::-1]


def test_repeated_strategies_are_scored_where_they_stand() -> None:
    problem, (first, second) = some(11, count=2)
    batch = [first, second, first, first, second]
    a, b = one_by_one(problem, [first, second])
    assert BatchSimulator(problem, 2).evaluate(batch) == [a, b, a, a, b]


@pytest.mark.parametrize("count", [0, 1, 2, 3, 15, 16, 17])
def test_batches_of_every_size_are_complete(count: int) -> None:
    problem, strategies = some(3, count=count)
    assert BatchSimulator(problem, 4).evaluate(strategies) == one_by_one(problem, strategies)


@pytest.mark.parametrize("num_threads", [1, 2, 5])
@pytest.mark.parametrize("wrong", [(0,), (19,), (7, 12), (18, 4, 11)])
def test_the_first_strategy_that_does_not_fit_is_named(num_threads: int, wrong: tuple[int, ...]) -> None:
    problem, strategies = some(5, count=20)
    for index in wrong:
        config = strategies[index].configs[0]
        devices = (problem.cluster.num_devices,) * config.num_tasks
        strategies[index] = strategies[index].replaced(0, OpConfig(config.degrees, devices))
    batch = BatchSimulator(problem, num_threads)
    with pytest.raises(StrategyError, match=rf"^strategy {min(wrong)} of 20: .*device"):
        batch.evaluate(strategies)


def test_a_batch_goes_on_as_before_after_an_error() -> None:
    problem, strategies = some(6, count=12)
    batch = BatchSimulator(problem, 2)
    with pytest.raises(StrategyError, match="strategy 3 of 4"):
        batch.evaluate([*strategies[:3], Strategy(strategies[0].configs[:-1])])
    assert batch.evaluate(strategies) == one_by_one(problem, strategies)


def test_without_a_number_there_is_a_thread_for_each_core() -> None:
    problem, _ = some(1, count=1)
    assert len(BatchSimulator(problem).simulators) == available_cores() >= 1


def test_no_threads_are_an_error() -> None:
    problem, _ = some(1, count=1)
    with pytest.raises(SimulationError, match="1 or more threads, found 0"):
        BatchSimulator(problem, 0)
