from pathlib import Path

import numpy as np
import pytest
import torch
from soaprl_agents.checkpoints import feature_config
from soaprl_agents.decoding import ready_policy, sweep
from soaprl_agents.network import PolicyNetwork, divergence, log_probabilities
from soaprl_agents.reinforcement import GraphPolicy, PerProblemBaseline, make_ppo, reinforce
from soaprl_agents.training.learner import seeded
from soaprl_agents.training.recipe import PpoSection
from soaprl_envs.placement import PlacementEnv
from soaprl_envs.pool import ArenaPool
from soaprl_envs.problems import FixedProblems, TwoTowers
from soaprl_envs.problems.toy import OPTIMUM_S
from soaprl_envs.spaces import limits_for

from soaprl.errors import PolicyError
from soaprl.simulator.evaluator import Simulator
from tests.agents.networks import decided_network, larger_problem, small_problem

FAST = PpoSection(timesteps=4000, problems=1, samples=8, epochs=6, batch=64, rate=2e-3, entropy=0.01)


def two_problems() -> ArenaPool:
    problems = [small_problem(), larger_problem()]
    return ArenaPool(FixedProblems(problems), limits=limits_for(problems))


def towers() -> ArenaPool:
    return ArenaPool(TwoTowers(), limits=limits_for([TwoTowers().problem(0)]))


def fresh_network(hidden: int = 32) -> PolicyNetwork:
    with seeded(0):
        return PolicyNetwork(feature_config(hidden=hidden, rounds=1, device_rounds=1))


def say_nothing(done: float, reward: float) -> None:
    pass


def test_the_policy_of_stable_baselines_decides_as_decoding_does() -> None:
    network, pool = decided_network(), two_problems()
    model = make_ppo(network, pool, FAST, seed=0)
    for number in (0, 1):
        environment = PlacementEnv(pool)
        observed, _ = environment.reset(seed=0, options={"problem": number})
        done, actions = False, []
        while not done:
            action, _ = model.predict(observed, deterministic=True)
            actions.append(int(action))
            observed, _, done, _, _ = environment.step(action)
        policy = ready_policy(network, pool.arena(number).problem)
        greedy = sweep(policy, policy.contexts(1), np.random.default_rng(0)).chosen[0]
        assert actions == greedy.tolist()


def test_actions_that_are_no_candidates_have_probability_0_and_log_probabilities_agree() -> None:
    pool = two_problems()
    model = make_ppo(decided_network(), pool, FAST, seed=0)
    policy = model.policy
    assert isinstance(policy, GraphPolicy)
    observations = model.env.reset()
    obs, _ = policy.obs_to_tensor(observations)
    policy.set_training_mode(False)
    with torch.no_grad():
        actions, values, log_p = policy.forward(obs)
        everything, _ = policy._decided(obs)
    assert (everything.exp()[obs["mask"] == 0] == 0.0).all()
    assert (obs["mask"] == 0).any()
    again_values, again, entropies = policy.evaluate_actions(obs, actions)
    torch.testing.assert_close(again, log_p)
    torch.testing.assert_close(again_values, values)
    assert (entropies > 0).all()


def test_the_baseline_of_each_problem_leaves_advantages_of_mean_0_and_deviation_1() -> None:
    pool = two_problems()
    model = make_ppo(decided_network(), pool, FAST, seed=0)
    seen: list[tuple[float, float]] = []

    class Watching(PerProblemBaseline):
        def _on_rollout_end(self) -> None:
            super()._on_rollout_end()
            buffer = self.locals["rollout_buffer"]
            numbers = buffer.observations["place"][..., 0]
            for number in np.unique(numbers):
                own = buffer.advantages[numbers == number]
                seen.append((float(own.mean()), float(own.std())))

    model.learn(1, callback=Watching())
    assert len(seen) == 2
    for mean, deviation in seen:
        assert mean == pytest.approx(0.0, abs=1e-5)
        assert deviation == pytest.approx(1.0, abs=1e-3)


def test_reinforcement_alone_reaches_the_known_optimum_of_the_two_towers(tmp_path: Path) -> None:
    trained = reinforce(fresh_network(), towers(), FAST, seed=0, folder=tmp_path, say=say_nothing)
    problem = TwoTowers().problem(0)
    policy = ready_policy(trained, problem)
    greedy = sweep(policy, policy.contexts(1), np.random.default_rng(0)).chosen
    best = Simulator(problem).evaluate(policy.strategies(greedy)[0])
    assert best.iteration_time_s == pytest.approx(OPTIMUM_S)


def test_reinforcement_goes_on_where_it_was_ended(tmp_path: Path) -> None:
    told: list[float] = []
    short = FAST.model_copy(update={"timesteps": 80})
    reinforce(fresh_network(), towers(), short, seed=0, folder=tmp_path, say=say_nothing)
    longer = FAST.model_copy(update={"timesteps": 160})
    reinforce(
        fresh_network(), towers(), longer, seed=0, folder=tmp_path, say=lambda done, reward: told.append(done)
    )
    assert told[0] == 0.5


def test_the_divergence_is_that_of_the_distributions_without_what_is_masked() -> None:
    scores, mask = torch.arange(24.0).reshape(2, 3, 4).sin(), torch.tensor([True, True, True, False])
    one, other = (log_probabilities(rows, mask.expand(3, 4)) for rows in scores)
    first, second = (torch.distributions.Categorical(logits=rows[:, :3]) for rows in (one, other))
    torch.testing.assert_close(divergence(one, other), torch.distributions.kl_divergence(first, second))
    assert (divergence(one, one) == 0.0).all()


def weights_after(settings: PpoSection, folder: Path) -> dict[str, torch.Tensor]:
    network = reinforce(fresh_network(), towers(), settings, seed=0, folder=folder, say=say_nothing)
    return network.state_dict()


def test_at_first_only_the_head_that_predicts_values_learns(tmp_path: Path) -> None:
    settings = FAST.model_copy(update={"timesteps": 160, "values_first": 160})
    before, after = fresh_network().state_dict(), weights_after(settings, tmp_path / "values")
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert changed
    assert all(name.startswith("value.") for name in changed)
    longer = settings.model_copy(update={"timesteps": 320})
    later = weights_after(longer, tmp_path / "all")
    assert any(not torch.equal(before[n], later[n]) for n in before if not n.startswith("value."))


def test_a_price_on_divergence_keeps_the_policy_where_it_began(tmp_path: Path) -> None:
    problem, first = TwoTowers().problem(0), ready_policy(fresh_network(), TwoTowers().problem(0))
    moved = []
    for weight in (0.0, 30.0):
        settings = FAST.model_copy(update={"timesteps": 640, "divergence": weight})
        folder = tmp_path / str(weight)
        trained = reinforce(fresh_network(), towers(), settings, seed=0, folder=folder, say=say_nothing)
        now, contexts = ready_policy(trained, problem), first.contexts(1)
        rows = [
            [
                torch.from_numpy(one.log_probabilities(o, contexts.row(o, current=False)))
                for one in (now, first)
            ]
            for o in range(first.num_operators)
        ]
        moved.append(sum(float(divergence(*pair)) for pair in rows))
    assert moved[1] < 0.5 * moved[0]


def test_another_environment_is_an_error() -> None:
    import gymnasium

    with pytest.raises(PolicyError, match="soaprl/Placement-v0"):
        GraphPolicy(
            gymnasium.spaces.Box(0, 1, (2,)),
            gymnasium.spaces.Discrete(2),
            lambda left: 1e-3,
            config=feature_config(),
            features=(),
        )
