"""The compiled simulator against a slow one that was written from the specification."""

import random
from dataclasses import replace

import numpy as np
import pytest

from soaprl.simulator.evaluator import Simulator
from soaprl.simulator.result import SimulationResult, simulate
from tests.simulator.random_problems import (
    random_config,
    random_problem,
    random_sharding,
    random_strategy,
)
from tests.simulator.reference import Reference

KINDS = {"f": 0, "t": 1, "b": 2, "g": 3, "u": 5, "v": 6, "w": 7}


def kind_of(key: tuple[object, ...]) -> int:
    if key[0] == "s":
        return 6 if key[1] == -1 or key[2] == 1 else 4
    return KINDS[str(key[0])]


def assert_same(result: SimulationResult, oracle: Reference) -> None:
    tasks = result.tasks
    assert result.iteration_time_s == oracle.time
    assert tasks.kind.tolist() == [kind_of(t.key) for t in oracle.order]
    assert tasks.ready_s.tolist() == [t.ready for t in oracle.order]
    assert tasks.start_s.tolist() == [t.start for t in oracle.order]
    assert tasks.finish_s.tolist() == [t.finish for t in oracle.order]
    assert tasks.num_bytes.tolist() == [t.num_bytes for t in oracle.order]
    moved = [result.activation_bytes, result.gradient_bytes, result.synchronization_bytes]
    assert moved == oracle.moved
    assert result.memory.peak_bytes.tolist() == oracle.peaks
    capacity = [oracle.cluster.device_types[d.type].memory_bytes for d in oracle.cluster.devices]
    assert result.feasible == all(p <= c for p, c in zip(oracle.peaks, capacity, strict=True))


@pytest.mark.parametrize("seed", range(60))
def test_random_strategies_have_exactly_the_trace_of_the_reference(seed: int) -> None:
    rng = random.Random(seed)
    problem = random_problem(rng, num_operators=rng.randint(1, 7))
    simulator = Simulator(problem)
    for _ in range(3):
        strategy = random_strategy(rng, problem.graph, problem.cluster.num_devices)
        strategy = replace(strategy, sharding=random_sharding(rng, problem))
        assert_same(simulate(problem, strategy, simulator=simulator), Reference(problem, strategy))


@pytest.mark.parametrize("seed", range(10))
def test_a_walk_of_single_changes_is_the_same_as_simulating_afresh(seed: int) -> None:
    rng = random.Random(1000 + seed)
    problem = random_problem(rng, num_operators=8)
    num_devices = problem.cluster.num_devices
    walking = Simulator(problem)
    strategy = random_strategy(rng, problem.graph, num_devices)
    strategy = replace(strategy, sharding=random_sharding(rng, problem))
    for _ in range(40):
        operator = rng.randrange(len(problem.graph.operators))
        proposed = strategy.replaced(operator, random_config(rng, problem.graph, operator, num_devices))
        assert walking.evaluate(proposed) == Simulator(problem).evaluate(proposed)
        strategy = proposed if rng.random() < 0.5 else strategy


@pytest.mark.parametrize("seed", range(10))
def test_the_critical_path_explains_the_iteration_time(seed: int) -> None:
    rng = random.Random(2000 + seed)
    problem = random_problem(rng, num_operators=8)
    result = simulate(problem, random_strategy(rng, problem.graph, problem.cluster.num_devices))
    tasks, path = result.tasks, result.critical_path
    assert tasks.start_s[path[0]] == 0.0
    assert tasks.finish_s[path[-1]] == result.iteration_time_s
    assert (np.diff(tasks.start_s[path]) >= 0).all()
    assert len(set(path.tolist())) == len(path)
    # A task starts when the one before it ends, or earlier if it only needed one of its links.
    if not problem.overheads.occupy:
        assert (tasks.start_s[path[1:]] <= tasks.finish_s[path[:-1]]).all()


@pytest.mark.parametrize("seed", range(10))
def test_no_result_is_shorter_than_its_busiest_resource(seed: int) -> None:
    rng = random.Random(3000 + seed)
    problem = random_problem(rng, num_operators=8)
    result = simulate(problem, random_strategy(rng, problem.graph, problem.cluster.num_devices))
    slack = 1 + 1e-12
    assert result.device_busy_s.max() <= result.iteration_time_s * slack
    assert result.link_busy_s.max() <= result.iteration_time_s * slack
