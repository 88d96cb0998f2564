from itertools import combinations_with_replacement, pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from soaprl.errors import SearchError, StrategyError, UnknownNameError
from soaprl.search.registry import compare, find_method, methods, search
from soaprl.search.stages import balanced_cuts, model_parallel
from soaprl.search.task import Budget, ProgressReport
from soaprl.simulator.problem import Problem
from soaprl.strategy.strategy import Strategy
from soaprl.strategy.validation import check_strategy
from tests.search.synthetic import Score, Steps, Synthetic, pointwise_chain, toy_problem, toy_task
from tests.toys import TableCost, chain, diamond, toy_type, uniform_cluster


def test_the_registry_names_the_methods_of_the_command_line() -> None:
    expected = (
        "mcmc data-parallel single-device model-parallel one-weird-trick gnmt-expert megatron"
        " coordinate-descent annealing evolution random"
    )
    assert [name for name in methods() if name in expected.split()] == expected.split()
    for name, method in methods().items():
        assert method.name == name
        assert method.description
        assert method.source


def test_an_unknown_method_is_an_error_with_a_suggestion() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'data-parallel'"):
        find_method("dataparallel")


@pytest.mark.parametrize(
    "name",
    [
        "mcmc",
        "data-parallel",
        "single-device",
        "model-parallel",
        "coordinate-descent",
        "annealing",
        "evolution",
        "random",
    ],
)
def test_every_method_returns_a_legal_strategy_with_its_evaluation(name: str) -> None:
    problem = toy_problem(diamond(), 4)
    evaluator = Synthetic()
    reports: list[ProgressReport] = []
    task = toy_task(problem, evaluator, evaluations=60, seed=3, progress=reports.append)
    result = search(name, task)
    check_strategy(problem.graph, 4, result.strategy)
    assert result.method == name
    assert result.seed == 3
    assert result.evaluation.iteration_time_s == evaluator.cost(result.strategy)
    assert result.num_evaluations == evaluator.calls
    assert result.history_best_s[-1] == result.evaluation.iteration_time_s
    assert reports
    assert {report.method for report in reports} == {name}


def test_data_parallelism_with_too_small_a_batch_is_an_error() -> None:
    task = toy_task(toy_problem(chain(sample=2), 4), Synthetic())
    with pytest.raises(StrategyError, match="batch smaller than the devices"):
        search("data-parallel", task)


def test_random_search_keeps_the_best_and_needs_a_budget() -> None:
    problem = toy_problem(chain(), 4)
    result = search("random", toy_task(problem, Synthetic(), evaluations=50))
    assert result.num_evaluations == 50
    assert result.evaluation.iteration_time_s < result.initial_time_s
    with pytest.raises(SearchError, match="'random' needs a budget"):
        search("random", toy_task(problem, Synthetic(), evaluations=None))


def test_random_search_returns_the_best_so_far_when_interrupted() -> None:
    class Interrupting(Synthetic):
        def evaluate(self, strategy: Strategy) -> Score:
            if self.calls == 10:
                raise KeyboardInterrupt
            return Synthetic.evaluate(self, strategy)

    result = search("random", toy_task(toy_problem(chain(), 2), Interrupting(), evaluations=50))
    assert result.interrupted
    assert result.num_evaluations == 10


def test_a_method_without_state_cannot_be_resumed(tmp_path: Path) -> None:
    task = toy_task(toy_problem(chain(), 2), Synthetic(), state_path=tmp_path / "s", resume=True)
    with pytest.raises(SearchError, match="'random' cannot be resumed; these can: mcmc"):
        search("random", task)


def test_comparison_runs_iterative_methods_for_each_seed_and_the_others_once() -> None:
    problem = toy_problem(chain(), 2)
    results = compare(
        problem,
        Synthetic(),
        ["single-device", "random", "mcmc"],
        Budget(evaluations=20),
        seeds=(1, 2),
        clock=Steps(),
    )
    assert [(r.method, r.seed) for r in results] == [
        ("single-device", 1),
        ("random", 1),
        ("random", 2),
        ("mcmc", 1),
        ("mcmc", 2),
    ]


def test_comparison_with_an_unknown_name_runs_nothing() -> None:
    evaluator = Synthetic()
    with pytest.raises(UnknownNameError):
        compare(toy_problem(chain(), 2), evaluator, ["random", "nonsense"], Budget(evaluations=5))
    assert evaluator.calls == 0


def brute_force(times: NDArray[np.float64]) -> float:
    """Largest stage time of the best cuts."""
    num_devices, num_items = times.shape
    return min(
        max(
            float(times[d, a:b].sum())
            for d, (a, b) in enumerate(zip((0, *cuts), (*cuts, num_items), strict=True))
        )
        for cuts in combinations_with_replacement(range(num_items + 1), num_devices - 1)
    )


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.integers(1, 7), st.integers(0, 10**6))
def test_cuts_are_as_balanced_as_the_best_of_all_cuts(num_devices: int, num_items: int, seed: int) -> None:
    times = np.random.default_rng(seed).integers(0, 9, size=(num_devices, num_items)).astype(float)
    cuts = balanced_cuts(times)
    assert cuts == sorted(cuts)
    assert (cuts[0], cuts[-1], len(cuts)) == (0, num_items, num_devices + 1)
    largest = max(times[d, a:b].sum() for d, (a, b) in enumerate(pairwise(cuts)))
    assert largest == brute_force(times)


def test_model_parallel_stages_are_contiguous_and_balanced() -> None:
    # Forward and backward of the three operators take 2 x 3, 2 x 3 and 4 x 3 seconds: 12 | 12.
    graph = pointwise_chain(num_operators=3, sample=2)
    cost = TableCost(forward={"op2": 2.0}, backward={"op2": 4.0})
    problem = Problem(graph=graph, cluster=uniform_cluster(2), cost=cost)
    assert [c.devices for c in model_parallel(problem).configs] == [(0,), (0,), (1,)]


def test_model_parallel_gives_a_slow_device_less() -> None:
    graph = pointwise_chain(num_operators=4, sample=2)
    cluster = uniform_cluster(2, device_types=(toy_type("fast"), toy_type("slow")), types=(0, 1))
    problem = Problem(graph=graph, cluster=cluster, cost=TableCost(slowness={"slow": 3.0}))
    # 3 operators of 6 s on the fast device, 1 of 18 s on the slow one.
    assert [c.devices for c in model_parallel(problem).configs] == [(0,), (0,), (0,), (1,)]
