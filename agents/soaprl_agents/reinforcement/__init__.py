"""Reinforcement learning on ``soaprl/Placement-v0`` with stable-baselines3."""

from soaprl_agents.reinforcement.policy import GraphPolicy
from soaprl_agents.reinforcement.ppo import PerProblemBaseline, make_ppo, reinforce

__all__ = ["GraphPolicy", "PerProblemBaseline", "make_ppo", "reinforce"]
