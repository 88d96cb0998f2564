from collections import Counter
from math import exp

import pytest
from soaprl_agents.decoding import ready_policy
from soaprl_agents.searching.guided import Guided, GuidedSettings

from soaprl.graph.operators import OperatorGraph
from soaprl.search.proposals import Proposals, ProposalSettings
from soaprl.search.stepping import Trial
from soaprl.strategy.baselines import single_device
from soaprl.strategy.strategy import Strategy
from tests.agents.networks import decided_network
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
    settings = GuidedSettings(share=0.2, beta_relative=2.0)
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
