"""The policy network: a graph encoder and a decoder that scores candidates; ensembles of networks."""

from typing import TypeAlias

from soaprl_agents.network.batch import ProblemBatch, collate
from soaprl_agents.network.choosing import divergence, entropy, greedy, log_probabilities, sample
from soaprl_agents.network.config import NetworkConfig
from soaprl_agents.network.ensemble import Ensemble
from soaprl_agents.network.policy import Encoding, PolicyNetwork

# Whatever scores candidates.
Decider: TypeAlias = PolicyNetwork | Ensemble

__all__ = [
    "Decider",
    "Encoding",
    "Ensemble",
    "NetworkConfig",
    "PolicyNetwork",
    "ProblemBatch",
    "collate",
    "divergence",
    "entropy",
    "greedy",
    "log_probabilities",
    "sample",
]
