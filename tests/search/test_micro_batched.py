"""Searches whose strategies have micro-batches, and shard state: every evaluation is a fresh simulation's."""

import json
import random
from dataclasses import replace
from math import inf
from pathlib import Path

import numpy as np
import pytest

from soaprl.cluster.presets import cluster_from_name
from soaprl.cost.roofline import RooflineCostModel
from soaprl.errors import SearchError, StrategyError
from soaprl.graph.micro_batch import micro_batch
from soaprl.search.chain import Chain, Limits, Walker, begin, walk
from soaprl.search.pipeline import pipelines
from soaprl.search.proposals import Proposals, ProposalSettings
from soaprl.search.registry import Skipped, attempt, methods, search
from soaprl.search.task import Evaluator, SearchTask, improved
from soaprl.simulator import Candidates, Evaluation, Problem, Scale, Simulator
from soaprl.strategy.baselines import data_parallel
from soaprl.strategy.schedules import Schedule
from soaprl.strategy.strategy import OpConfig, Sharding, Strategy
from tests.search.synthetic import toy_task
from tests.simulator.random_problems import random_micro_batches, random_problem
from tests.toys import chain, tied


class Fresh:
    """Simulates every strategy from nothing."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem

    def evaluate(self, strategy: Strategy) -> Evaluation:
        return Simulator(self.problem).evaluate(strategy)


class Checked(Simulator):
    """Compares all that it answers with a fresh simulation, and keeps what it was asked for."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.asked: list[Strategy] = []
        self.scanned: list[Strategy] = []

    def evaluate_within(self, strategy: Strategy, limit_s: float) -> Evaluation | None:
        self.asked.append(strategy)
        found = super().evaluate_within(strategy, limit_s)
        expected = Simulator(self.problem).evaluate(strategy)
        assert found == expected or (found is None and expected.iteration_time_s > limit_s)
        return found

    def scan(
        self, strategy: Strategy, candidates: Candidates, first: int, end: int, scale: Scale
    ) -> tuple[int, Evaluation | None]:
        self.scanned.append(strategy)
        return super().scan(strategy, candidates, first, end, scale)


def walked(problem: Problem, evaluator: Evaluator, start: Strategy, *, steps: int, tied: float) -> Chain:
    part = micro_batch(problem.graph, start.micro_batches)
    evaluation = Simulator(problem).evaluate(start)
    walker = Walker(
        evaluator=evaluator,
        proposals=Proposals(part, problem.cluster.num_devices, ProposalSettings(tied_moves=tied)),
        seed=4,
        stream=1,
        first_number=1,
        elapsed=lambda: 0.0,
        visit=lambda chain, step, now: None,
    )
    best = improved(None, start, evaluation, number=1, elapsed_s=0.0)
    at_start = begin(start, evaluation, beta_relative=8.0, best=best, elapsed_s=0.0)
    end, interrupted = walk(walker, at_start, Limits(steps=steps, end_s=inf, idle_steps=inf, idle_s=inf))
    assert not interrupted
    return end


@pytest.mark.parametrize("seed", range(12))
def test_a_chain_with_micro_batches_is_the_one_of_fresh_simulations(seed: int) -> None:
    rng = random.Random(seed)
    problem = random_problem(rng, num_operators=rng.randint(2, 6))
    start = random_micro_batches(rng, problem)
    part = micro_batch(problem.graph, start.micro_batches)
    drawn = Proposals(part, problem.cluster.num_devices, ProposalSettings())
    start = replace(start, configs=drawn.strategy(np.random.default_rng(seed)).configs)
    found = walked(problem, Simulator(problem), start, steps=80, tied=0.5)
    assert found == walked(problem, Fresh(problem), start, steps=80, tied=0.5)
    whole = (start.sharding, start.micro_batches, start.schedule, start.stages)
    for strategy in (found.current, found.best.strategy):
        assert (strategy.sharding, strategy.micro_batches, strategy.schedule, strategy.stages) == whole
    assert found.evaluation == Simulator(problem).evaluate(found.current)


@pytest.mark.parametrize("stages", [(), (0, 1)])
@pytest.mark.parametrize("share", [2.0, 0.7])
def test_tied_moves_take_all_copies_along_whether_memory_is_short_or_not(
    stages: tuple[int, ...], share: float
) -> None:
    graph, cluster = tied(sample=64, channel=16), cluster_from_name("p100-1x4")
    problem = Problem(graph=graph, cluster=cluster, cost=RooflineCostModel())
    configs = data_parallel(micro_batch(graph, 4), cluster).configs
    start = Strategy(configs, Sharding.ZERO1, 4, Schedule.ONE_F_ONE_B, stages)
    needed = Simulator(problem).evaluate(start).peak_memory_bytes
    small = replace(cluster.device_types[0], memory_bytes=int(share * needed))
    problem = replace(problem, cluster=replace(cluster, device_types=(small,)))
    found = walked(problem, Simulator(problem), start, steps=300, tied=0.7)
    assert found == walked(problem, Fresh(problem), start, steps=300, tied=0.7)
    assert found.accepted > 0


def pipe_problem(sample: int = 16) -> Problem:
    return Problem(
        graph=chain(num_operators=4, sample=sample, channel=8),
        cluster=cluster_from_name("p100-1x2"),
        cost=RooflineCostModel(),
    )


STARTED = [name for name, method in methods().items() if method.started is not None]
STAYING = [name for name in STARTED if not methods()[name].chooses_sharding]


@pytest.mark.parametrize("method", STAYING)
@pytest.mark.parametrize("num_stages", [1, 2])
def test_a_search_from_a_strategy_with_micro_batches_stays_with_them(method: str, num_stages: int) -> None:
    problem = pipe_problem()
    start = next(p.strategy for p in pipelines(problem, 4) if p.num_stages == num_stages)
    start = replace(start, sharding=Sharding.ZERO1)
    evaluator = Checked(problem)
    found = search(method, toy_task(problem, evaluator, evaluations=70), start=start)
    assert found.evaluation == Simulator(problem).evaluate(found.strategy)
    assert found.evaluation.iteration_time_s <= Simulator(problem).evaluate(start).iteration_time_s
    for strategy in (*evaluator.asked, *evaluator.scanned, found.strategy):
        assert (strategy.micro_batches, strategy.sharding) == (4, Sharding.ZERO1)
        assert strategy.schedule is Schedule.ONE_F_ONE_B
    assert start in evaluator.asked
    assert bool(evaluator.scanned) is (method == "mcmc")


KNOWING = ["mcmc", "coordinate-descent", "annealing", "evolution", "random", "data-parallel", "accumulation"]


@pytest.mark.parametrize("method", [*KNOWING, "model-parallel", "single-device", "pipeline"])
def test_a_task_that_asks_for_micro_batches_gets_strategies_with_so_many(method: str) -> None:
    problem = pipe_problem()
    evaluator = Checked(problem)
    task = replace(toy_task(problem, evaluator, evaluations=40), micro_batches=8)
    found = search(method, task)
    assert {s.micro_batches for s in (*evaluator.asked, *evaluator.scanned, found.strategy)} == {8}


def test_experts_split_the_samples_of_one_micro_batch() -> None:
    problem = pipe_problem()
    found = search(
        "data-parallel", replace(toy_task(problem, Simulator(problem), evaluations=None), micro_batches=8)
    )
    assert found.strategy.micro_batches == 8
    assert found.strategy.configs == data_parallel(problem.graph, problem.cluster).configs
    # Sixteen micro-batches of one sample leave nothing for the second device.
    with pytest.raises(StrategyError, match="batch smaller than the devices"):
        search(
            "data-parallel",
            replace(toy_task(problem, Simulator(problem), evaluations=None), micro_batches=16),
        )


def test_a_given_strategy_without_micro_batches_is_cut_as_the_task_says() -> None:
    problem = pipe_problem()
    start = data_parallel(problem.graph, problem.cluster)
    evaluator = Checked(problem)
    task = replace(toy_task(problem, evaluator, evaluations=20), micro_batches=2)
    search("annealing", task, start=start)
    assert evaluator.asked[0] == replace(start, micro_batches=2, schedule=Schedule.ONE_F_ONE_B)
    wide = start.replaced(0, OpConfig((16, 1, 1), (0, 1) * 8))
    with pytest.raises(StrategyError, match="expected a degree from 1 to 8, found 16"):
        search("annealing", task, start=wide)


@pytest.mark.parametrize("name", [name for name, method in methods().items() if method.whole_batch])
def test_methods_for_the_whole_batch_refuse_micro_batches(name: str) -> None:
    problem = pipe_problem()
    refused = attempt(name, replace(toy_task(problem, Simulator(problem)), micro_batches=2))
    assert isinstance(refused, Skipped)
    assert refused.reason.startswith("it knows strategies without micro-batches alone, and 2 are asked for")


def test_a_batch_that_cannot_be_cut_is_one_clear_error() -> None:
    problem = pipe_problem(sample=9)
    task = replace(toy_task(problem, Simulator(problem)), micro_batches=2)
    with pytest.raises(SearchError, match=r"'mcmc' does not apply: .* divides the batch of 9, found 2"):
        search("mcmc", task)


@pytest.mark.parametrize("method", STARTED)
def test_a_search_with_micro_batches_goes_on_from_its_file(method: str, tmp_path: Path) -> None:
    problem = pipe_problem()
    start = next(p.strategy for p in pipelines(problem, 4) if p.num_stages == 2)

    def task(evaluations: int, name: str, *, resume: bool = False) -> SearchTask:
        path = tmp_path / name
        return toy_task(problem, Simulator(problem), evaluations=evaluations, state_path=path, resume=resume)

    whole = search(method, task(60, "whole.json"), start=start)
    if method != "mcmc":
        # A chain's budget decides its share, so that only the others go on with a larger one as they were.
        search(method, task(25, "part.json"), start=start)
        resumed = search(method, task(60, "part.json", resume=True), start=start)
        assert resumed.strategy == whole.strategy
        assert np.array_equal(resumed.history_best_s, whole.history_best_s)
    kept = json.loads((tmp_path / "whole.json").read_text())["best"]
    if method in STAYING:
        assert (kept["micro_batches"], kept["schedule"]) == (4, "1f1b")
    again = search(method, task(60, "whole.json", resume=True), start=start)
    assert again.strategy == whole.strategy
    with pytest.raises(SearchError, match="the state of another search: starts was"):
        search(method, task(80, "whole.json", resume=True), start=replace(start, schedule=Schedule.GPIPE))


def test_numbers_of_patterns_go_with_the_engine_that_they_belong_to() -> None:
    problem = pipe_problem()
    simulator = Simulator(problem)
    strategies = [
        Strategy(data_parallel(problem.graph, problem.cluster).configs, micro_batches=m, schedule=schedule)
        for m in (2, 4)
        for schedule in Schedule
    ]
    arrays = [simulator.pattern_numbers(problem, strategy, 5) for strategy in strategies]
    # GPipe and 1F1B have an engine in common, which its order does not belong to.
    assert len({id(array) for array in arrays}) == 4
    assert len(simulator._pattern_numbers) == 1
