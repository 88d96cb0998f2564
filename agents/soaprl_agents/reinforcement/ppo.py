"""Proximal policy optimization of the policy on ``soaprl/Placement-v0``.

The algorithm is stable-baselines3's (Schulman et al.: Proximal Policy Optimization Algorithms, 2017); added
is a baseline for each problem (`PerProblemBaseline`): advantages are centred and scaled among the decisions
of one problem, so that a model that has a factor of 3 to gain does not drown one that has 3 percent.

Rewards are not discounted: what counts is the strategy at the end.

A policy that has imitated is kept from forgetting in two ways: its first rollouts teach only the head that
predicts values (`ValuesFirst`), and afterwards its divergence from where it began costs something
(`PpoSection.divergence`).

Metrics (TensorBoard): those of stable-baselines3 (`rollout/ep_rew_mean` is the mean of log(time of data
parallelism / time) at the end of episodes, `train/approx_kl`, `train/explained_variance`, ...);
`train/entropy_loss` is the weighted divergence less the weighted entropy.
"""

import io
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from soaprl_envs.base import CODE
from soaprl_envs.placement import PlacementEnv
from soaprl_envs.pool import ArenaPool
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import DictRolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor

from soaprl.atomic import make_folder, write_bytes_atomic
from soaprl_agents.network import PolicyNetwork
from soaprl_agents.reinforcement.policy import GraphPolicy
from soaprl_agents.training.recipe import PpoSection

STATE = "ppo.pt"


class OneProblem(gymnasium.Wrapper[Any, Any, Any, Any]):
    """An environment whose episodes are all of one problem.

    So all problems have as many episodes side by side, and an environment has the simulator of only one.

    Args:
        env: Takes ``options["problem"]``.
        number: The problem.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], number: int) -> None:
        super().__init__(env)
        self._number = number

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begins an episode of the problem."""
        return super().reset(seed=seed, options={**(options or {}), "problem": self._number})


class PerProblemBaseline(BaseCallback):
    """Centres and scales the advantages of each problem's decisions after every rollout."""

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        buffer = self.locals["rollout_buffer"]
        assert isinstance(buffer, DictRolloutBuffer)
        numbers = np.rint(buffer.observations["place"][..., 0] / CODE)
        for number in np.unique(numbers):
            own = numbers == number
            advantages = buffer.advantages[own]
            buffer.advantages[own] = (advantages - advantages.mean()) / (advantages.std() + 1e-6)


class ValuesFirst(BaseCallback):
    """Lets only the head that predicts values learn from the first rollouts.

    Args:
        timesteps: Decisions after which everything learns.
    """

    def __init__(self, timesteps: int) -> None:
        super().__init__()
        self._timesteps = timesteps

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        policy = self.model.policy
        assert isinstance(policy, GraphPolicy)
        policy.learn_only_values(self.model.num_timesteps <= self._timesteps)


class Saving(BaseCallback):
    """Writes the state after every update, and tells how far it is.

    Args:
        folder: Where.
        timesteps: Of the whole training.
        say: Told the share that is done and the mean reward of late episodes.
    """

    def __init__(self, folder: Path, timesteps: int, say: Callable[[float, float], None]) -> None:
        super().__init__()
        self._folder = folder
        self._timesteps = timesteps
        self._say = say

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        if self.model.num_timesteps:
            save_state(self.model, self._folder)
        episodes = self.model.ep_info_buffer or ()
        reward = float(np.mean([episode["r"] for episode in episodes])) if episodes else 0.0
        self._say(self.model.num_timesteps / self._timesteps, reward)


def make_ppo(
    network: PolicyNetwork,
    pool: ArenaPool,
    settings: PpoSection,
    *,
    seed: int,
    curves: Path | None = None,
) -> PPO:
    """The learner, at its first step.

    Args:
        network: Gives shape and weights; it is copied.
        pool: The problems.
        settings: How it learns.
        seed: Of everything.
        curves: Folder for TensorBoard.
    """
    count = settings.problems * settings.samples
    environments: list[Callable[[], gymnasium.Env[Any, Any]]] = [
        partial(OneProblem, PlacementEnv(pool), number % pool.num_problems) for number in range(count)
    ]
    vectorized = VecMonitor(DummyVecEnv(environments))
    features = [pool.arena(number).features for number in range(pool.num_problems)]
    steps = max(len(problem.operators) for problem in features)
    return PPO(
        GraphPolicy,
        vectorized,
        learning_rate=settings.rate,
        n_steps=steps,
        batch_size=_even_batch(settings.batch, steps * count),
        n_epochs=settings.epochs,
        gamma=1.0,
        gae_lambda=0.98,
        clip_range=settings.clip,
        # What the policy gives for entropies is weighted already.
        ent_coef=1.0,
        vf_coef=0.5,
        normalize_advantage=not settings.baseline_each,
        seed=seed,
        device="cpu",
        tensorboard_log=None if curves is None else str(curves),
        policy_kwargs={
            "config": network.config,
            "features": features,
            "entropy_weight": settings.entropy,
            "divergence_weight": settings.divergence,
            "weights": {name: tensor.clone() for name, tensor in network.state_dict().items()},
        },
    )


def _even_batch(most: int, size: int) -> int:
    """The largest number up to `most` that divides `size`, so that all steps of an update are alike."""
    return next(batch for batch in range(min(most, size), 0, -1) if size % batch == 0)


def reinforce(
    network: PolicyNetwork,
    pool: ArenaPool,
    settings: PpoSection,
    *,
    seed: int,
    folder: Path,
    say: Callable[[float, float], None],
) -> PolicyNetwork:
    """`network` after ``settings.timesteps`` decisions; goes on from the state in `folder` if there is one.

    Args:
        network: To begin with.
        pool: The problems.
        settings: How it learns.
        seed: Of everything.
        folder: Keeps the state.
        say: Told the share that is done and the mean reward of late episodes.

    Raises:
        OutputError: The state cannot be written.
    """
    make_folder(folder)
    model = make_ppo(network, pool, settings, seed=seed, curves=folder / "curves")
    restored = restore_state(model, folder)
    left = settings.timesteps - model.num_timesteps
    if left > 0:
        callbacks: list[BaseCallback] = [Saving(folder, settings.timesteps, say)]
        if settings.values_first:
            callbacks.insert(0, ValuesFirst(settings.values_first))
        if settings.baseline_each:
            callbacks.insert(0, PerProblemBaseline())
        model.learn(left, callback=callbacks, reset_num_timesteps=not restored, tb_log_name="ppo")
        save_state(model, folder)
    policy = model.policy
    assert isinstance(policy, GraphPolicy)
    return policy.network.eval()


def save_state(model: PPO | Any, folder: Path) -> None:
    """Write weights, optimizer and the number of decisions into `folder`."""
    stream = io.BytesIO()
    state = {
        "timesteps": model.num_timesteps,
        "policy": model.policy.state_dict(),
        "optimizer": model.policy.optimizer.state_dict(),
    }
    torch.save(state, stream)
    write_bytes_atomic(folder / STATE, stream.getvalue())


def restore_state(model: PPO, folder: Path) -> bool:
    """Go on from the state in `folder`; whether there is one."""
    path = folder / STATE
    if not path.is_file():
        return False
    state = torch.load(path, weights_only=True)
    model.num_timesteps = int(state["timesteps"])
    model.policy.load_state_dict(state["policy"])
    model.policy.optimizer.load_state_dict(state["optimizer"])
    return True
