"""Compiled code is called without looking at the types of what it gets: they must never change."""

import random
from typing import Any

import numba
import numpy as np
import pytest

from soaprl.cluster.presets import cluster_from_name
from soaprl.cost.roofline import RooflineCostModel
from soaprl.search.proposals import Proposals, ProposalSettings
from soaprl.search.scanning import Scanner
from soaprl.simulator import DeltaSimulator, Problem, Scale, Simulator
from soaprl.simulator.engine import Engine
from soaprl.simulator.entry import NO_SCALE, no_rows
from soaprl.strategy.baselines import data_parallel
from soaprl.strategy.strategy import OpConfig
from tests.simulator.random_problems import random_config, random_problem, random_strategy
from tests.toys import tied


def types_of(engine: Engine) -> list[Any]:
    known = engine.setting, engine.found, engine.graph, engine.change, engine.record, engine.queue
    return [numba.typeof(one) for one in known]


@pytest.mark.parametrize("seed", range(4))
def test_what_an_engine_hands_over_has_the_same_types_however_much_it_grows(seed: int) -> None:
    rng = random.Random(seed)
    problem = random_problem(rng, num_operators=8)
    num_devices = problem.cluster.num_devices
    delta = DeltaSimulator(problem, random_strategy(rng, problem.graph, num_devices))
    engine = delta._engine
    before, size = types_of(engine), sum(array.size for array in engine.graph.work)
    for step in range(300):
        operator = rng.randrange(len(problem.graph.operators))
        delta.propose(operator, random_config(rng, problem.graph, operator, num_devices))
        if step % 3:
            delta.rollback()
        else:
            delta.commit()
    assert sum(array.size for array in engine.graph.work) > size, "blocks were enlarged"
    assert types_of(engine) == before


def test_more_tasks_than_devices_change_no_types() -> None:
    graph = tied(sample=8)
    problem = Problem(graph=graph, cluster=cluster_from_name("p100-1x2"), cost=RooflineCostModel())
    delta = DeltaSimulator(problem, data_parallel(graph, problem.cluster))
    before, width = types_of(delta._engine), delta._engine.change.devices.shape[1]
    degrees = (8, *(1 for _ in graph.operators[0].factors[1:]))
    delta.propose(0, OpConfig(degrees, (0, 1) * 4))
    assert delta._engine.change.devices.shape[1] > width
    assert types_of(delta._engine) == before


def test_the_candidates_of_a_scan_have_the_types_of_none() -> None:
    graph = tied()
    problem = Problem(graph=graph, cluster=cluster_from_name("p100-1x2"), cost=RooflineCostModel())
    strategy, proposals = data_parallel(graph, problem.cluster), Proposals(graph, 2, ProposalSettings())
    seen = []

    class Watching(Simulator):
        def scan(self, strategy: Any, candidates: Any, first: int, end: int, scale: Scale) -> Any:
            seen.append((candidates.rows, scale))
            return super().scan(strategy, candidates, first, end, scale)

    simulator = Watching(problem)
    time_s = simulator.evaluate(strategy).iteration_time_s
    scale = NO_SCALE._replace(current_s=time_s, scale_s=1e-9, best_s=time_s)
    Scanner(simulator, proposals, strategy).next(strategy, scale, proposals.block(0, 0, 0), 0, 64)
    assert seen
    assert numba.typeof(seen[0][0]) == numba.typeof(no_rows())
    assert all(np.isscalar(value) for value in seen[0][1])
