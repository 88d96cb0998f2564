"""The policy network: a graph encoder and a decoder that scores candidates."""

from soaprl_agents.network.batch import ProblemBatch, collate
from soaprl_agents.network.choosing import divergence, entropy, greedy, log_probabilities, sample
from soaprl_agents.network.config import NetworkConfig
from soaprl_agents.network.policy import Encoding, PolicyNetwork

__all__ = [
    "Encoding",
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
