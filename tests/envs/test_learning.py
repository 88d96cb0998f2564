import gymnasium
import pytest
from soaprl_envs.problems import TwoTowers
from soaprl_envs.problems.toy import OPTIMUM_S
from stable_baselines3 import PPO


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_plain_policy_learns_the_optimum_of_the_toy(seed):
    environment = gymnasium.make("soaprl/Placement-v0", problems=TwoTowers())
    model = PPO(
        "MultiInputPolicy", environment, n_steps=250, batch_size=50, gamma=1.0, seed=seed, device="cpu"
    )
    model.learn(2_500)
    observed, _ = environment.reset()
    ended = False
    while not ended:
        action, _ = model.predict(observed, deterministic=True)
        observed, _, ended, _, information = environment.step(action)
    assert information["iteration_time_s"] == OPTIMUM_S
