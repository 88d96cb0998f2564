"""Data parallelism with sharded state, and searches that stay within a sharding."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from soaprl.errors import SearchError, StrategyError
from soaprl.search.registry import Skipped, attempt, search
from soaprl.search.task import SearchResult
from soaprl.simulator import Evaluation, Problem, SimulationOptions, Simulator
from soaprl.strategy.strategy import Sharding, Strategy
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


IMPROVING = ["coordinate-descent", "annealing", "evolution", "mcmc"]


@pytest.mark.parametrize("method", IMPROVING)
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


@pytest.mark.parametrize(
    "method", [*IMPROVING, "random", "data-parallel", "fsdp", "optcnn", "model-parallel"]
)
def test_a_task_that_asks_for_a_sharding_gets_strategies_of_that_sharding_alone(method: str) -> None:
    problem = toy_problem(chain(num_operators=3, sample=4, channel=4), 2)
    asked: set[Sharding] = set()

    class Watched(Simulator):
        def evaluate_within(self, strategy: Strategy, limit_s: float) -> Evaluation | None:
            asked.add(strategy.sharding)
            return super().evaluate_within(strategy, limit_s)

    task = replace(toy_task(problem, Watched(problem), evaluations=60), sharding=Sharding.ZERO2)
    found = search(method, task)
    assert found.strategy.sharding is Sharding.ZERO2
    assert asked == {Sharding.ZERO2}


def test_bounds_know_no_sharding() -> None:
    problem = toy_problem(chain(num_operators=2, sample=2, channel=2), 2)
    task = replace(toy_task(problem, Simulator(problem)), sharding=Sharding.ZERO1)
    refused = attempt("exhaustive", task)
    assert isinstance(refused, Skipped)
    assert refused.reason.startswith("its lower bounds are of strategies without sharding")


def problem_that_fits(sharding: Sharding) -> Problem:
    """Data parallelism fits in memory from this sharding on, and not with less."""
    graph, options = chain(num_operators=8, sample=N, channel=8), SimulationOptions(prefetch=1)
    problem = Problem(graph=graph, cluster=uniform_cluster(N), cost=TableCost(), options=options)
    sharded = replace(data_parallel_toy(graph, N), sharding=sharding)
    device = toy_type(memory_bytes=Simulator(problem).evaluate(sharded).peak_memory_bytes)
    return replace(problem, cluster=uniform_cluster(N, device_types=(device,)))


def test_mcmc_begins_with_sharded_data_parallelism_where_nothing_else_fits() -> None:
    stages: set[str] = set()
    problem = problem_that_fits(Sharding.ZERO3)
    task = toy_task(
        problem, Simulator(problem), evaluations=200, progress=lambda report: stages.add(report.stage)
    )
    found = search("mcmc", task)
    assert "from fsdp-zero3" in stages
    assert found.evaluation.feasible
    # Data parallelism and three shardings before the chains.
    assert found.num_evaluations == 200
    assert found.history_evaluations.min() > 4
    fitting, stages_before = problem_that_fits(Sharding.NONE), set(stages)
    stages.clear()
    search("mcmc", replace(task, problem=fitting, evaluator=Simulator(fitting)))
    assert stages == stages_before - {"from fsdp-zero3"}


@pytest.mark.parametrize("method", IMPROVING)
def test_a_sharded_search_goes_on_from_its_file(method: str, tmp_path: Path) -> None:
    problem = toy_problem(chain(num_operators=3, sample=4, channel=4), 2)
    path = tmp_path / "state.json"

    def found(evaluations: int, resume: bool, sharding: Sharding = Sharding.ZERO2) -> SearchResult:
        task = toy_task(problem, Simulator(problem), evaluations=evaluations, state_path=path, resume=resume)
        return search(method, replace(task, sharding=sharding))

    first = found(12, resume=False)
    assert json.loads(path.read_text())["best"]["sharding"] == "zero2"
    second = found(80, resume=True)
    assert second.strategy.sharding is Sharding.ZERO2
    assert second.num_evaluations > first.num_evaluations
    with pytest.raises(SearchError, match="the state of another search: starts was"):
        found(80, resume=True, sharding=Sharding.NONE)
