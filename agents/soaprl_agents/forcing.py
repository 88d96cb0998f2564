"""Teacher forcing: what a policy would have thought on the way to strategies that are already known."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from soaprl_envs.choices import Choices
from soaprl_envs.context import Contexts
from soaprl_envs.features import ProblemFeatures
from torch import Tensor

from soaprl_agents.network import Decider, collate, log_probabilities


class Forced(NamedTuple):
    """The decisions of B strategies of one problem; M = N B of them.

    Attributes:
        operators: i64 [M].
        contexts: f32 [M, K, features], what the policy sees when it decides.
        candidates: i64 [M], what it decides.
        samples: i64 [M], which of the strategies it is.
    """

    operators: Tensor
    contexts: Tensor
    candidates: Tensor
    samples: Tensor


def forced(choices: Choices, features: ProblemFeatures, chosen: NDArray[np.int64]) -> Forced:
    """The decisions that make the strategies `chosen` [B, N], in the order of decoding."""
    contexts = Contexts(choices, len(chosen))
    order = features.order.tolist()
    rows = []
    for operator in order:
        rows.append(contexts.row(operator, current=False))
        contexts.choose(operator, chosen[:, operator])
    return Forced(
        operators=torch.from_numpy(np.repeat(order, len(chosen))),
        contexts=torch.from_numpy(np.concatenate(rows)),
        candidates=torch.from_numpy(chosen[:, order].T.reshape(-1).copy()),
        samples=torch.arange(len(chosen)).repeat(len(order)),
    )


def decision_log_probability(network: Decider, features: ProblemFeatures, decisions: Forced) -> Tensor:
    """Log-probability of each decision, [M]; differentiable."""
    encoding = network.encode(collate([features]))
    decision = network.decide(encoding, decisions.operators, decisions.contexts)
    found = log_probabilities(decision.scores, decision.mask)
    return found.gather(1, decisions.candidates.unsqueeze(1)).squeeze(1)


def strategy_log_probability(
    network: Decider, choices: Choices, features: ProblemFeatures, chosen: NDArray[np.int64]
) -> Tensor:
    """Log-probability of sampling each of the strategies `chosen` [B, N] in one sweep, [B]."""
    decisions = forced(choices, features, chosen)
    found = decision_log_probability(network, features, decisions)
    return torch.zeros(len(chosen)).index_add(0, decisions.samples, found)
