import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from soaprl.errors import SearchError
from soaprl.search.evolution import Evolution, EvolutionSettings, Generation, evolution, neighbours, subgraph
from soaprl.search.experts import starting_strategies
from soaprl.search.stepping import Scored
from soaprl.strategy.strategy import OpConfig, Strategy
from tests.search.synthetic import Score, Synthetic, all_strategies, pointwise_chain, toy_problem, toy_task
from tests.toys import chain, crossing, diamond


def evolver(*, seed: int = 0, **options: float) -> Evolution:
    task = toy_task(toy_problem(chain(num_operators=6), 4), Synthetic(), seed=seed)
    return Evolution(task, starting_strategies(task.problem), EvolutionSettings(**options))  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(4))
def test_the_optimum_over_all_strategies_is_found(seed: int) -> None:
    graph = pointwise_chain(num_operators=3)
    evaluator = Synthetic(seed=seed, pair=1.0)
    optimum = min(evaluator.cost(s) for s in all_strategies(graph, 2))
    task = toy_task(toy_problem(graph, 2), evaluator, evaluations=3000, seed=seed)
    assert evolution(task).evaluation.iteration_time_s == optimum


@pytest.mark.parametrize("seed", range(5))
def test_the_result_is_at_least_as_good_as_the_best_first_member(seed: int) -> None:
    problem, population = toy_problem(chain(num_operators=6), 4), 16
    small = EvolutionSettings(population=population)
    first = evolution(toy_task(problem, Synthetic(), evaluations=population, seed=seed), None, small)
    later = evolution(toy_task(problem, Synthetic(), evaluations=500, seed=seed), None, small)
    assert later.evaluation.iteration_time_s <= first.evaluation.iteration_time_s <= first.initial_time_s
    assert later.history_best_s[: len(first.history_best_s)].tolist() == first.history_best_s.tolist()


def test_members_only_get_better_and_stay_as_many() -> None:
    procedure, evaluator = evolver(population=8), Synthetic()
    state = procedure.begin()
    worst = [float("inf")]
    for number in range(300):
        trial = procedure.propose(state)
        state = procedure.advance(state, trial, evaluator.evaluate(trial.strategy))
        times = [member.evaluation.iteration_time_s for member in state.members]
        assert len(times) == min(number + 1, 8)
        if len(times) == 8:
            assert max(times) <= worst[-1]
            worst.append(max(times))
    assert worst[-1] < worst[1]
    assert state.num_accepted > 10


def test_a_child_with_a_members_time_or_past_the_limit_is_not_taken() -> None:
    procedure = evolver(population=3)
    state = procedure.begin()
    for time_s in (1.0, 2.0, 3.0):
        state = procedure.advance(state, procedure.propose(state), Score(iteration_time_s=time_s))
    trial = procedure.propose(state)
    assert trial.limit_s == 3.0
    for refused in (Score(iteration_time_s=2.0), Score(iteration_time_s=3.0), None):
        after = procedure.advance(state, trial, refused)
        assert (after.members, after.step) == (state.members, 1)
    taken = procedure.advance(state, trial, Score(iteration_time_s=2.5))
    assert [member.evaluation.iteration_time_s for member in taken.members] == [1.0, 2.0, 2.5]
    assert taken.members[2].strategy == trial.strategy


def test_a_crossed_child_has_nothing_but_its_parents_and_a_few_mutations() -> None:
    procedure = evolver(population=2, tournament=1, crossover=1.0)
    configs = [OpConfig((1, 1, 1), (device,)) for device in (0, 1)]
    parents = tuple(Scored(Strategy((config,) * 6), Score(iteration_time_s=1.0)) for config in configs)
    mixed = 0
    for step in range(200):
        child = procedure.propose(Generation(members=parents, step=step)).strategy
        assert sum(config not in configs for config in child.configs) <= 4
        # What a chain's second parent gives is one run of neighbours: at most two borders between parents.
        given_by = [configs.index(config) for config in child.configs if config in configs]
        if len(given_by) == 6:
            borders = int(np.abs(np.diff(given_by)).sum())
            assert borders <= 2
            mixed += borders > 0
    assert mixed > 20


@settings(max_examples=50, deadline=None)
@given(st.sampled_from([chain(num_operators=7), diamond(), crossing()]), st.integers(0, 10**6))
def test_a_subgraph_is_connected_and_no_more_than_half(graph, seed: int) -> None:
    near = neighbours(graph)
    chosen = subgraph(near, np.random.default_rng(seed))
    assert 1 <= len(chosen) <= len(near) // 2 + 1
    reached = {min(chosen)}
    while more := {other for index in reached for other in near[index] if other in chosen} - reached:
        reached |= more
    assert reached == chosen


def test_neighbours_exchange_an_activation() -> None:
    # top -> left, right -> bottom
    assert neighbours(diamond()) == ((1, 2), (0, 3), (0, 3), (1, 2))


def test_the_first_members_are_the_starts_and_mutations_of_them() -> None:
    procedure = evolver(population=6, initial_mutation=0.5)
    state = procedure.begin()
    members = []
    for _ in range(6):
        trial = procedure.propose(state)
        members.append(trial.strategy)
        state = procedure.advance(state, trial, Score(iteration_time_s=1.0))
    # At most one and half of the six operators, as none of them share parameters.
    differences = [
        sum(a != b for a, b in zip(member.configs, members[0].configs, strict=True)) for member in members
    ]
    assert differences[0] == 0
    assert all(difference <= 4 for difference in differences)
    assert max(differences) > 1


@pytest.mark.parametrize(
    "options", [{"population": 1}, {"tournament": 0}, {"crossover": 1.5}, {"initial_mutation": -0.1}]
)
def test_settings_without_sense_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(SearchError, match="expected"):
        EvolutionSettings(**options)  # type: ignore[arg-type]
