"""Simulators that share what they have computed say what they say alone."""

import random

import pytest

from soaprl.cluster.presets import cluster_from_name
from soaprl.cost.roofline import RooflineCostModel
from soaprl.errors import SimulationError
from soaprl.simulator import DeltaSimulator, Patterns, Problem, Simulator
from soaprl.strategy.baselines import data_parallel
from soaprl.strategy.strategy import Sharding
from tests.simulator.random_problems import random_config, random_problem, random_strategy
from tests.toys import chain, tied


@pytest.mark.parametrize("seed", range(4))
def test_simulators_that_take_turns_say_what_they_say_alone(seed: int) -> None:
    rng = random.Random(seed)
    problem = random_problem(rng, num_operators=8)
    num_devices, patterns = problem.cluster.num_devices, Patterns(problem)
    starts = [random_strategy(rng, problem.graph, num_devices) for _ in range(3)]
    shared = [DeltaSimulator(problem, start, patterns=patterns) for start in starts]
    alone = [DeltaSimulator(problem, start) for start in starts]
    whole = Simulator(problem, patterns=patterns)
    for _ in range(200):
        number, operator = rng.randrange(3), rng.randrange(len(problem.graph.operators))
        config = random_config(rng, problem.graph, operator, num_devices)
        found = shared[number].propose(operator, config)
        assert found == alone[number].propose(operator, config)
        for simulator in (shared[number], alone[number]):
            simulator.commit()
        assert whole.evaluate(shared[number].strategy) == found


def test_what_one_has_computed_the_others_do_not_compute_again() -> None:
    graph = tied()
    problem = Problem(graph=graph, cluster=cluster_from_name("p100-1x2"), cost=RooflineCostModel())
    patterns, strategy = Patterns(problem), data_parallel(graph, problem.cluster)
    DeltaSimulator(problem, strategy, patterns=patterns)
    found, sizes = patterns.found, patterns.found.pools.edges.sizes.tolist()
    DeltaSimulator(problem, strategy, patterns=patterns)
    assert Simulator(problem, patterns=patterns).evaluate(strategy).iteration_time_s > 0
    assert patterns.found is found, "it is replaced when there is more"
    assert found.pools.edges.sizes.tolist() == sizes, "those of edges are added to it"


def test_patterns_of_another_problem_are_refused() -> None:
    one, other = (
        Problem(graph=graph, cluster=cluster_from_name("p100-1x2"), cost=RooflineCostModel())
        for graph in (tied(), chain())
    )
    for patterns in (Patterns(other), Patterns(one, Sharding.ZERO1)):
        with pytest.raises(SimulationError, match="expected patterns of this problem"):
            Simulator(one, patterns=patterns)
