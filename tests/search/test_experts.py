"""Methods that build an expert's strategy, and methods that refuse a problem."""

from dataclasses import replace
from functools import cache
from math import inf
from pathlib import Path

import pytest

from soaprl.cluster.files import load_cluster
from soaprl.cost.roofline import RooflineCostModel
from soaprl.errors import SearchError, StrategyError
from soaprl.graph.capture import capture_model
from soaprl.search.experts import starting_strategies, starts_for
from soaprl.search.registry import Skipped, attempt, compare, search
from soaprl.search.task import Budget, ProgressReport, SearchResult
from soaprl.simulator import Evaluation, Problem, Simulator
from soaprl.strategy.baselines import data_parallel
from soaprl.strategy.experts_megatron import megatron, megatron_degrees
from soaprl.strategy.strategy import Sharding, Strategy
from tests.search.synthetic import Synthetic, toy_problem, toy_task
from tests.toys import chain


@cache
def problem_of(model: str, cluster: str, batch_size: int = 32) -> Problem:
    sizes = {"num_layers": 1, "width": 64, "num_heads": 4, "sequence": 16} if model == "gpt2" else {}
    graph = capture_model(model, batch_size, options=sizes)
    return Problem(graph=graph, cluster=load_cluster(cluster), cost=RooflineCostModel())


@pytest.mark.parametrize(
    ("method", "model"), [("one-weird-trick", "alexnet"), ("gnmt-expert", "rnnlm"), ("megatron", "gpt2")]
)
def test_an_expert_is_a_method_that_needs_no_budget(method: str, model: str) -> None:
    problem = problem_of(model, "p100-2x4")
    reports: list[ProgressReport] = []
    simulator = Simulator(problem)
    result = search(method, toy_task(problem, simulator, evaluations=None, progress=reports.append))
    assert result.method == method
    assert result.evaluation == simulator.evaluate(result.strategy)
    assert {report.method for report in reports} == {method}


def test_megatron_takes_the_best_of_all_tensor_degrees() -> None:
    problem = problem_of("gpt2", "p100-2x4")
    simulator = Simulator(problem)
    degrees = megatron_degrees(problem.graph, problem.cluster)
    assert degrees == (1, 2, 4)
    times = []
    for degree in degrees:
        strategy = megatron(problem.graph, problem.cluster, tensor_degree=degree)
        assert isinstance(strategy, Strategy)
        times.append(simulator.evaluate(strategy).iteration_time_s)
    result = search("megatron", toy_task(problem, simulator))
    assert result.evaluation.iteration_time_s == min(times)
    assert (result.num_evaluations, result.initial_time_s) == (3, times[0])
    # A budget that is smaller than the number of degrees ends it early.
    assert search("megatron", toy_task(problem, simulator, evaluations=2)).num_evaluations == 2


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        ("one-weird-trick", "no convolutional network"),
        ("gnmt-expert", "no recurrent network"),
        ("megatron", "no transformer"),
    ],
)
def test_an_expert_that_does_not_apply_is_one_error_with_the_reason(method: str, reason: str) -> None:
    with pytest.raises(SearchError, match=f"method '{method}' does not apply: 'chain' is {reason}"):
        search(method, toy_task(toy_problem(chain(), 2), Synthetic()))


def test_a_comparison_skips_what_does_not_apply_and_says_why() -> None:
    problem = toy_problem(chain(sample=2), 4)
    names = ["data-parallel", "megatron", "random", "single-device"]
    found = compare(problem, Synthetic(), names, Budget(evaluations=5), seeds=(0, 1))
    assert [result.method for result in found] == [*names[:2], "random", *names[2:]]
    skipped = [result for result in found if isinstance(result, Skipped)]
    assert [s.method for s in skipped] == ["data-parallel", "megatron"]
    assert "batch smaller than the devices" in skipped[0].reason
    assert "no transformer" in skipped[1].reason


def test_a_comparison_without_a_budget_runs_nothing() -> None:
    evaluator = Synthetic()
    with pytest.raises(SearchError, match="'random' needs a budget"):
        compare(toy_problem(chain(), 2), evaluator, ["single-device", "random"], Budget())
    assert evaluator.calls == 0


def test_an_attempt_is_a_result_or_a_reason() -> None:
    task = toy_task(toy_problem(chain(), 2), Synthetic())
    assert isinstance(attempt("data-parallel", task), SearchResult)
    assert isinstance(attempt("gnmt-expert", task), Skipped)


def test_searches_start_from_data_parallelism_and_the_experts_that_apply() -> None:
    names = {
        model: [name for name, _ in starting_strategies(problem_of(model, "p100-2x4"))]
        for model in ("alexnet", "rnnlm", "gpt2")
    }
    assert names == {
        "alexnet": ["data-parallel", "one-weird-trick"],
        "rnnlm": ["data-parallel", "gnmt-expert"],
        # Tensor degree 1 is data parallelism.
        "gpt2": ["data-parallel", "megatron-2", "megatron-4"],
    }
    assert [name for name, _ in starting_strategies(toy_problem(chain(sample=2), 4))] == ["model-parallel"]


def test_mcmc_starts_from_experts() -> None:
    problem = problem_of("alexnet", "p100-2x4")
    stages: list[str] = []
    # A clock that moves by a second has every report heard.
    task = toy_task(
        problem,
        Simulator(problem),
        evaluations=12,
        clock=iter(range(1000)).__next__,
        progress=lambda report: stages.append(report.stage),
    )
    search("mcmc", task)
    assert list(dict.fromkeys(stages)) == ["from data-parallel", "from one-weird-trick", "from random-0"]


class OneByOne:
    """A simulator that is asked for every strategy, and is interrupted when asked for the last."""

    def __init__(self, problem: Problem, last: float = inf) -> None:
        self._simulator, self._last = Simulator(problem), last
        self.asked: list[Strategy] = []

    def evaluate(self, strategy: Strategy) -> Evaluation:
        evaluation = self.evaluate_within(strategy, inf)
        assert evaluation is not None
        return evaluation

    def evaluate_within(self, strategy: Strategy, limit_s: float) -> Evaluation | None:
        if len(self.asked) + 1 == self._last:
            raise KeyboardInterrupt
        self.asked.append(strategy)
        return self._simulator.evaluate_within(strategy, limit_s)


@pytest.mark.parametrize(("batch_size", "degrees"), [(32, (1, 2, 4)), (4, (2, 4))])
def test_mcmc_starts_from_the_best_of_megatrons_degrees_and_counts_what_that_took(
    batch_size: int, degrees: tuple[int, ...]
) -> None:
    problem, num_degrees = problem_of("gpt2", "p100-2x4", batch_size), len(degrees)
    simulator = OneByOne(problem)
    stages: list[str] = []
    task = toy_task(
        problem,
        simulator,
        evaluations=60,
        clock=iter(range(1000)).__next__,
        progress=lambda report: stages.append(report.stage),
    )
    result = search("mcmc", task)
    num_asked = len(simulator.asked)
    times = [simulator.evaluate(strategy).iteration_time_s for strategy in simulator.asked[:num_degrees]]
    best = degrees[times.index(min(times))]
    # Tensor degree 1 is data parallelism, from which it starts anyway.
    assert [s for s in dict.fromkeys(stages) if "megatron" in s] == [f"from megatron-{best}"] * (best > 1)
    assert result.num_evaluations == num_asked <= 60
    # The first start of the chains is evaluated after the degrees.
    assert result.history_evaluations[0] == num_degrees + 1
    # The clock ticks once for the degrees and once for the start.
    assert result.history_s[0] == 2


def test_a_budget_of_a_few_evaluations_leaves_megatron_out_of_mcmc() -> None:
    problem = problem_of("gpt2", "p100-2x4")
    simulator = OneByOne(problem)
    result = search("mcmc", toy_task(problem, simulator, evaluations=6))
    assert result.num_evaluations == len(simulator.asked) <= 6


def test_mcmc_with_experts_is_resumed_where_it_was_interrupted(tmp_path: Path) -> None:
    problem = problem_of("gpt2", "p100-2x4")
    whole = search("mcmc", toy_task(problem, Simulator(problem), evaluations=150))
    task = toy_task(problem, OneByOne(problem, last=50), evaluations=150, state_path=tmp_path / "state.json")
    stopped = search("mcmc", task)
    assert stopped.interrupted
    assert stopped.num_evaluations == 49
    resumed = search("mcmc", replace(task, evaluator=Simulator(problem), resume=True))
    assert resumed.strategy == whole.strategy
    assert resumed.num_evaluations == whole.num_evaluations
    assert resumed.history_evaluations.tolist() == whole.history_evaluations.tolist()


def test_methods_that_improve_begin_with_a_given_strategy() -> None:
    problem = toy_problem(chain(), 2)
    start = search("single-device", toy_task(problem, Synthetic())).strategy
    for method in ("coordinate-descent", "annealing", "evolution", "joint"):
        evaluator = Synthetic()
        result = search(method, toy_task(problem, evaluator, evaluations=40), start=start)
        assert result.initial_time_s == evaluator.cost(start)
    mcmc = search("mcmc", toy_task(problem, Synthetic(), evaluations=40), start=start)
    assert mcmc.initial_time_s == Synthetic().cost(data_parallel(problem.graph, problem.cluster))
    with pytest.raises(SearchError, match="'random' begins with no given strategy; these can: mcmc"):
        search("random", toy_task(problem, Synthetic()), start=start)


def test_a_start_for_another_cluster_is_refused() -> None:
    start = data_parallel(chain(), toy_problem(chain(), 4).cluster)
    for method in ("mcmc", "coordinate-descent", "annealing", "evolution", "joint"):
        with pytest.raises(StrategyError, match="device ids from 0 to 1"):
            search(method, toy_task(toy_problem(chain(), 2), Synthetic()), start=start)


def test_starts_have_names_that_tell_them_apart() -> None:
    problem = toy_problem(chain(), 2)
    one, other = (
        search(method, toy_task(problem, Synthetic())).strategy
        for method in ("single-device", "data-parallel")
    )
    sharded = replace(one, sharding=Sharding.ZERO1)
    task = toy_task(problem, Synthetic())
    assert len({starts_for(task, start)[0][0] for start in (one, other, sharded)}) == 3
