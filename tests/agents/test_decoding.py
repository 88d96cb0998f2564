import numpy as np
import pytest
from soaprl_agents.decoding import draw, ready_policy, spread_temperatures, sweep, tempered
from soaprl_agents.forcing import strategy_log_probability

from soaprl.strategy.validation import check_strategy
from tests.agents.networks import decided_network, larger_problem


def test_teacher_forced_log_probabilities_are_those_of_sampling() -> None:
    network, problem = decided_network(), larger_problem()
    policy = ready_policy(network, problem)
    decoded = sweep(policy, policy.contexts(6), np.random.default_rng(0))
    forced = strategy_log_probability(network, policy.choices, policy.features, decoded.chosen)
    np.testing.assert_allclose(forced.detach().numpy(), decoded.log_probability, rtol=1e-4)
    assert len({tuple(row) for row in decoded.chosen.tolist()}) > 1


def test_samples_are_legal_and_the_same_for_the_same_seed() -> None:
    problem = larger_problem()
    policy = ready_policy(decided_network(), problem)
    one, same, other = (
        sweep(policy, policy.contexts(4), np.random.default_rng(seed)).chosen for seed in (0, 0, 1)
    )
    assert (one == same).all()
    assert (one[0] == other[0]).all(), "the first sample is the most probable one, whatever the seed"
    assert (one[1:] != other[1:]).any()
    for strategy in policy.strategies(one):
        check_strategy(problem.graph, problem.cluster.num_devices, strategy)


def test_samples_side_by_side_are_those_of_one_alone() -> None:
    policy = ready_policy(decided_network(), larger_problem())
    many = sweep(policy, policy.contexts(5), np.random.default_rng(0), num_greedy=5)
    alone = sweep(policy, policy.contexts(1), np.random.default_rng(0), num_greedy=1)
    assert (many.chosen == alone.chosen).all()


def test_a_refining_sweep_sees_what_was_decided_before() -> None:
    policy = ready_policy(decided_network(), larger_problem())
    contexts = policy.contexts(1)
    first = sweep(policy, contexts, np.random.default_rng(0)).chosen
    assert contexts.decided.all()
    again = sweep(policy, contexts, np.random.default_rng(0)).chosen
    assert (first != again).any(), "an untrained network has no reason to repeat itself"


def test_drawing_follows_the_probabilities_and_never_takes_what_is_masked() -> None:
    probability = np.array([0.5, 0.2, 0.3, 0.0])
    with np.errstate(divide="ignore"):
        log_p = np.log(np.broadcast_to(probability, (20_000, 4)))
    share = np.bincount(draw(log_p, np.random.default_rng(0)), minlength=4) / 20_000
    np.testing.assert_allclose(share, probability, atol=0.015)
    assert share[3] == 0.0


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_temperature_takes_a_root_of_the_odds(temperature: float) -> None:
    log_p = np.log([[0.8, 0.2]])
    found = tempered(log_p, temperature)
    assert np.exp(found).sum() == pytest.approx(1.0)
    assert found[0, 0] - found[0, 1] == pytest.approx(np.log(4.0) / temperature)


def test_every_sample_has_a_temperature_of_its_own() -> None:
    network = decided_network()
    policy = ready_policy(network, larger_problem())
    temperature = np.repeat([0.2, 4.0], 16)
    decoded = sweep(
        policy, policy.contexts(32), np.random.default_rng(0), temperature=temperature, num_greedy=0
    )
    found = strategy_log_probability(network, policy.choices, policy.features, decoded.chosen)
    assert found[:16].mean() > found[16:].mean() + 1.0
    assert spread_temperatures(3, coolest=0.25, warmest=1.0).tolist() == pytest.approx([0.25, 0.5, 1.0])
