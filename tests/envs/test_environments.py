from math import log

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from soaprl_envs.base import CODE
from soaprl_envs.features import NUM_CANDIDATE
from soaprl_envs.problems import FixedProblems, TwoTowers
from stable_baselines3.common.env_checker import check_env as check_for_baselines
from stable_baselines3.common.vec_env import DummyVecEnv

from soaprl.errors import SimulationError
from soaprl.simulator import simulate
from tests.envs.problems import branching, problem_of
from tests.toys import toy_type, uniform_cluster


def rollout(environment, *, seed, options=None):
    """One episode of random actions: observations, rewards, the last information."""
    environment.action_space.seed(seed)
    observed, information = environment.reset(seed=seed, options=options)
    seen, rewards, ended = [observed], [], False
    while not ended:
        observed, reward, ended, truncated, information = environment.step(environment.action_space.sample())
        assert not truncated
        seen.append(observed)
        rewards.append(reward)
    return seen, rewards, information


def test_both_libraries_checks_pass(environment_name, synthetic_pool):
    environment = gymnasium.make(environment_name, problems=synthetic_pool)
    check_env(environment.unwrapped, skip_render_check=True)
    check_for_baselines(environment.unwrapped)


def test_equal_seeds_give_equal_rollouts(environment_name, synthetic_pool):
    runs = []
    for _ in range(2):
        environment = gymnasium.make(environment_name, problems=synthetic_pool)
        runs.append([rollout(environment, seed=seed) for seed in (1, 2)])
    for (seen, rewards, information), (seen2, rewards2, information2) in zip(*runs, strict=True):
        assert rewards == rewards2
        assert information == information2
        for one, other in zip(seen, seen2, strict=True):
            assert all((one[key] == other[key]).all() for key in one)


def test_rewards_telescope_to_what_full_simulation_says(environment_name, synthetic_pool):
    environment = gymnasium.make(environment_name, problems=synthetic_pool)
    for number in range(3):
        _, rewards, information = rollout(environment, seed=number, options={"problem": number})
        arena = environment.unwrapped.arena
        start = simulate(arena.problem, arena.choices.strategy(arena.choices.start))
        end = simulate(arena.problem, environment.unwrapped.strategy)
        assert information["problem"] == number
        assert start.feasible
        assert end.feasible
        assert end.iteration_time_s == information["iteration_time_s"]
        assert sum(rewards) == pytest.approx(log(start.iteration_time_s / end.iteration_time_s), abs=1e-9)
        assert information["speedup"] == pytest.approx(start.iteration_time_s / end.iteration_time_s)


def test_observations_stay_inside_of_their_space(environment_name, synthetic_pool):
    environment = gymnasium.make(environment_name, problems=synthetic_pool)
    seen, _, _ = rollout(environment, seed=5)
    assert all(environment.observation_space.contains(observed) for observed in seen)


def test_a_placement_episode_has_one_step_for_each_operator(synthetic_pool):
    environment = gymnasium.make("soaprl/Placement-v0", problems=synthetic_pool)
    seen, rewards, _ = rollout(environment, seed=0, options={"problem": 1})
    arena = environment.unwrapped.arena
    assert len(rewards) == arena.choices.num_operators
    operators = [round(float(observed["place"][1] / CODE)) for observed in seen]
    assert operators == [*range(len(rewards)), len(rewards) - 1]
    assert {round(float(observed["place"][0] / CODE)) for observed in seen} == {1}
    with pytest.raises(SimulationError, match="within an episode"):
        environment.unwrapped.step(np.int64(0))


def test_placement_shows_the_candidates_of_the_operator_and_their_context(synthetic_pool):
    environment = gymnasium.make("soaprl/Placement-v0", problems=synthetic_pool).unwrapped
    observed, _ = environment.reset(options={"problem": 0})
    arena = environment.arena
    environment.step(np.int64(1))
    observed, *_ = environment.step(np.int64(0))
    table = observed["candidates"].reshape(environment.limits.candidates, -1)
    count = arena.choices.num_candidates
    assert (table[:count, :NUM_CANDIDATE] == arena.features.candidates[2]).all()
    assert (table[:count, NUM_CANDIDATE:] == environment._walk.contexts.row(2)[0]).all()
    assert (observed["mask"] == environment.action_masks()).all()
    assert observed["progress"][0] == np.float32(2 / arena.choices.num_operators)


def test_rewards_at_the_end_have_the_same_sum(synthetic_pool):
    totals = []
    for rewards in ("each", "last"):
        environment = gymnasium.make("soaprl/Placement-v0", problems=synthetic_pool, rewards=rewards)
        _, received, information = rollout(environment, seed=3)
        totals.append((sum(received), information["iteration_time_s"]))
        if rewards == "last":
            assert not any(received[:-1])
            assert information["num_evaluations"] == 1
    assert totals[0] == pytest.approx(totals[1], abs=1e-9)


def test_a_number_that_is_no_candidate_changes_nothing():
    environment = gymnasium.make("soaprl/Placement-v0", problems=TwoTowers()).unwrapped
    environment.reset()
    assert environment.action_space.n == 3
    # The last operator has other candidates; all of these have exactly three.
    before = environment.strategy
    environment._walk.take(0, 7)
    assert environment.strategy == before


def test_a_start_that_does_not_fit_in_memory_is_infeasible_and_left_by_a_gain():
    # A weight has 256 x 256 x 4 bytes; with its gradient and Adam's two states that is 1 MiB. There are two:
    # 2 MiB and activations on every device under data parallelism, less where operators are spread.
    kinds = (toy_type(memory_bytes=2 << 20),)
    problem = problem_of(branching(), uniform_cluster(4, bandwidth=1e9, device_types=kinds))
    environment = gymnasium.make("soaprl/Placement-v0", problems=FixedProblems([problem])).unwrapped
    _, information = environment.reset()
    arena = environment.arena
    assert not arena.start.feasible
    assert not information["feasible"]
    assert arena.baseline.name == "model-parallel"
    assert arena.baseline.evaluation.feasible
    # Four times the slower one, and more for what memory lacks.
    lacking = arena.start.peak_memory_bytes / (2 << 20)
    slowest = max(arena.start.iteration_time_s, arena.baseline.time_s)
    assert information["effective_time_s"] == 4 * slowest * lacking
    total = 0.0
    for candidate in arena.choices.nearest(arena.baseline.strategy):
        _, reward, ended, _, information = environment.step(candidate)
        total += reward
    assert ended
    assert information["feasible"]
    assert information["speedup"] == 1
    assert total == pytest.approx(log(4 * slowest * lacking / arena.baseline.time_s))


def test_refinement_can_start_anywhere_and_remembers_the_best():
    environment = gymnasium.make("soaprl/Refine-v0", problems=TwoTowers(), budget=2).unwrapped
    found = environment.pool.arena(0).choices
    chosen = found.nearest(dict(found.experts)["model-parallel"])
    _, information = environment.reset(options={"chosen": chosen})
    assert environment.strategy == found.strategy(chosen)
    started = information["iteration_time_s"]
    _, reward, ended, _, worse = environment.step(np.array([0, 0]))
    assert not ended
    assert reward == pytest.approx(log(started / worse["iteration_time_s"]))
    assert worse["iteration_time_s"] > started
    assert worse["best_speedup"] == information["speedup"] > worse["speedup"]
    _, reward, ended, _, information = environment.step(np.array([4, 99]))
    assert ended
    assert reward == 0


def test_environments_run_side_by_side(environment_name, synthetic_pool):
    vector = gymnasium.make_vec(environment_name, num_envs=2, problems=synthetic_pool)
    observed, _ = vector.reset(seed=0)
    assert all(len(values) == 2 for values in observed.values())
    _, rewards, *_ = vector.step(vector.action_space.sample())
    assert np.isfinite(rewards).all()
    vector.close()
    many = DummyVecEnv([lambda: gymnasium.make(environment_name, problems=synthetic_pool)] * 2)
    many.reset()
    for _ in range(20):
        _, rewards, _, _ = many.step([many.action_space.sample() for _ in range(2)])
        assert np.isfinite(rewards).all()


def test_a_step_before_the_first_reset_says_so(environment_name, synthetic_pool):
    environment = gymnasium.make(environment_name, problems=synthetic_pool).unwrapped
    with pytest.raises(SimulationError, match="Call `reset`"):
        environment.step(environment.action_space.sample())


def test_settings_that_do_not_exist_are_refused(synthetic_pool):
    with pytest.raises(SimulationError, match="'each' or 'last'"):
        gymnasium.make("soaprl/Placement-v0", problems=synthetic_pool, rewards="some")
    with pytest.raises(SimulationError, match="at least 1 step"):
        gymnasium.make("soaprl/Refine-v0", problems=synthetic_pool, budget=0)
    with pytest.raises(SimulationError, match="problem from 0 to 2, found 3"):
        gymnasium.make("soaprl/Strategy-v0", problems=synthetic_pool).reset(options={"problem": 3})


@pytest.mark.parametrize(
    "suite",
    [
        "small",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("training", "validation", "held-out-families", "held-out-clusters")
        ),
    ],
)
def test_a_random_policy_runs_on_the_suites(suite):
    environment = gymnasium.make("soaprl/Placement-v0", problems=suite)
    environment.action_space.seed(0)
    problems = environment.unwrapped.pool.num_problems
    for number in range(0, problems, max(1, problems // 4)):
        _, rewards, information = rollout(environment, seed=number, options={"problem": number})
        assert np.isfinite(rewards).all()
        assert information["problem"] == number
