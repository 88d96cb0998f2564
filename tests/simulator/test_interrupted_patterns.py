"""What an interrupt leaves of a pattern is in nobody's way."""

import numpy as np

from soaprl.cluster.presets import cluster_from_name
from soaprl.cost.roofline import RooflineCostModel
from soaprl.search.proposals import Proposals, ProposalSettings
from soaprl.simulator import Patterns, Problem, Simulator
from soaprl.strategy.baselines import data_parallel
from soaprl.strategy.strategy import Strategy
from tests.search.interruption import interrupted_at
from tests.toys import tied

PATTERNS = tuple(f"simulator/{name}.py" for name in ("book", "cells", "edges", "lookup", "patterns", "pools"))


def test_a_simulator_that_was_interrupted_while_it_learned_says_the_same() -> None:
    graph = tied()
    problem = Problem(graph=graph, cluster=cluster_from_name("p100-1x2"), cost=RooflineCostModel())
    strategies = [data_parallel(graph, problem.cluster), *some_strategies(problem)]
    whole = Simulator(problem)
    expected = [whole.evaluate(strategy) for strategy in strategies]
    line, interrupted = 0, True
    while interrupted:
        line, interrupted, patterns = line + 1, False, Patterns(problem)
        simulator, sharing = Simulator(problem, patterns=patterns), Simulator(problem, patterns=patterns)
        try:
            with interrupted_at(line, PATTERNS):
                simulator.evaluate(strategies[0])
        except KeyboardInterrupt:
            interrupted = True
        assert [sharing.evaluate(strategy) for strategy in strategies] == expected, line
        assert [simulator.evaluate(strategy) for strategy in reversed(strategies)] == expected[::-1], line
    assert line > 100


def some_strategies(problem: Problem) -> list[Strategy]:
    proposals = Proposals(problem.graph, problem.cluster.num_devices, ProposalSettings())
    return [proposals.strategy(np.random.default_rng(seed)) for seed in range(3)]
