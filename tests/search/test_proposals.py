from collections import Counter
from collections.abc import Iterator
from math import exp

import numpy as np
import pytest

from soaprl.errors import SearchError
from soaprl.search.proposals import BLOCK_SIZE, DeviceWeights, Proposals, ProposalSettings
from soaprl.strategy.strategy import OpConfig
from soaprl.strategy.validation import check_config, check_strategy
from tests.search.synthetic import all_configs, pointwise_chain
from tests.toys import chain


def drawn(proposals: Proposals, *, blocks: int, seed: int = 0) -> Iterator[tuple[int, OpConfig]]:
    for index in range(blocks):
        draws = proposals.block(seed, 1, index)
        yield from ((draws.operators[row], draws.config(row)) for row in range(BLOCK_SIZE))


@pytest.mark.parametrize("kind", ["mixture", "uniform"])
@pytest.mark.parametrize("num_devices", [1, 3, 4])
def test_probabilities_of_all_legal_configurations_sum_to_one(kind: str, num_devices: int) -> None:
    graph = pointwise_chain(sample=4, channel=3)
    proposals = Proposals(graph, num_devices, ProposalSettings(kind=kind))
    total = sum(exp(proposals.log_probability(0, c)) for c in all_configs(graph, 0, num_devices))
    assert total == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("kind", ["mixture", "uniform"])
def test_draws_have_the_stated_probabilities(kind: str) -> None:
    graph = pointwise_chain(num_operators=1, sample=4)
    proposals = Proposals(graph, 4, ProposalSettings(kind=kind))
    counts = Counter(config for _, config in drawn(proposals, blocks=80))
    total = sum(counts.values())
    configs = list(all_configs(graph, 0, 4))
    assert set(counts) <= set(configs)
    expected = np.array([total * exp(proposals.log_probability(0, c)) for c in configs])
    observed = np.array([counts[c] for c in configs])
    statistic = float(((observed - expected) ** 2 / expected).sum())
    # 4 + 4^2 + 4^3 + 4^4 = 340 configurations; chi-square with 339 degrees of freedom has mean 339 and
    # standard deviation sqrt(678) = 26: 4 deviations.
    assert len(configs) == 340
    assert statistic < 339 + 4 * 26


def test_the_uniform_proposal_draws_each_configuration_equally_often() -> None:
    graph = pointwise_chain(num_operators=1, sample=2)
    proposals = Proposals(graph, 3, ProposalSettings(kind="uniform"))
    configs = list(all_configs(graph, 0, 3))
    # 3 ways to place one task and 9 to place two.
    assert len(configs) == 12
    assert all(exp(proposals.log_probability(0, c)) == pytest.approx(1 / 12) for c in configs)


@pytest.mark.parametrize("kind", ["mixture", "uniform"])
def test_every_draw_is_legal_on_many_devices(kind: str) -> None:
    graph = chain(num_operators=3, sample=7, channel=12)
    proposals = Proposals(graph, 12, ProposalSettings(kind=kind))
    for operator, config in drawn(proposals, blocks=2):
        check_config(graph.operators[operator], config, 12)
        assert config.num_tasks <= 12


def test_every_operator_is_drawn_equally_often() -> None:
    graph = chain(num_operators=4)
    counts = Counter(operator for operator, _ in drawn(Proposals(graph, 2, ProposalSettings()), blocks=20))
    # Binomial with n = 10240, p = 1/4: standard deviation 44.
    assert all(abs(counts[index] - 2560) < 4 * 44 for index in range(4))


def test_reductions_are_never_split_when_switched_off() -> None:
    graph = chain(num_operators=2, sample=4, channel=4)
    with_them = Proposals(graph, 4, ProposalSettings())
    without = Proposals(graph, 4, ProposalSettings(reductions=False))
    assert any(config.degrees[2] > 1 for _, config in drawn(with_them, blocks=1))
    assert all(config.degrees[2] == 1 for _, config in drawn(without, blocks=1))


def test_more_tasks_than_devices_wrap_around() -> None:
    graph = pointwise_chain(num_operators=1, sample=8)
    proposals = Proposals(graph, 2, ProposalSettings(max_tasks=8))
    configs = [config for _, config in drawn(proposals, blocks=2)]
    assert max(config.num_tasks for config in configs) == 8
    assert any(config.devices == (0, 1) * 4 for config in configs)


def test_a_block_depends_on_seed_stream_and_index_alone() -> None:
    proposals = Proposals(chain(), 4, ProposalSettings())
    again = Proposals(chain(), 4, ProposalSettings())
    base = proposals.block(3, 1, 5)
    assert [base.config(r) for r in range(9)] == [again.block(3, 1, 5).config(r) for r in range(9)]
    for other in ((4, 1, 5), (3, 2, 5), (3, 1, 6)):
        assert base.exponentials != proposals.block(*other).exponentials


def test_a_random_strategy_is_legal_and_varies() -> None:
    graph = chain(num_operators=5)
    proposals = Proposals(graph, 4, ProposalSettings())
    rng = np.random.default_rng(0)
    strategies = [proposals.strategy(rng) for _ in range(10)]
    for strategy in strategies:
        check_strategy(graph, 4, strategy)
    assert len(set(strategies)) == 10


@pytest.mark.parametrize(
    "weights", [{"arbitrary": 0.0, "aligned": 0.5}, {"aligned": 0.9}, {"block": -0.2, "aligned": 0.7}]
)
def test_weights_that_exclude_configurations_or_do_not_sum_to_one_are_an_error(
    weights: dict[str, float],
) -> None:
    with pytest.raises(SearchError, match="sum to 1, arbitrary above 0"):
        DeviceWeights(**weights)


def test_an_unknown_proposal_is_an_error() -> None:
    with pytest.raises(SearchError, match="'mixture' or 'uniform', found 'normal'"):
        ProposalSettings(kind="normal")
