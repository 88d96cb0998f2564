"""Stopping early: what takes longer than a limit need not be simulated to its end."""

import random
from math import inf, nextafter

import pytest

from soaprl.simulator import Simulator
from soaprl.simulator.problem import Problem
from tests.simulator.random_problems import random_config, random_problem, random_strategy
from tests.toys import TableCost, chain, on_one_device, uniform_cluster


@pytest.mark.parametrize("seed", range(20))
def test_only_what_passes_the_limit_is_cut_and_all_else_is_exact(seed: int) -> None:
    rng = random.Random(3000 + seed)
    problem = random_problem(rng, num_operators=8)
    num_devices = problem.cluster.num_devices
    limited, oracle = Simulator(problem), Simulator(problem)
    strategy = random_strategy(rng, problem.graph, num_devices)
    num_cut = 0
    for _ in range(40):
        operator = rng.randrange(len(problem.graph.operators))
        proposed = strategy.replaced(operator, random_config(rng, problem.graph, operator, num_devices))
        expected = oracle.evaluate(proposed)
        limit_s = expected.iteration_time_s * rng.choice([0.3, 0.9, 1.0, 1.1, inf])
        found = limited.evaluate_within(proposed, limit_s)
        if found is None:
            assert expected.iteration_time_s > limit_s
            num_cut += 1
        else:
            assert found == expected
        strategy = proposed if rng.random() < 0.5 else strategy
    assert num_cut > 0


def test_a_time_equal_to_the_limit_is_never_cut() -> None:
    # One device computes without a pause, so that its load is the iteration, bit for bit or nearly so.
    graph = chain(num_operators=7, sample=4, channel=4)
    problem = Problem(
        graph=graph, cluster=uniform_cluster(2), cost=TableCost(default_forward=0.1, default_backward=0.3)
    )
    strategy = on_one_device(graph)
    time_s = Simulator(problem).evaluate(strategy).iteration_time_s
    for limit_s in (time_s, nextafter(time_s, inf)):
        found = Simulator(problem).evaluate_within(strategy, limit_s)
        assert found is not None
        assert found.iteration_time_s == time_s
    assert Simulator(problem).evaluate_within(strategy, 0.5 * time_s) is None


def test_loads_stay_exact_over_a_long_walk() -> None:
    rng = random.Random(7)
    problem = random_problem(rng, num_operators=6)
    num_devices = problem.cluster.num_devices
    walking = Simulator(problem)
    strategy = random_strategy(rng, problem.graph, num_devices)
    for _ in range(5000):
        operator = rng.randrange(len(problem.graph.operators))
        strategy = strategy.replaced(operator, random_config(rng, problem.graph, operator, num_devices))
        walking.evaluate(strategy)
    fresh = Simulator(problem)
    fresh.evaluate(strategy)
    assert walking.engine.graph.work.load_s.tolist() == fresh.engine.graph.work.load_s.tolist()
