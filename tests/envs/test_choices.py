import numpy as np
import pytest
from soaprl_envs.choices import choices
from soaprl_envs.menus import device_groups, splits

from soaprl.cluster.presets import cluster_from_name
from soaprl.errors import StrategyError
from soaprl.search.experts import expert_strategies
from soaprl.strategy.baselines import data_parallel
from soaprl.strategy.strategy import OpConfig
from soaprl.strategy.validation import check_strategy
from tests.envs.problems import branching, preset_problem, problem_of


def test_the_start_is_data_parallelism():
    problem = preset_problem()
    found = choices(problem)
    assert found.strategy(found.start) == data_parallel(problem.graph, problem.cluster)


def test_a_batch_smaller_than_the_devices_starts_as_data_parallel_as_it_can_be():
    problem = problem_of(branching(sample=3), cluster_from_name("p100-2x2"))
    start = choices(problem).strategy(choices(problem).start)
    assert {config.num_tasks for config in start.configs} == {3}


def test_experts_can_be_expressed():
    problem = preset_problem("p100-2x4")
    found = choices(problem)
    for _, strategy in expert_strategies(problem):
        assert found.strategy(found.nearest(strategy)) == strategy


@pytest.mark.parametrize("cluster", ["p100-1x4", "p100-4x4", "k80-16x4", "a100-3x2"])
def test_candidates_are_legal_distinct_and_capped(cluster):
    problem = problem_of(branching(sample=192), cluster_from_name(cluster))
    found = choices(problem, max_candidates=48)
    assert found.mask.shape[1] <= 48
    assert (found.mask.sum(axis=1) == [len(configs) for configs in found.configs]).all()
    rng = np.random.default_rng(0)
    for _ in range(20):
        chosen = [int(rng.integers(len(configs))) for configs in found.configs]
        check_strategy(problem.graph, problem.cluster.num_devices, found.strategy(chosen))
        assert found.nearest(found.strategy(chosen)).tolist() == chosen
    assert all(len(set(configs)) == len(configs) for configs in found.configs)


def test_a_large_cluster_keeps_many_ways_to_split_and_many_groups_of_devices():
    problem = problem_of(branching(sample=256), cluster_from_name("k80-16x4"))
    linear = choices(problem).configs[0]
    sizes = {len(set(config.devices)) for config in linear}
    kinds = {tuple(degree > 1 for degree in config.degrees) for config in linear}
    assert {1, 4, 8, 16, 32, 64} <= sizes
    # Sample, channel, in_channel, sample and channel, ...
    assert len(kinds) >= 5
    assert len({frozenset(config.devices) for config in linear}) >= 30


def test_groups_of_a_cluster_are_whole_halves_nodes_one_of_each_node_and_singles():
    groups = device_groups(cluster_from_name("p100-2x2"))
    assert groups[0] == (0, 1, 2, 3)
    assert set(groups) == {(0, 1, 2, 3), (0, 1), (2, 3), (0, 2), (1, 3), (0,), (1,), (2,), (3,)}


def test_splits_come_with_few_factors_first_and_kinds_in_turn():
    linear = branching(sample=8, channel=8).operators[0]
    # Factors: sample, channel (parameter), in_channel (reduction).
    assert splits(linear, 4)[:3] == ((4, 1, 1), (1, 4, 1), (1, 1, 4))
    assert splits(linear, 4)[3:] == ((2, 2, 1), (2, 1, 2), (1, 2, 2))


def test_splits_are_uneven_only_where_nothing_else_fits():
    linear = branching(sample=8, channel=8).operators[0]
    assert splits(linear, 6) == ((6, 1, 1), (1, 6, 1), (1, 1, 6))


def test_the_nearest_candidate_has_like_degrees_and_devices():
    problem = preset_problem()
    found = choices(problem)
    strategy = found.strategy(found.start).replaced(0, OpConfig((4, 1, 1), (0, 1, 3, 2)))
    assert found.nearest(strategy)[0] == found.start[0]


def test_a_number_that_is_no_candidate_is_refused():
    found = choices(preset_problem())
    with pytest.raises(StrategyError, match="operator 'top': expected a candidate from 0"):
        found.strategy([999] + [0] * (found.num_operators - 1))
    with pytest.raises(StrategyError, match="one candidate for each of the 6 operators"):
        found.strategy([0])


def test_a_cap_that_leaves_no_choice_is_refused():
    with pytest.raises(StrategyError, match="at least 16"):
        choices(preset_problem(), max_candidates=2)
