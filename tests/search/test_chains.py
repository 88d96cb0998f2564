"""Several chains side by side give the same whatever the threads and interruptions."""

import json
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from soaprl.errors import SearchError
from soaprl.search.metropolis import MetropolisSettings, metropolis
from soaprl.search.registry import search
from soaprl.search.rounds import ChainSettings
from soaprl.search.state import ChainsState, load_chains
from soaprl.search.task import Budget, Evaluation, Evaluator, ProgressReport, SearchResult
from soaprl.simulator import Problem, Simulator, simulate
from soaprl.strategy.strategy import Strategy
from tests.search.synthetic import (
    Score,
    Steps,
    Synthetic,
    all_strategies,
    pointwise_chain,
    toy_problem,
    toy_task,
)
from tests.toys import TableCost, chain, diamond, node_cluster, tied, uniform_cluster

SHARING = ChainSettings(round_steps=16, stuck_steps=40)
SETTINGS = MetropolisSettings(beta_relative=30.0, num_chains=3, sharing=SHARING)


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


def state_of(path: Path) -> ChainsState:
    """The state at `path`, whatever search it belongs to."""
    return load_chains(path, json.loads(path.read_text())["signature"])


class Interrupting:
    """Raises KeyboardInterrupt in place of evaluation number `at`."""

    def __init__(self, evaluator: Evaluator, at: int) -> None:
        self.evaluator, self.at, self.calls = evaluator, at, 0

    def evaluate(self, strategy: Strategy) -> Evaluation:
        self.calls += 1
        if self.calls == self.at:
            raise KeyboardInterrupt
        return self.evaluator.evaluate(strategy)


class Slow(Synthetic):
    """Lets other threads run in the middle of an evaluation."""

    def evaluate(self, strategy: Strategy) -> Score:
        time.sleep(1e-5)
        return Synthetic.evaluate(self, strategy)


@pytest.mark.parametrize("seed", range(3))
def test_the_optimum_over_all_strategies_is_found(seed: int) -> None:
    graph = pointwise_chain(num_operators=3)
    evaluator = Synthetic(seed=seed, pair=1.0)
    optimum = min(evaluator.cost(s) for s in all_strategies(graph, 2))
    task = toy_task(toy_problem(graph, 2), evaluator, evaluations=3000, seed=seed)
    assert metropolis(task, SETTINGS).evaluation.iteration_time_s == optimum


@pytest.mark.parametrize("num_chains", [2, 5])
def test_the_result_does_not_depend_on_the_number_of_threads(num_chains: int) -> None:
    problem = toy_problem(chain(num_operators=4), 4)
    settings = replace(SETTINGS, num_chains=num_chains)
    results = [
        metropolis(
            toy_task(problem, Slow(), evaluations=600),
            settings,
            more_evaluators=[Slow() for _ in range(num_threads - 1)],
        )
        for num_threads in (1, 2, 3, 8)
    ]
    assert [outcome(result) for result in results] == [outcome(results[0])] * 4
    # It must have come to restarts and to improvements for this to mean anything.
    assert len(results[0].history_best_s) > 3


def test_simulators_in_threads_find_what_one_simulator_finds(tmp_path: Path) -> None:
    problem = Problem(graph=diamond(sample=8, channel=8), cluster=node_cluster(2, 2), cost=TableCost())
    settings = replace(SETTINGS, num_chains=4)
    states, results = [], []
    for num_threads in (1, 2, 4):
        path = tmp_path / f"{num_threads}.json"
        more = [Simulator(problem) for _ in range(num_threads - 1)]
        task = toy_task(problem, Simulator(problem), evaluations=1000, state_path=path)
        results.append(metropolis(task, settings, more_evaluators=more))
        states.append([member and member.chain.current for member in state_of(path).chains])
    assert [outcome(result) for result in results] == [outcome(results[0])] * 3
    # The chains themselves end at the same strategies, not only the best of them.
    assert states == [states[0]] * 3
    replayed = simulate(problem, results[0].strategy)
    assert replayed.iteration_time_s == results[0].evaluation.iteration_time_s


def test_equal_seeds_find_equal_results_and_other_seeds_or_numbers_of_chains_walk_elsewhere() -> None:
    problem = toy_problem(chain(num_operators=4), 4)

    def found(seed: int, num_chains: int) -> SearchResult:
        task = toy_task(problem, Synthetic(), evaluations=400, seed=seed)
        return metropolis(task, replace(SETTINGS, num_chains=num_chains))

    assert outcome(found(1, 3)) == outcome(found(1, 3))
    assert found(1, 3).history_evaluations.tolist() != found(2, 3).history_evaluations.tolist()
    assert found(1, 3).history_evaluations.tolist() != found(1, 4).history_evaluations.tolist()


def test_one_chain_is_the_search_of_old() -> None:
    problem = toy_problem(chain(num_operators=4), 4)
    old = metropolis(
        toy_task(problem, Synthetic(), evaluations=400), MetropolisSettings(beta_relative=5000.0)
    )
    new = search("mcmc", toy_task(problem, Synthetic(), evaluations=400), num_chains=1)
    assert outcome(new) == outcome(old)


@pytest.mark.parametrize("budget", [1, 2, 3, 4, 47, 48, 49, 50, 51, 52, 101])
def test_all_of_the_budget_of_evaluations_is_spent_and_no_more(budget: int) -> None:
    evaluators = [Synthetic(), Synthetic()]
    task = toy_task(toy_problem(chain(), 2), evaluators[0], evaluations=budget)
    result = metropolis(task, SETTINGS, more_evaluators=evaluators[1:])
    assert result.num_evaluations == sum(evaluator.calls for evaluator in evaluators) == budget


def test_chains_have_equal_shares_of_the_budget_but_for_one_evaluation(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    task = toy_task(toy_problem(chain(), 2), Synthetic(), evaluations=101, state_path=path)
    metropolis(task, SETTINGS)
    # 101 = 34 + 34 + 33, one of them for the start.
    assert [member.chain.step for member in state_of(path).chains if member] == [33, 33, 32]


def test_the_time_budget_ends_all_chains() -> None:
    clock = Steps(0.01)
    evaluator = Synthetic()
    task = toy_task(toy_problem(chain(), 2), evaluator, evaluations=None, seconds=5.0, clock=clock)
    result = metropolis(task, SETTINGS)
    assert 5.0 <= result.search_time_s < 5.2
    assert result.num_evaluations == evaluator.calls


@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize("at", [2, 3, 4, 17, 18, 48, 51, 52, 53, 180, 399])
def test_an_interrupted_and_resumed_search_equals_an_uninterrupted_one(
    tmp_path: Path, at: int, num_threads: int
) -> None:
    problem = toy_problem(chain(num_operators=4), 4)
    whole = metropolis(toy_task(problem, Synthetic(), evaluations=400), SETTINGS)
    path = tmp_path / "state.json"
    task = toy_task(problem, Interrupting(Slow(), at), evaluations=400, state_path=path)
    stopped = metropolis(task, SETTINGS, more_evaluators=[Slow() for _ in range(num_threads - 1)])
    # With more threads, the interrupted evaluator may be idle until the others are done.
    assert stopped.interrupted or num_threads > 1
    again = replace(task, evaluator=Slow(), resume=True)
    resumed = metropolis(again, SETTINGS, more_evaluators=[Slow() for _ in range(num_threads - 1)])
    assert not resumed.interrupted
    assert outcome(resumed) == outcome(whole)


def test_a_search_interrupted_many_times_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    problem = toy_problem(chain(num_operators=4), 4)
    whole = metropolis(toy_task(problem, Synthetic(), evaluations=300), SETTINGS)
    task = toy_task(problem, Synthetic(), evaluations=300, state_path=tmp_path / "state.json")
    result, sessions = None, 0
    while result is None or result.interrupted:
        # Six evaluations, two of each chain, are replayed on resumption.
        evaluator = Interrupting(Synthetic(), 37)
        result = metropolis(replace(task, evaluator=evaluator, resume=sessions > 0), SETTINGS)
        sessions += 1
    assert sessions > 8
    assert outcome(result) == outcome(whole)


@pytest.mark.parametrize("first", [1, 2, 50, 51, 52, 99])
def test_a_finished_search_goes_on_under_a_larger_budget(tmp_path: Path, first: int) -> None:
    problem = toy_problem(chain(num_operators=4), 4)
    task = toy_task(problem, Synthetic(), evaluations=first, state_path=tmp_path / "state.json")
    metropolis(task, SETTINGS)
    longer = replace(task, budget=Budget(evaluations=300), resume=True)
    straight = metropolis(toy_task(problem, Synthetic(), evaluations=300), SETTINGS)
    assert outcome(metropolis(longer, SETTINGS)) == outcome(straight)


def test_an_interrupted_search_resumes_bit_for_bit_in_fresh_simulators(tmp_path: Path) -> None:
    problem = Problem(graph=tied(sample=4, channel=4), cluster=uniform_cluster(4), cost=TableCost())
    path = tmp_path / "state.json"
    whole = metropolis(toy_task(problem, Simulator(problem), evaluations=600), SETTINGS)
    task = toy_task(problem, Interrupting(Simulator(problem), 150), evaluations=600, state_path=path)
    assert metropolis(task, SETTINGS, more_evaluators=[Simulator(problem)]).interrupted
    again = replace(task, evaluator=Simulator(problem), resume=True)
    assert outcome(metropolis(again, SETTINGS, more_evaluators=[Simulator(problem)])) == outcome(whole)


def test_the_best_of_all_is_never_worse_than_what_any_chain_found(tmp_path: Path) -> None:
    seen: list[float] = []

    class Watching(Synthetic):
        def evaluate(self, strategy: Strategy) -> Score:
            score = Synthetic.evaluate(self, strategy)
            seen.append(score.iteration_time_s)
            return score

    path = tmp_path / "state.json"
    task = toy_task(toy_problem(chain(num_operators=4), 4), Watching(), evaluations=500, state_path=path)
    # Warm enough for chains to leave the best that they have seen.
    result = metropolis(task, replace(SETTINGS, beta_relative=5.0))
    bests = [member.best.iteration_time_s for member in state_of(path).chains if member]
    assert result.evaluation.iteration_time_s == min(bests)
    # Tied moves that the Hastings ratio refuses count as well.
    assert result.evaluation.iteration_time_s == min(seen)


def test_the_history_is_that_of_chains_that_take_turns() -> None:
    problem = toy_problem(chain(num_operators=4), 4)
    scores: dict[int, list[float]] = {}

    class Watching(Synthetic):
        """Has one chain only: its scores are those of that chain, in order."""

        def evaluate(self, strategy: Strategy) -> Score:
            score = Synthetic.evaluate(self, strategy)
            order.append(score.iteration_time_s)
            return score

    order: list[float] = []
    # A single round: on one thread, each chain makes all of its 20 evaluations at once.
    settings = replace(SETTINGS, sharing=ChainSettings(round_steps=1000, stuck_steps=1000))
    result = metropolis(toy_task(problem, Watching(), evaluations=60), settings)
    for number in range(3):
        scores[number] = order[20 * number : 20 * number + 20]
    turns = [scores[number][step] for step in range(20) for number in range(3)]
    falling = [i for i, value in enumerate(turns) if value < min(turns[:i], default=float("inf"))]
    assert result.history_evaluations.tolist() == [i + 1 for i in falling]
    assert result.history_best_s.tolist() == [turns[i] for i in falling]
    assert result.initial_time_s == turns[0]


class Divided:
    """The first `good` evaluations ever better, then nothing better."""

    def __init__(self, good: int) -> None:
        self.good, self.calls = good, 0

    def evaluate(self, strategy: Strategy) -> Score:
        self.calls += 1
        return Score(iteration_time_s=1.0 / self.calls if self.calls <= self.good else 2.0)


def test_stuck_chains_restart_from_the_best_and_others_stay(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    # On one thread the chains walk a round one after the other, so the first 9 evaluations are chain 0's.
    settings = replace(
        SETTINGS,
        beta_relative=1e9,
        num_chains=2,
        sharing=ChainSettings(round_steps=8, stuck_steps=8),
        proposal=replace(SETTINGS.proposal, tied_moves=0.0),
    )
    task = toy_task(toy_problem(chain(num_operators=4), 4), Divided(9), evaluations=18, state_path=path)
    metropolis(task, settings)
    before = state_of(path)
    assert [member and member.restarts for member in before.chains] == [0, 0]
    one_more = replace(task, evaluator=Fixed(before), budget=Budget(evaluations=20), resume=True)
    metropolis(one_more, settings)
    first, second = state_of(path).chains
    assert first is not None
    assert second is not None
    # Chain 0 improved in its last step; chain 1 made 8 steps that brought nothing.
    assert (first.restarts, second.restarts) == (0, 1)
    assert second.best == first.best
    assert second.chain.current == first.chain.current
    assert second.chain.improved_step == 8
    # Chain 1 saw 2 s only, and accepts what is as fast; its step after the restart is refused.
    assert (second.chain.step, second.chain.accepted) == (9, 8)
    assert second.chain.time_scale_s == pytest.approx(1.0 / 9 / 1e9)


class Fixed:
    """Answers from the strategies in a state, and 2 s for every other one."""

    def __init__(self, state: ChainsState) -> None:
        kept = [part for m in state.chains if m for part in (m.best, m.chain.current)]
        self.times = {str(part.configs): part.iteration_time_s for part in kept}

    def evaluate(self, strategy: Strategy) -> Score:
        key = str([(config.degrees, config.devices) for config in strategy.configs])
        return Score(iteration_time_s=self.times.get(key, 2.0))


def test_every_chain_has_random_numbers_of_its_own() -> None:
    seen: list[Strategy] = []

    class Watching(Synthetic):
        def evaluate(self, strategy: Strategy) -> Score:
            seen.append(strategy)
            return Score(iteration_time_s=float(len(seen)))

    # Without random starts both chains begin at data parallelism and never leave it.
    settings = replace(SETTINGS, beta_relative=1e12, num_chains=2, num_random_starts=0)
    settings = replace(settings, sharing=ChainSettings(round_steps=20))
    metropolis(toy_task(toy_problem(chain(), 4), Watching(), evaluations=42), settings)
    assert seen[0] == seen[21]
    assert seen[1:21] != seen[22:]


def test_the_state_file_is_whole_whenever_it_is_looked_at(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    seen: list[int] = []

    class Looking(Slow):
        def evaluate(self, strategy: Strategy) -> Score:
            if path.exists():
                content = json.loads(path.read_text())
                seen.append(sum(m["chain"]["step"] + 1 for m in content["chains"] if m))
            return Slow.evaluate(self, strategy)

    # The clock moves on with every reading, so that the state is saved after each round.
    task = toy_task(toy_problem(chain(), 2), Looking(), evaluations=300, clock=Steps(1.0), state_path=path)
    sharing = ChainSettings(round_steps=4, stuck_steps=8)
    metropolis(task, replace(SETTINGS, save_every_s=0.5, sharing=sharing), more_evaluators=[Looking()])
    assert len(set(seen)) > 10
    assert [file.name for file in tmp_path.iterdir()] == ["state.json"]


def test_after_an_interrupt_by_the_listener_the_state_holds_every_evaluation(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    evaluators = [Slow(), Slow()]

    def stop(report: ProgressReport) -> None:
        if report.num_evaluations > 50:
            raise KeyboardInterrupt

    problem = toy_problem(chain(num_operators=4), 4)
    task = toy_task(
        problem, evaluators[0], evaluations=100_000, clock=Steps(1.0), progress=stop, state_path=path
    )
    result = metropolis(task, SETTINGS, more_evaluators=evaluators[1:])
    assert result.interrupted
    assert 50 < result.num_evaluations < 100_000
    state = state_of(path)
    assert sum(1 + member.chain.step for member in state.chains if member) == result.num_evaluations
    # A step whose evaluation is over is never lost: every chain ends its step before it stops.
    assert sum(evaluator.calls for evaluator in evaluators) == result.num_evaluations
    assert min(m.best.iteration_time_s for m in state.chains if m) == result.evaluation.iteration_time_s


def test_chains_are_heard_of_kept_and_interrupted_in_the_middle_of_a_round(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    heard: list[int] = []

    def stop(report: ProgressReport) -> None:
        heard.append(report.num_evaluations)
        if path.exists() and heard[-1] > 50:
            raise KeyboardInterrupt

    problem = toy_problem(chain(num_operators=4), 4)
    task = toy_task(problem, Slow(), evaluations=100_000, clock=Steps(1.0), progress=stop, state_path=path)
    settings = replace(SETTINGS, save_every_s=0.5, sharing=ChainSettings(round_steps=1_000_000))
    result = metropolis(task, settings, more_evaluators=[Slow(), Slow()])
    assert result.interrupted
    assert 50 < heard[-1] <= result.num_evaluations < 100_000


def test_an_interrupt_before_anything_was_found_is_passed_on() -> None:
    task = toy_task(toy_problem(chain(), 2), Interrupting(Synthetic(), 1))
    with pytest.raises(KeyboardInterrupt):
        metropolis(task, SETTINGS)


def test_an_error_of_one_chain_ends_the_search_with_it() -> None:
    class Failing(Slow):
        def evaluate(self, strategy: Strategy) -> Score:
            if self.calls == 30:
                raise SearchError("no answer today")
            return Slow.evaluate(self, strategy)

    other = Slow()
    task = toy_task(toy_problem(chain(), 2), Failing(), evaluations=10_000_000)
    settings = replace(SETTINGS, sharing=ChainSettings(round_steps=1_000_000))
    with pytest.raises(SearchError, match="no answer today"):
        metropolis(task, settings, more_evaluators=[other])
    # The chain in the other thread was told to stop long before its million steps.
    assert other.calls < 100_000


@pytest.mark.parametrize(
    ("then", "now", "message"),
    [(3, 4, "num_chains was 3 there, and is 4 now"), (3, 1, "was 3 there"), (1, 3, "was 1 there")],
)
def test_the_state_of_another_number_of_chains_is_refused(
    tmp_path: Path, then: int, now: int, message: str
) -> None:
    task = toy_task(toy_problem(chain(), 2), Synthetic(), state_path=tmp_path / "state.json")
    metropolis(task, replace(SETTINGS, num_chains=then))
    with pytest.raises(SearchError, match=message):
        metropolis(replace(task, resume=True), replace(SETTINGS, num_chains=now))


def test_a_state_that_lacks_a_chain_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    task = toy_task(toy_problem(chain(), 2), Synthetic(), state_path=path)
    metropolis(task, SETTINGS)
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "chains": content["chains"][:2]}))
    with pytest.raises(SearchError, match="expected the state of 3 chains"):
        metropolis(replace(task, resume=True), SETTINGS)


def test_chains_begin_at_all_starts_in_turn() -> None:
    first: list[Strategy] = []

    class Watching(Synthetic):
        def evaluate(self, strategy: Strategy) -> Score:
            first.append(strategy)
            return Synthetic.evaluate(self, strategy)

    # As many evaluations as chains: only the starts.
    task = toy_task(toy_problem(chain(num_operators=3), 4), Watching(), evaluations=5)
    metropolis(task, replace(SETTINGS, num_chains=5))
    assert sorted(Counter(first).values()) == [2, 3]
    assert first[0] == first[2] == first[4]


@pytest.mark.parametrize(
    ("change", "message"),
    [({"num_chains": 0}, "1 or more chains"), ({"num_chains": -2}, "1 or more chains, found -2")],
)
def test_numbers_of_chains_out_of_range_are_errors(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SearchError, match=message):
        MetropolisSettings(**change)
    with pytest.raises(SearchError, match=message):
        search("mcmc", toy_task(toy_problem(chain(), 2), Synthetic()), **change)


@pytest.mark.parametrize("name", ["round_steps", "stuck_steps"])
def test_settings_of_sharing_out_of_range_are_errors(name: str) -> None:
    with pytest.raises(SearchError, match=f"{name} of at least 1"):
        ChainSettings(**{name: 0})


def test_methods_without_chains_refuse_several() -> None:
    task = toy_task(toy_problem(chain(), 2), Synthetic())
    with pytest.raises(SearchError, match="'random' cannot walk 2 chains side by side; these can: mcmc"):
        search("random", task, num_chains=2)
