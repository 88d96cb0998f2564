import numpy as np
import pytest
import torch
from soaprl_agents.checkpoints import feature_config
from soaprl_agents.network import (
    PolicyNetwork,
    collate,
    entropy,
    greedy,
    log_probabilities,
    sample,
)
from soaprl_envs.features import ProblemFeatures
from torch import Tensor

from soaprl.errors import PolicyError
from tests.agents.networks import (
    decided_network,
    features_of,
    larger_problem,
    random_context,
    small_problem,
)


def decided(network: PolicyNetwork, problems: list[ProblemFeatures], which: int, context: Tensor) -> Tensor:
    """Scores of all operators of one problem, encoded beside the others; minus infinity where masked."""
    with torch.inference_mode():
        encoding = network.encode(collate(problems))
        operators = torch.arange(len(problems[which].operators))
        decision = network.decide(encoding, encoding.rows(torch.tensor(which), operators), context)
    return decision.scores.masked_fill(~decision.mask, -torch.inf)


def permuted(features: ProblemFeatures, order: np.ndarray) -> ProblemFeatures:
    """The same problem with operator ``order[i]`` called i."""
    new_name = np.argsort(order)
    shuffled = np.random.default_rng(1).permutation(features.edges.shape[1])
    return features._replace(
        operators=features.operators[order],
        edges=new_name[features.edges][:, shuffled],
        edge_features=features.edge_features[shuffled],
        candidates=features.candidates[order],
        mask=features.mask[order],
        order=new_name[features.order],
        family=features.family[order],
    )


def test_scores_do_not_depend_on_how_operators_are_numbered() -> None:
    network, features = decided_network(), features_of(larger_problem())
    context = random_context(features, network.config.context_width)
    order = np.random.default_rng(0).permutation(len(features.operators))
    plain = decided(network, [features], 0, context)
    other = decided(network, [permuted(features, order)], 0, context[torch.from_numpy(order)])
    torch.testing.assert_close(other, plain[torch.from_numpy(order)], rtol=1e-4, atol=1e-4)
    assert plain[features_mask(features)].std() > 0.1


def features_mask(features: ProblemFeatures) -> Tensor:
    return torch.from_numpy(features.mask)


def test_scores_move_with_the_candidates_when_these_are_listed_in_another_order() -> None:
    network, features = decided_network(), features_of(larger_problem())
    context = random_context(features, network.config.context_width)
    order = np.random.default_rng(0).permutation(features.mask.shape[1])
    listed = features._replace(candidates=features.candidates[:, order], mask=features.mask[:, order])
    plain = decided(network, [features], 0, context)
    other = decided(network, [listed], 0, context[:, torch.from_numpy(order)])
    torch.testing.assert_close(other, plain[:, torch.from_numpy(order)], rtol=1e-4, atol=1e-4)


def test_scores_do_not_depend_on_the_problems_encoded_beside_it_nor_on_padding() -> None:
    network = decided_network()
    small, large = features_of(small_problem()), features_of(larger_problem())
    width = small.mask.shape[1]
    assert width < large.mask.shape[1]
    context = random_context(small, network.config.context_width)
    padded = torch.nn.functional.pad(context, (0, 0, 0, large.mask.shape[1] - width), value=7.0)
    alone = decided(network, [small], 0, context)
    for problems, which in (([small, large], 0), ([large, small], 1)):
        beside = decided(network, problems, which, padded)
        torch.testing.assert_close(beside[:, :width], alone, rtol=1e-4, atol=1e-4)
        assert (beside[:, width:] == -torch.inf).all()


def test_values_do_not_depend_on_padding() -> None:
    network = decided_network()
    small, large = features_of(small_problem()), features_of(larger_problem())
    context = random_context(small, network.config.context_width)
    missing = large.mask.shape[1] - small.mask.shape[1]
    padded = torch.nn.functional.pad(context, (0, 0, 0, missing), value=7.0)
    rows = torch.arange(len(small.operators))
    with torch.inference_mode():
        alone = network.decide(network.encode(collate([small])), rows, context).values
        beside = network.decide(network.encode(collate([small, large])), rows, padded).values
    torch.testing.assert_close(beside, alone, rtol=1e-4, atol=1e-4)


def test_a_masked_candidate_has_probability_exactly_0_and_is_never_drawn() -> None:
    scores = torch.tensor([[0.0, 50.0, 1.0], [3.0, 0.0, 50.0]])
    mask = torch.tensor([[True, False, True], [True, True, False]])
    log_p = log_probabilities(scores, mask)
    assert (log_p.exp()[~mask] == 0.0).all()
    torch.testing.assert_close(log_p.exp().sum(dim=-1), torch.ones(2))
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([sample(log_p, generator) for _ in range(200)])
    assert set(drawn[:, 0].tolist()) == {0, 2}
    assert set(drawn[:, 1].tolist()) == {0, 1}
    assert greedy(log_p).tolist() == [2, 0]


def test_the_entropy_of_equal_scores_is_the_logarithm_of_their_number_and_has_a_finite_gradient() -> None:
    scores = torch.zeros(1, 4, requires_grad=True)
    mask = torch.tensor([[True, True, False, True]])
    found = entropy(log_probabilities(scores, mask))
    torch.testing.assert_close(found, torch.log(torch.tensor([3.0])))
    found.sum().backward()
    assert scores.grad is not None
    assert torch.isfinite(scores.grad).all()


def test_without_context_or_devices_the_network_does_not_read_them() -> None:
    features = features_of(larger_problem())
    width = feature_config().context_width
    one, other = (random_context(features, width, seed=seed) for seed in (0, 1))
    slower = features._replace(devices=features.devices + 1.0)
    for reads in (True, False):
        config = feature_config(hidden=16, rounds=1, uses_context=reads, uses_devices=reads)
        network = PolicyNetwork(config)
        torch.nn.init.normal_(network.score.weight, std=3.0)
        same_context = torch.equal(
            decided(network, [features], 0, one), decided(network, [features], 0, other)
        )
        same_devices = torch.equal(decided(network, [features], 0, one), decided(network, [slower], 0, one))
        assert same_context is same_devices is not reads


def test_a_network_of_impossible_shape_is_an_error() -> None:
    with pytest.raises(PolicyError, match="hidden: expected a number above 0, found 0"):
        feature_config(hidden=0)
    with pytest.raises(PolicyError, match=r"rounds: expected .*int.*, found 'three'"):
        feature_config(rounds="three")
