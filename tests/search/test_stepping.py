"""What all searches that make one evaluation at a time have in common."""

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import pytest

from soaprl.errors import OutputError, SearchError
from soaprl.search.annealing import AnnealingSettings, annealing
from soaprl.search.descent import coordinate_descent
from soaprl.search.evolution import EvolutionSettings, evolution
from soaprl.search.joint import JointSettings, joint
from soaprl.search.metropolis import metropolis
from soaprl.search.task import Budget, Evaluation, Evaluator, ProgressReport, SearchResult, SearchTask
from soaprl.simulator import Problem, Simulator
from soaprl.strategy.strategy import Strategy
from tests.search.synthetic import Score, Steps, Synthetic, toy_problem, toy_task
from tests.toys import TableCost, chain, diamond, tied, uniform_cluster

Search = Callable[[SearchTask], SearchResult]


def short_annealing(task: SearchTask) -> SearchResult:
    """Runs of 40, 80, ... steps, so that a few hundred evaluations see several of them."""
    return annealing(task, None, AnnealingSettings(hot=0.1, cold=1e-3, first_run_steps=40))


def small_evolution(task: SearchTask) -> SearchResult:
    return evolution(task, None, EvolutionSettings(population=8))


def short_joint(task: SearchTask) -> SearchResult:
    """Brackets of 16, 32, ... evaluations."""
    return joint(task, None, JointSettings(arms=2, first_steps=4))


SEARCHES: tuple[Search, ...] = (coordinate_descent, short_annealing, small_evolution, short_joint)


def outcome(result: SearchResult) -> tuple[object, ...]:
    """Everything about a result but wall-clock times."""
    return (
        result.strategy,
        result.evaluation.iteration_time_s,
        result.initial_time_s,
        result.num_evaluations,
        result.num_accepted,
        result.history_evaluations.tolist(),
        result.history_best_s.tolist(),
    )


class Interrupting:
    """Raises KeyboardInterrupt in place of evaluation number `at`."""

    def __init__(self, evaluator: Evaluator, at: int) -> None:
        self.evaluator, self.at, self.calls = evaluator, at, 0

    def evaluate(self, strategy: Strategy) -> Evaluation:
        self.calls += 1
        if self.calls == self.at:
            raise KeyboardInterrupt
        return self.evaluator.evaluate(strategy)


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("at", [2, 3, 8, 9, 42, 43, 150, 237])
def test_an_interrupted_search_goes_on_as_if_it_had_not_been(search: Search, at: int, tmp_path: Path) -> None:
    problem = toy_problem(diamond(), 4)
    whole = search(toy_task(problem, Synthetic(), evaluations=240, seed=5))
    path = tmp_path / "state.json"
    stopping = toy_task(problem, Interrupting(Synthetic(), at), evaluations=240, seed=5, state_path=path)
    stopped = search(stopping)
    if whole.num_evaluations < at:
        # A descent may be at its local optimum by then.
        assert not stopped.interrupted
        return
    assert stopped.interrupted
    assert stopped.num_evaluations == at - 1
    resumed = search(replace(stopping, evaluator=Synthetic(), resume=True))
    assert outcome(resumed) == outcome(whole)


@pytest.mark.parametrize("search", SEARCHES)
def test_a_larger_budget_goes_on_where_a_smaller_one_ended(search: Search, tmp_path: Path) -> None:
    problem = toy_problem(diamond(), 4)
    whole = search(toy_task(problem, Synthetic(), evaluations=200))
    part = toy_task(problem, Synthetic(), evaluations=97, state_path=tmp_path / "state.json")
    assert search(part).num_evaluations == 97
    resumed = search(replace(part, budget=Budget(evaluations=200), resume=True))
    assert outcome(resumed) == outcome(whole)


@pytest.mark.parametrize("search", SEARCHES)
def test_with_the_real_simulator_stopping_early_and_resuming_change_nothing(
    search: Search, tmp_path: Path
) -> None:
    problem = Problem(graph=tied(sample=4, channel=4), cluster=uniform_cluster(4), cost=TableCost())

    class Unbounded:
        """A simulator that never stops early."""

        def __init__(self) -> None:
            self.simulator = Simulator(problem)

        def evaluate(self, strategy: Strategy) -> Evaluation:
            return self.simulator.evaluate(strategy)

    whole = search(toy_task(problem, Unbounded(), evaluations=150))
    bounded = search(toy_task(problem, Simulator(problem), evaluations=150))
    assert outcome(bounded) == outcome(whole)
    stopping = toy_task(
        problem, Interrupting(Simulator(problem), 33), evaluations=150, state_path=tmp_path / "s.json"
    )
    assert search(stopping).interrupted
    assert outcome(search(replace(stopping, evaluator=Simulator(problem), resume=True))) == outcome(whole)


@pytest.mark.parametrize("search", SEARCHES)
def test_equal_seeds_find_equal_results_and_other_seeds_walk_elsewhere(search: Search) -> None:
    problem = toy_problem(chain(num_operators=4), 4)
    first, second, other = (
        search(toy_task(problem, Synthetic(), evaluations=120, seed=seed)) for seed in (1, 1, 2)
    )
    assert outcome(first) == outcome(second)
    assert first.history_evaluations.tolist() != other.history_evaluations.tolist()


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("budget", [1, 2, 7, 60])
def test_the_budget_of_evaluations_is_used_and_never_exceeded(search: Search, budget: int) -> None:
    evaluator = Synthetic()
    result = search(toy_task(toy_problem(chain(), 4), evaluator, evaluations=budget))
    assert result.num_evaluations == evaluator.calls == budget


@pytest.mark.parametrize("search", SEARCHES)
def test_a_budget_of_seconds_ends_a_search(search: Search) -> None:
    clock = Steps(1.0)
    task = toy_task(toy_problem(chain(), 4), Synthetic(), evaluations=None, seconds=20.5, clock=clock)
    found = search(task)
    # The clock is read when the search begins and ends, and after each evaluation: 1 s each. Joint search
    # also makes a few estimates, each as long.
    assert clock.now == 1 + 21 + 1
    assert found.num_evaluations == 21 or (found.method == "joint" and 16 < found.num_evaluations < 21)


@pytest.mark.parametrize("search", SEARCHES)
def test_a_search_without_a_budget_is_refused(search: Search) -> None:
    with pytest.raises(SearchError, match="needs a budget"):
        search(toy_task(toy_problem(chain(), 2), Synthetic(), evaluations=None))


@pytest.mark.parametrize("search", SEARCHES)
def test_an_interrupt_before_anything_was_found_is_an_interrupt(search: Search) -> None:
    with pytest.raises(KeyboardInterrupt):
        search(toy_task(toy_problem(chain(), 2), Interrupting(Synthetic(), 1)))


@pytest.mark.parametrize("search", SEARCHES)
def test_what_does_not_fit_is_left_for_what_does(search: Search) -> None:
    class Crowded(Synthetic):
        """Fits only where every operator has more than one task; memory falls with each such operator."""

        def evaluate(self, strategy: Strategy) -> Score:
            self.calls += 1
            whole = sum(config.num_tasks == 1 for config in strategy.configs)
            # Slower where it fits: a search that ignored memory would stay away from it.
            return Score(iteration_time_s=10.0 - whole, peak_memory_bytes=100 + whole, feasible=whole == 0)

    # Samples fewer than devices: model parallelism is the only start, and it does not fit.
    result = search(toy_task(toy_problem(chain(sample=2), 4), Crowded(), evaluations=400))
    assert result.initial_time_s == 7.0
    assert result.evaluation.feasible


@pytest.mark.parametrize("search", SEARCHES)
def test_progress_tells_where_the_search_stands(search: Search) -> None:
    reports: list[ProgressReport] = []
    task = toy_task(
        toy_problem(chain(), 4), Synthetic(), evaluations=50, clock=Steps(1.0), progress=reports.append
    )
    result = search(task)
    # A report after each evaluation as each takes a second, and one at the end; joint search also reports
    # while it makes estimates after an evaluation.
    evaluated = [report.num_evaluations for report in reports]
    assert [number for number, _ in groupby(evaluated)] == list(range(1, 51))
    assert evaluated[-2:] == [50, 50]
    assert len(evaluated) == 51 or result.method == "joint"
    assert {report.method for report in reports} == {result.method}
    assert all(report.stage for report in reports)
    best = [report.best_time_s for report in reports]
    assert best == sorted(best, reverse=True)
    assert best[-1] == result.evaluation.iteration_time_s


@pytest.mark.parametrize("search", SEARCHES)
def test_the_state_of_another_search_is_refused(search: Search, tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    task = toy_task(toy_problem(chain(), 4), Synthetic(), evaluations=30, state_path=path)
    search(task)
    with pytest.raises(SearchError, match="state of another search: seed was 0 there, and is 1 now"):
        search(replace(task, seed=1, resume=True))
    other = next(candidate for candidate in SEARCHES if candidate is not search)
    with pytest.raises(SearchError, match="state of another search: method was"):
        other(replace(task, resume=True))
    with pytest.raises(SearchError, match="state of another search"):
        metropolis(replace(task, resume=True))
    metropolis(task)
    with pytest.raises(SearchError, match="state of another search: method was None there"):
        search(replace(task, resume=True))


@pytest.mark.parametrize("search", SEARCHES)
def test_a_missing_or_damaged_state_is_one_clear_error(search: Search, tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    task = toy_task(toy_problem(chain(), 4), Synthetic(), evaluations=30, state_path=path)
    with pytest.raises(SearchError, match="cannot read search state"):
        search(replace(task, resume=True))
    search(task)
    content = json.loads(path.read_text())
    for name in content["procedure"]:
        damaged = {**content, "procedure": {k: v for k, v in content["procedure"].items() if k != name}}
        path.write_text(json.dumps(damaged))
        with pytest.raises(SearchError, match=f"damaged state .*{name}"):
            search(replace(task, resume=True))
    path.write_text(json.dumps({**content, "best": None, "elapsed_s": "long"}))
    with pytest.raises(SearchError, match="elapsed_s"):
        search(replace(task, resume=True))
    path.write_text(json.dumps(content))
    with pytest.raises(SearchError, match="The model, the costs or soaprl changed"):
        search(replace(task, evaluator=Synthetic(seed=9), resume=True))


@pytest.mark.parametrize("search", SEARCHES)
def test_a_state_that_cannot_be_written_is_an_error(search: Search, tmp_path: Path) -> None:
    task = toy_task(toy_problem(chain(), 2), Synthetic(), state_path=tmp_path / "nowhere" / "state.json")
    with pytest.raises(OutputError):
        search(task)
