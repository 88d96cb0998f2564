"""Data parallelism with sharded state, and searches that stay within a sharding."""

from dataclasses import replace

import pytest

from soaprl.errors import SearchError, StrategyError
from soaprl.search.registry import Skipped, attempt, search
from soaprl.simulator import Problem, SimulationOptions, Simulator
from soaprl.strategy.strategy import Sharding
from tests.search.synthetic import toy_problem, toy_task
from tests.toys import TableCost, chain, data_parallel_toy, toy_type, uniform_cluster

N = 4


@pytest.mark.parametrize("expected", list(Sharding)[1:])
def test_fsdp_shards_as_little_as_fits(expected: Sharding) -> None:
    graph = chain(num_operators=8, sample=N, channel=8)
    unsharded, options = data_parallel_toy(graph, N), SimulationOptions(prefetch=1)
    problem = Problem(graph=graph, cluster=uniform_cluster(N), cost=TableCost(), options=options)
    peaks = [
        Simulator(problem).evaluate(replace(unsharded, sharding=sharding)).peak_memory_bytes
        for sharding in Sharding
    ]
    assert sorted(set(peaks), reverse=True) == peaks
    device = toy_type(memory_bytes=peaks[expected.level])
    problem = replace(problem, cluster=uniform_cluster(N, device_types=(device,)))
    found = search("fsdp", toy_task(problem, Simulator(problem)))
    assert found.strategy == replace(unsharded, sharding=expected)
    assert found.evaluation.feasible
    assert found.num_evaluations == 3


def test_fsdp_says_why_it_does_not_apply() -> None:
    graph = chain(num_operators=2, sample=4, channel=4)
    alone = toy_problem(graph, 1)
    found = attempt("fsdp", toy_task(alone, Simulator(alone)))
    assert found == Skipped(method="fsdp", reason="there is one device, so nothing to shard state over.")
    paper = replace(toy_problem(graph, 2), options=SimulationOptions(paper=True))
    refused = attempt("fsdp", toy_task(paper, Simulator(paper)))
    assert isinstance(refused, Skipped)
    assert refused.reason.startswith("the paper's assumptions know no collectives")
    small = toy_problem(graph, 5)
    with pytest.raises(StrategyError, match="batch smaller than the devices"):
        search("fsdp", toy_task(small, Simulator(small)))
    with pytest.raises(SearchError, match="method 'fsdp' does not apply: there is one device"):
        search("fsdp", toy_task(alone, Simulator(alone)))


@pytest.mark.parametrize("method", ["coordinate-descent", "annealing", "evolution", "mcmc"])
@pytest.mark.parametrize("sharding", [Sharding.ZERO1, Sharding.ZERO3])
def test_a_search_from_a_sharded_strategy_stays_within_its_sharding(method: str, sharding: Sharding) -> None:
    graph = chain(num_operators=3, sample=4, channel=4)
    problem = toy_problem(graph, 2)
    start = replace(data_parallel_toy(graph, 2), sharding=sharding)
    simulator = Simulator(problem)
    found = search(method, toy_task(problem, simulator, evaluations=60), start=start)
    assert found.strategy.sharding is sharding
    assert found.evaluation == Simulator(problem).evaluate(found.strategy)
    assert found.evaluation.iteration_time_s <= Simulator(problem).evaluate(start).iteration_time_s
