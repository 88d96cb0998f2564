import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from soaprl.errors import OutputError, SearchError
from soaprl.search.metropolis import Expert, MetropolisSettings, metropolis
from soaprl.search.proposals import ProposalSettings
from soaprl.search.task import Budget, Evaluation, Evaluator, ProgressReport, SearchResult
from soaprl.strategy.baselines import data_parallel, single_device
from soaprl.strategy.strategy import Strategy
from soaprl.strategy.validation import check_strategy
from tests.search.synthetic import (
    Score,
    Steps,
    Synthetic,
    all_strategies,
    pointwise_chain,
    toy_problem,
    toy_task,
)
from tests.toys import chain, tied

SETTINGS = MetropolisSettings(beta_relative=30.0)


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


@pytest.mark.parametrize("seed", range(4))
def test_the_optimum_over_all_strategies_is_found(seed: int) -> None:
    graph = pointwise_chain(num_operators=3)
    evaluator = Synthetic(seed=seed, pair=1.0)
    optimum = min(evaluator.cost(s) for s in all_strategies(graph, 2))
    task = toy_task(toy_problem(graph, 2), evaluator, evaluations=3000, seed=seed)
    assert metropolis(task, SETTINGS).evaluation.iteration_time_s == optimum


def test_the_literally_uniform_proposal_finds_the_optimum_of_three_linear_operators() -> None:
    graph = chain(num_operators=3, sample=2, channel=2)
    evaluator = Synthetic(seed=7)
    strategies = list(all_strategies(graph, 2))
    # 2 single tasks, and 2^2 placements for each of three factors that can be halved.
    assert len(strategies) == (2 + 3 * 4) ** 3
    optimum = min(evaluator.cost(s) for s in strategies)
    settings = replace(SETTINGS, proposal=ProposalSettings(kind="uniform"))
    task = toy_task(toy_problem(graph, 2), evaluator, evaluations=6000)
    assert metropolis(task, settings).evaluation.iteration_time_s == optimum


def test_equal_seeds_find_equal_results_and_other_seeds_walk_elsewhere() -> None:
    problem = toy_problem(chain(num_operators=4), 4)
    first, second, other = (
        metropolis(toy_task(problem, Synthetic(), evaluations=400, seed=seed), SETTINGS) for seed in (1, 1, 2)
    )
    assert outcome(first) == outcome(second)
    assert first.history_evaluations.tolist() != other.history_evaluations.tolist()


@pytest.mark.parametrize("budget", [1, 2, 3, 10, 101])
def test_the_budget_of_evaluations_is_never_exceeded(budget: int) -> None:
    evaluator = Synthetic()
    task = toy_task(toy_problem(chain(), 2), evaluator, evaluations=budget)
    result = metropolis(task, replace(SETTINGS, patience=1.0))
    assert result.num_evaluations == evaluator.calls <= budget
    check_strategy(task.problem.graph, 2, result.strategy)


def test_starts_share_the_budget_equally_when_each_keeps_improving() -> None:
    class EverBetter:
        """Each evaluation is faster than all before."""

        calls = 0

        def evaluate(self, strategy: Strategy) -> Score:
            self.calls += 1
            return Score(iteration_time_s=1.0 / self.calls)

    stages: list[tuple[str, int]] = []
    task = toy_task(
        toy_problem(chain(), 2),
        EverBetter(),
        evaluations=90,
        clock=Steps(1.0),
        progress=lambda report: stages.append((report.stage, report.num_evaluations)),
    )
    result = metropolis(task, replace(SETTINGS, num_random_starts=2))
    assert result.num_evaluations == 90
    ends = dict(stages)
    assert ends == {"from data-parallel": 30, "from random-0": 60, "from random-1": 90}


class Flat:
    """Nothing ever improves."""

    def __init__(self) -> None:
        self.calls = 0

    def evaluate(self, strategy: Strategy) -> Score:
        self.calls += 1
        return Score(iteration_time_s=1.0)


def test_a_start_ends_when_half_of_its_share_passed_without_improvement() -> None:
    evaluator = Flat()
    task = toy_task(toy_problem(chain(), 2), evaluator, evaluations=100)
    metropolis(task, replace(SETTINGS, num_random_starts=1))
    # Data parallelism has a share of 50: its own evaluation and 25 steps. The random start has the 74 that
    # are left: its own evaluation and 37 steps.
    assert evaluator.calls == (1 + 25) + (1 + 37)


def test_the_time_budget_ends_starts_in_the_same_way() -> None:
    evaluator = Flat()
    task = toy_task(toy_problem(chain(), 2), evaluator, evaluations=None, seconds=10.0, clock=Steps(0.01))
    result = metropolis(task, replace(SETTINGS, num_random_starts=0))
    # Half of 10 s without improvement; every reading of the clock takes 0.01 s.
    assert 5.0 <= result.search_time_s < 5.2
    assert result.num_evaluations == evaluator.calls


def test_without_a_limit_the_search_is_refused() -> None:
    task = toy_task(toy_problem(chain(), 2), Synthetic(), evaluations=None)
    with pytest.raises(SearchError, match="'mcmc' needs a budget"):
        metropolis(task)


@pytest.mark.parametrize("at", [2, 40, 120, 201, 202, 203, 250])
def test_an_interrupted_and_resumed_search_equals_an_uninterrupted_one(tmp_path: Path, at: int) -> None:
    problem = toy_problem(chain(num_operators=4), 4)
    settings = replace(SETTINGS, patience=1.0)
    whole = metropolis(toy_task(problem, Synthetic(), evaluations=400), settings)
    path = tmp_path / "state.json"
    task = toy_task(problem, Interrupting(Synthetic(), at), evaluations=400, state_path=path)
    stopped = metropolis(task, settings)
    assert stopped.interrupted
    assert stopped.num_evaluations == at - 1
    resumed = metropolis(replace(task, evaluator=Synthetic(), resume=True), settings)
    assert not resumed.interrupted
    assert outcome(resumed) == outcome(whole)


def test_a_search_interrupted_many_times_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    problem = toy_problem(chain(num_operators=4), 4)
    whole = metropolis(toy_task(problem, Synthetic(), evaluations=300), SETTINGS)
    task = toy_task(problem, Synthetic(), evaluations=300, state_path=tmp_path / "state.json")
    result, sessions = None, 0
    while result is None or result.interrupted:
        # Two evaluations are replayed on resumption.
        evaluator = Interrupting(Synthetic(), 30)
        result = metropolis(replace(task, evaluator=evaluator, resume=sessions > 0), SETTINGS)
        sessions += 1
    assert sessions > 5
    assert outcome(result) == outcome(whole)


class InterruptingListener:
    """Interrupts when it hears of the search for the `at`-th time, and perhaps the next time, too."""

    def __init__(self, at: int, *, again: bool) -> None:
        self.heard: list[int] = []
        self.strikes = (at, at + 1) if again else (at,)

    def __call__(self, report: ProgressReport) -> None:
        self.heard.append(report.num_evaluations)
        if len(self.heard) in self.strikes:
            raise KeyboardInterrupt


@pytest.mark.parametrize("again", [False, True], ids=["once", "twice"])
def test_an_interrupt_by_the_listener_loses_no_step_wherever_it_comes(tmp_path: Path, again: bool) -> None:
    problem = toy_problem(chain(num_operators=4), 4)
    settings = replace(SETTINGS, patience=1.0)
    whole = metropolis(toy_task(problem, Synthetic(), evaluations=40), settings)
    # The listener hears of each step and of the end of each of the two starts: 2 x (19 + 1) reports.
    for at in range(1, 41):
        listener, path = InterruptingListener(at, again=again), tmp_path / "state.json"
        evaluator, clock = Synthetic(), Steps(1.0)
        task = toy_task(problem, evaluator, evaluations=40, clock=clock, progress=listener, state_path=path)
        stopped = metropolis(task, settings)
        assert stopped.interrupted
        assert stopped.num_evaluations == listener.heard[-1] == evaluator.calls
        resumed = metropolis(replace(task, progress=None, resume=True), settings)
        assert outcome(resumed) == outcome(whole)


def test_a_search_may_begin_with_what_it_would_never_propose() -> None:
    # Data parallelism has two tasks for each operator, where proposals have one.
    problem = toy_problem(tied(sample=2, channel=2), 2)
    settings = replace(SETTINGS, proposal=ProposalSettings(max_tasks=1), beta_relative=0.01)
    found = metropolis(toy_task(problem, Synthetic(), evaluations=400), settings)
    assert found.num_accepted > 100


def test_a_finished_search_goes_on_under_a_larger_budget(tmp_path: Path) -> None:
    problem = toy_problem(chain(num_operators=4), 4)
    settings = replace(SETTINGS, num_random_starts=0, patience=1.0)
    task = toy_task(problem, Synthetic(), evaluations=50, state_path=tmp_path / "state.json")
    metropolis(task, settings)
    longer = replace(task, budget=Budget(evaluations=200), resume=True)
    straight = metropolis(toy_task(problem, Synthetic(), evaluations=200), settings)
    assert outcome(metropolis(longer, settings)) == outcome(straight)


def test_the_state_file_is_whole_whenever_it_is_looked_at(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    seen: list[int] = []

    class Looking(Synthetic):
        def evaluate(self, strategy: Strategy) -> Score:
            if path.exists():
                seen.append(json.loads(path.read_text())["chain"]["step"])
            return Synthetic.evaluate(self, strategy)

    # The clock moves on with every step, so that the state is saved after each of them.
    task = toy_task(toy_problem(chain(), 2), Looking(), evaluations=30, clock=Steps(1.0), state_path=path)
    metropolis(task, replace(SETTINGS, num_random_starts=0, save_every_s=0.5))
    assert len(set(seen)) > 10
    assert seen == sorted(seen)
    assert [file.name for file in tmp_path.iterdir()] == ["state.json"]


def test_an_interrupt_before_anything_was_found_is_passed_on() -> None:
    task = toy_task(toy_problem(chain(), 2), Interrupting(Synthetic(), 1))
    with pytest.raises(KeyboardInterrupt):
        metropolis(task)


def test_an_interrupt_by_the_last_report_of_a_start_loses_none_of_its_steps(tmp_path: Path) -> None:
    path, evaluator = tmp_path / "state.json", Synthetic()

    def stop(report: ProgressReport) -> None:
        # The first of two starts has half of the budget.
        if report.num_evaluations == 15:
            raise KeyboardInterrupt

    graph, settings = chain(), replace(SETTINGS, num_random_starts=1, patience=1.0)
    task = toy_task(toy_problem(graph, 2), evaluator, evaluations=30, state_path=path)
    result = metropolis(replace(task, progress=stop), settings)
    assert result.interrupted
    assert result.num_evaluations == 15
    resumed = metropolis(replace(task, resume=True), settings)
    assert outcome(resumed) == outcome(metropolis(replace(task, state_path=None), settings))


@pytest.mark.parametrize(
    ("change", "name"),
    [({"seed": 5}, "seed was 0"), ({"problem": toy_problem(chain(), 4)}, "cluster was")],
)
def test_the_state_of_another_search_is_refused(tmp_path: Path, change: dict[str, Any], name: str) -> None:
    task = toy_task(toy_problem(chain(), 2), Synthetic(), state_path=tmp_path / "state.json")
    metropolis(task, SETTINGS)
    with pytest.raises(SearchError, match=name):
        metropolis(replace(task, resume=True, **change), SETTINGS)


def test_a_state_with_another_temperature_is_refused(tmp_path: Path) -> None:
    task = toy_task(toy_problem(chain(), 2), Synthetic(), state_path=tmp_path / "state.json")
    metropolis(task, SETTINGS)
    with pytest.raises(SearchError, match=r"beta_relative was 30.0 there, and is 31.0 now"):
        metropolis(replace(task, resume=True), replace(SETTINGS, beta_relative=31.0))


def test_a_state_whose_times_do_not_replay_is_refused(tmp_path: Path) -> None:
    task = toy_task(toy_problem(chain(), 2), Synthetic(seed=1), state_path=tmp_path / "state.json")
    metropolis(task, SETTINGS)
    with pytest.raises(SearchError, match="costs or soaprl changed"):
        metropolis(replace(task, evaluator=Synthetic(seed=2), resume=True), SETTINGS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read search state"),
        ("{", "expected a search state in JSON"),
        ("[" * 100_000, "expected a search state in JSON"),
        ("[]", 'expected a search state, JSON with "format"'),
        ('{"format": "soaprl-strategy"}', 'expected a search state, JSON with "format"'),
        ('{"format": "soaprl-search-state", "version": 9}', "version 1, found 9"),
        ('{"format": "soaprl-search-state", "version": 1, "start": "x"}', "at signature: Field required"),
    ],
)
def test_a_missing_or_malformed_state_file_is_an_error(
    tmp_path: Path, content: str | None, message: str
) -> None:
    path = tmp_path / "state.json"
    if content is not None:
        path.write_text(content)
    task = toy_task(toy_problem(chain(), 2), Synthetic(), state_path=path, resume=True)
    with pytest.raises(SearchError, match=message):
        metropolis(task)


def test_a_state_path_in_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    task = toy_task(toy_problem(chain(), 2), Synthetic(), state_path=tmp_path / "missing" / "state.json")
    with pytest.raises(OutputError, match="cannot write"):
        metropolis(task)


def test_experts_are_starts_where_they_apply() -> None:
    problem = toy_problem(chain(), 2)
    stages: list[str] = []
    task = toy_task(problem, Synthetic(), progress=lambda report: stages.append(report.stage))
    experts: list[tuple[str, Expert]] = [
        ("whole", lambda problem: single_device(problem.graph, problem.cluster)),
        ("never", lambda problem: None),
    ]
    metropolis(task, SETTINGS, experts=experts)
    assert list(dict.fromkeys(stages)) == ["from data-parallel", "from whole", "from random-0"]


def test_every_start_has_random_numbers_of_its_own() -> None:
    problem = toy_problem(chain(), 2)
    seen: list[Strategy] = []

    class Watching:
        def evaluate(self, strategy: Strategy) -> Score:
            seen.append(strategy)
            return Score(iteration_time_s=float(len(seen)))

    # The expert starts from data parallelism as well; at this temperature nothing slower is accepted.
    again: list[tuple[str, Expert]] = [
        ("again", lambda problem: data_parallel(problem.graph, problem.cluster))
    ]
    settings = MetropolisSettings(beta_relative=1e12, num_random_starts=0, patience=1.0)
    metropolis(toy_task(problem, Watching(), evaluations=40), settings, experts=again)
    assert seen[0] == seen[20]
    assert seen[1:20] != seen[21:]


def test_with_a_batch_smaller_than_the_devices_the_search_starts_at_random() -> None:
    problem = toy_problem(chain(sample=2), 4)
    stages: list[str] = []
    task = toy_task(problem, Synthetic(), progress=lambda report: stages.append(report.stage))
    metropolis(task, replace(SETTINGS, num_random_starts=0))
    assert set(stages) == {"from random-0"}


def test_a_search_leaves_what_does_not_fit_and_never_returns() -> None:
    graph = chain(num_operators=3)

    class Tight(Synthetic):
        """Only strategies with at most one task of the first operator fit; data parallelism does not."""

        def evaluate(self, strategy: Strategy) -> Score:
            tasks = strategy.configs[0].num_tasks
            memory = 100 * sum(config.num_tasks for config in strategy.configs)
            return Score(iteration_time_s=self.cost(strategy), peak_memory_bytes=memory, feasible=tasks == 1)

    result = metropolis(
        toy_task(toy_problem(graph, 2), Tight(), evaluations=400), replace(SETTINGS, num_random_starts=0)
    )
    assert result.evaluation.feasible
    assert result.strategy.configs[0].num_tasks == 1


def test_where_nothing_fits_the_strategy_of_least_memory_is_returned() -> None:
    class NeverFits:
        def evaluate(self, strategy: Strategy) -> Score:
            memory = sum(config.num_tasks for config in strategy.configs)
            return Score(iteration_time_s=1.0, peak_memory_bytes=memory, feasible=False)

    result = metropolis(toy_task(toy_problem(chain(num_operators=2), 2), NeverFits(), evaluations=400))
    assert not result.evaluation.feasible
    # One task for each of two operators.
    assert result.evaluation.peak_memory_bytes == 2
    assert result.history_best_s.size == 0


def test_the_history_descends_to_the_result() -> None:
    result = metropolis(toy_task(toy_problem(chain(num_operators=4), 4), Synthetic(), evaluations=300))
    times = result.history_best_s.tolist()
    assert times == sorted(set(times), reverse=True)
    assert times[-1] == result.evaluation.iteration_time_s
    assert (result.history_evaluations[0], result.history_best_s[0]) == (1, result.initial_time_s)
    assert result.history_evaluations[-1] <= result.num_evaluations


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"beta_relative": 0.0}, "beta_relative above 0"),
        ({"patience": 0.0}, "patience above 0"),
        ({"num_random_starts": -1}, "0 or more random starts"),
    ],
)
def test_settings_out_of_range_are_errors(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SearchError, match=message):
        MetropolisSettings(**change)


@pytest.mark.parametrize(
    ("limits", "message"), [({"evaluations": 0}, "at least 1"), ({"seconds": 0.0}, "more than 0 seconds")]
)
def test_budgets_without_anything_to_spend_are_errors(limits: dict[str, Any], message: str) -> None:
    with pytest.raises(SearchError, match=message):
        Budget(**limits)
