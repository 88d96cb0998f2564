from dataclasses import replace

import pytest

from soaprl.errors import SearchError
from soaprl.search.annealing import Annealing, AnnealingSettings, annealing
from soaprl.search.experts import starting_strategies
from tests.search.synthetic import Score, Synthetic, all_strategies, pointwise_chain, toy_problem, toy_task
from tests.toys import chain, on_one_device

SETTINGS = AnnealingSettings(hot=0.5, cold=0.005, first_run_steps=4)


def procedure(settings: AnnealingSettings = SETTINGS) -> Annealing:
    task = toy_task(toy_problem(chain(), 4), Synthetic())
    return Annealing(task, starting_strategies(task.problem), settings)


@pytest.mark.parametrize("seed", range(4))
def test_the_optimum_over_all_strategies_is_found(seed: int) -> None:
    graph = pointwise_chain(num_operators=3)
    evaluator = Synthetic(seed=seed, pair=1.0)
    optimum = min(evaluator.cost(s) for s in all_strategies(graph, 2))
    task = toy_task(toy_problem(graph, 2), evaluator, evaluations=3000, seed=seed)
    found = annealing(task, None, AnnealingSettings(hot=0.1, cold=1e-3, first_run_steps=256))
    assert found.evaluation.iteration_time_s == optimum


def test_the_temperature_falls_geometrically_and_runs_double() -> None:
    annealer = procedure()
    state = annealer.begin()
    temperatures, runs = [], []
    for _ in range(13):
        trial = annealer.propose(state)
        state = annealer.advance(state, trial, Score(iteration_time_s=1.0))
        temperatures.append(float(annealer.view(state).stage.split()[-1]))
        runs.append(state.run)
    # 0.5 (0.01) ** (i / L), with L = 4 and then 8; the view shows two digits.
    first = [0.5 * 0.01 ** (i / 4) for i in range(4)]
    second = [0.5 * 0.01 ** (i / 8) for i in range(8)]
    assert temperatures == pytest.approx([*first, *second, 0.5], rel=0.05)
    assert runs == [0] * 4 + [1] * 8 + [2]


def test_every_run_begins_with_the_best_strategy_so_far() -> None:
    annealer = procedure()
    start = annealer.propose(annealer.begin())
    state = annealer.advance(annealer.begin(), start, Score(iteration_time_s=1.0))
    better = annealer.propose(state)
    state = annealer.advance(state, better, Score(iteration_time_s=0.5))
    for _ in range(3):
        # A little worse than the best: some of these are accepted at such a temperature, and left behind.
        state = annealer.advance(state, annealer.propose(state), Score(iteration_time_s=0.5001))
    assert state.run == 1
    assert state.num_accepted > 1
    assert state.current is not None
    assert state.current.strategy == better.strategy
    assert state.scale_s == 0.5


def test_what_is_worse_is_accepted_as_often_as_the_temperature_says() -> None:
    # At temperature 1 relative to a time of 1, something worse by 1 is accepted with probability 1 / e.
    annealer = procedure(AnnealingSettings(hot=1.0, cold=1.0, first_run_steps=10**9))
    state = annealer.begin()
    state = annealer.advance(state, annealer.propose(state), Score(iteration_time_s=1.0))
    accepted = 0
    for step in range(4000):
        here = replace(state, step=step)
        accepted += annealer.advance(here, annealer.propose(here), Score(iteration_time_s=2.0)).num_accepted
    # 4000 draws: a standard deviation of 0.0076.
    assert accepted / 4000 == pytest.approx(0.3679, abs=0.03)


def test_the_limit_of_a_trial_is_the_longest_time_that_is_accepted() -> None:
    annealer = procedure(AnnealingSettings(hot=0.1, cold=0.1, first_run_steps=10**9))
    state = annealer.begin()
    state = annealer.advance(state, annealer.propose(state), Score(iteration_time_s=1.0))
    for step in range(50):
        here = replace(state, step=step)
        trial = annealer.propose(here)
        just = annealer.advance(here, trial, Score(iteration_time_s=trial.limit_s))
        above = annealer.advance(here, trial, Score(iteration_time_s=trial.limit_s * (1 + 1e-9)))
        assert (just.num_accepted, above.num_accepted) == (1, 0)
        assert annealer.advance(here, trial, None) == above


def test_annealing_from_a_given_strategy_is_never_worse() -> None:
    problem = toy_problem(chain(), 4)
    start = on_one_device(problem.graph)
    evaluator = Synthetic()
    result = annealing(toy_task(problem, evaluator, evaluations=100), start)
    assert result.initial_time_s == evaluator.cost(start)
    assert result.evaluation.iteration_time_s <= result.initial_time_s


@pytest.mark.parametrize(
    "settings", [{"hot": 1e-6}, {"cold": 0.0}, {"hot": float("inf")}, {"first_run_steps": 0}]
)
def test_settings_that_make_no_schedule_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(SearchError, match="expected"):
        AnnealingSettings(**settings)  # type: ignore[arg-type]
