from collections import Counter
from dataclasses import replace
from math import exp, inf
from pathlib import Path

import pytest
from soaprl_agents.decoding import ready_policy
from soaprl_agents.searching.guided import Guided, GuidedSettings, search_guided

from soaprl.graph.operators import OperatorGraph
from soaprl.search.proposals import Proposals, ProposalSettings
from soaprl.search.stepping import Trial
from soaprl.simulator.evaluator import Simulator
from soaprl.strategy.baselines import single_device
from soaprl.strategy.strategy import Strategy
from tests.agents.networks import decided_network, larger_problem
from tests.search.synthetic import Synthetic, all_strategies, pointwise_chain, toy_problem, toy_task
from tests.search.test_chain import chi_square, normalized, tied_chain

STEPS, EVERY = 24_000, 10


def visits(
    graph: OperatorGraph, evaluator: Synthetic, settings: GuidedSettings
) -> tuple[Counter[Strategy], float]:
    """How often a walk of `STEPS` is where, looking every few steps, and 1 / beta."""
    problem = toy_problem(graph, 2)
    policy = ready_policy(decided_network(spread=0.4), problem)
    start = single_device(graph, problem.cluster)
    guided = Guided(toy_task(problem, evaluator), lambda: policy, settings, start)
    state = guided.begin()
    found: Counter[Strategy] = Counter()
    while state.step < STEPS:
        trial = guided.propose(state)
        assert isinstance(trial, Trial)
        before = state
        state = guided.advance(state, trial, evaluator.evaluate(trial.strategy))
        # The steps since the last one without an evaluation stayed at the strategy that it led to.
        if before.current is not None:
            assert state.current is not None
            found[state.current.strategy] += (state.step - 1) // EVERY - before.step // EVERY
            found[before.current.strategy] += before.step % EVERY == 0
    return found, state.scale_s


@pytest.mark.parametrize("graph", [pointwise_chain(num_operators=3), tied_chain()], ids=["free", "tied"])
def test_visits_follow_the_distribution_of_plain_metropolis_search(graph: OperatorGraph) -> None:
    evaluator = Synthetic()
    # One round, of which half of the steps are plain: both kinds of steps must keep the distribution.
    settings = GuidedSettings(
        share=0.2,
        beta_relative=2.0,
        guided_steps=STEPS // 2,
        plain_steps=STEPS - STEPS // 2,
        patience=inf,
    )
    seen, scale_s = visits(graph, evaluator, settings)
    mixture = Proposals(graph, 2, ProposalSettings())
    boltzmann = {s: exp(-evaluator.cost(s) / scale_s) for s in all_strategies(graph, 2)}
    weighted = {
        s: w * exp(sum(mixture.log_probability(i, c) for i, c in enumerate(s.configs)))
        for s, w in boltzmann.items()
    }
    assert sum(seen.values()) > 0.9 * STEPS / EVERY
    assert chi_square(seen, normalized(weighted)) < 5
    assert chi_square(seen, normalized(boltzmann)) > 10


SHORT_ROUNDS = GuidedSettings(guided_steps=12, plain_steps=8, num_samples=4)


def test_every_round_begins_elsewhere_and_keeps_the_best() -> None:
    problem = larger_problem()
    policy = ready_policy(decided_network(), problem)
    simulator = Simulator(problem)
    guided = Guided(toy_task(problem, simulator), lambda: policy, SHORT_ROUNDS, None)
    state, began = guided.begin(), {}
    best_s = float("inf")
    for _ in range(400):
        trial = guided.propose(state)
        assert trial is not None
        evaluation = simulator.evaluate(trial.strategy)
        fits = evaluation.feasible and evaluation.iteration_time_s <= trial.limit_s
        before, state = state, guided.advance(state, trial, evaluation if fits else None)
        if fits:
            best_s = min(best_s, evaluation.iteration_time_s)
        if state.begun > before.begun:
            began[state.begun] = trial.strategy
            assert state.current is not None
            assert state.current.strategy == trial.strategy
            assert before.step == (state.begun - 1) * 20
    assert len(began) > 5
    assert len(set(began.values())) > 5, "rounds begin at different strategies"
    assert state.best is not None
    assert state.best.evaluation.iteration_time_s == best_s


def test_a_round_that_gets_no_better_ends_early() -> None:
    problem = larger_problem()
    policy = ready_policy(decided_network(), problem)
    simulator, patience = Simulator(problem), 3.0
    settings = GuidedSettings(num_samples=4, patience=patience)
    guided = Guided(toy_task(problem, simulator), lambda: policy, settings, None)
    state, best_s, in_vain, ended_after = guided.begin(), inf, 0, []
    for _ in range(400):
        trial = guided.propose(state)
        assert trial is not None
        evaluation = simulator.evaluate(trial.strategy)
        fits = evaluation.feasible and evaluation.iteration_time_s <= trial.limit_s
        begun, state = state.begun, guided.advance(state, trial, evaluation if fits else None)
        in_vain += 1
        if state.begun > begun:
            ended_after.append(in_vain)
        if state.begun > begun or (fits and evaluation.iteration_time_s < best_s):
            best_s, in_vain = evaluation.iteration_time_s, 0
    # Steps that change nothing count and need no evaluation, so that it may be fewer.
    longest = patience * len(problem.graph.operators) + 1
    assert len(ended_after) > 5
    assert longest / 2 < max(ended_after) <= longest


@pytest.mark.parametrize(
    "settings", [SHORT_ROUNDS, replace(SHORT_ROUNDS, patience=1.0)], ids=["full", "early"]
)
@pytest.mark.parametrize("evaluations", [3, 9, 40, 41, 60])
def test_a_walk_goes_on_in_any_round_as_if_it_had_not_stopped(
    evaluations: int, settings: GuidedSettings, tmp_path: Path
) -> None:
    problem, network = larger_problem(), decided_network()
    task = toy_task(problem, Simulator(problem), evaluations=120, state_path=tmp_path / "state.json")
    whole = search_guided(task, network, settings)
    search_guided(replace(task, budget=replace(task.budget, evaluations=evaluations)), network, settings)
    went_on = search_guided(replace(task, resume=True), network, settings)
    assert went_on.strategy == whole.strategy
    assert went_on.history_best_s.tolist() == whole.history_best_s.tolist()
    assert went_on.num_accepted == whole.num_accepted
