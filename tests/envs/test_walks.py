import gc

import pytest
from soaprl_envs.placement import PlacementEnv
from soaprl_envs.pool import ArenaPool
from soaprl_envs.walks import Walk, WalkPool


def num_walks() -> int:
    gc.collect()
    return sum(type(one) is Walk for one in gc.get_objects())


def test_environments_of_a_pool_have_one_walk_each_and_a_few_idle_ones(synthetic_pool: ArenaPool) -> None:
    before = num_walks()
    environments = [PlacementEnv(synthetic_pool) for _ in range(20)]
    for episode in range(6):
        for number, environment in enumerate(environments):
            environment.reset(seed=number, options={"problem": (number + episode) % 3})
    assert num_walks() - before <= 20 + 8


def test_no_two_environments_walk_the_same_walk(synthetic_pool: ArenaPool) -> None:
    one, other = PlacementEnv(synthetic_pool), PlacementEnv(synthetic_pool)
    for environment in (one, other, one, other):
        environment.reset(seed=0, options={"problem": 0})
        assert one._walk is not other._walk
    one.reset(seed=0, options={"problem": 0})
    other.reset(seed=0, options={"problem": 0})
    start = other.evaluation
    for action in range(3):
        one.step(action + 1)
    assert other.evaluation == start


def test_a_walk_that_was_given_back_begins_at_the_start_again(synthetic_pool: ArenaPool) -> None:
    arena, walks = synthetic_pool.arena(0), WalkPool()
    walk = walks.walk(arena)
    gain = walk.take(0, 1)
    assert gain != 0.0
    walks.give_back(walk)
    again = walks.walk(arena)
    assert again is walk
    assert again.evaluation == arena.start
    assert again.take(0, 1) == pytest.approx(gain, rel=1e-12)
    assert walks.walk(arena) is not walk, "one is not lent twice"


def test_the_walks_given_back_longest_ago_are_let_go(synthetic_pool: ArenaPool) -> None:
    walks = WalkPool(keep=2)
    lent = [walks.walk(synthetic_pool.arena(number)) for number in (0, 1, 2)]
    for walk in lent:
        walks.give_back(walk)
    assert walks.walk(synthetic_pool.arena(2)) is lent[2]
    assert walks.walk(synthetic_pool.arena(0)) is not lent[0]


def test_all_walks_of_a_problem_share_what_their_simulators_have_computed(synthetic_pool: ArenaPool) -> None:
    arena = synthetic_pool.arena(0)
    one = Walk(arena)
    for operator in range(arena.choices.num_operators):
        one.take(operator, 1)
    found, sizes = arena.patterns.found, arena.patterns.found.pools.edges.sizes.tolist()
    other = Walk(arena)
    for operator in range(arena.choices.num_operators):
        other.take(operator, 1)
    assert other.evaluation == one.evaluation
    assert arena.patterns.found is found, "it is replaced when there is more"
    assert found.pools.edges.sizes.tolist() == sizes, "those of edges are added to it"
