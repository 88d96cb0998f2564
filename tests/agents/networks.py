"""Small networks and problems for the tests of agents."""

from dataclasses import replace

import numpy as np
import torch
from soaprl_agents.checkpoints import feature_config
from soaprl_agents.network import PolicyNetwork
from soaprl_agents.training.learner import seeded
from soaprl_envs.choices import choices
from soaprl_envs.features import ProblemFeatures, problem_features

from soaprl.simulator.problem import Problem
from tests.envs.problems import branching, preset_problem


def decided_network(seed: int = 0, *, spread: float = 3.0, hidden: int = 16) -> PolicyNetwork:
    """An untrained network with opinions: scores spread widely instead of being nearly equal."""
    with seeded(seed):
        network = PolicyNetwork(feature_config(hidden=hidden, rounds=2, device_rounds=1))
        torch.nn.init.normal_(network.score.weight, std=spread)
        torch.nn.init.normal_(network.context_in.weight, std=1.0)
    return network.eval()


def small_problem() -> Problem:
    return preset_problem("p100-1x2")


def features_of(problem: Problem, *, max_candidates: int = 64) -> ProblemFeatures:
    return problem_features(choices(problem, max_candidates=max_candidates))


def larger_problem() -> Problem:
    return replace(preset_problem("p100-2x2"), graph=branching(sample=128, channel=512))


def random_context(features: ProblemFeatures, width: int, *, seed: int = 0) -> torch.Tensor:
    """One context for each operator, [N, K, width]."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.normal(size=(*features.mask.shape, width)).astype(np.float32))
