"""The policy network as a policy of stable-baselines3.

Observations of ``soaprl/Placement-v0`` name the problem and the operator; what never changes about a problem
stays here, outside of the rollout buffer, and is encoded once for each set of weights. Of an observation only
the context columns are read. The mask comes from the problem, so that candidates that are none have
probability exactly 0.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from gymnasium import spaces
from soaprl_envs.base import CODE
from soaprl_envs.context import CONTEXT_COLUMNS, NUM_CONTEXT
from soaprl_envs.features import ProblemFeatures
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor

from soaprl.errors import PolicyError
from soaprl_agents.network import (
    Encoding,
    NetworkConfig,
    PolicyNetwork,
    collate,
    divergence,
    entropy,
    greedy,
    log_probabilities,
    sample,
)

_CURRENT = CONTEXT_COLUMNS.index("is_current")


class GraphPolicy(ActorCriticPolicy):
    """See the module.

    Args:
        observation_space: Of ``soaprl/Placement-v0``.
        action_space: Of it.
        lr_schedule: Learning rate by remaining progress.
        config: The network's shape.
        features: Of the environment's problems, by number.
        weights: To begin with; None: random ones.
        entropy_weight: See `evaluate_actions`.
        divergence_weight: Likewise.
        **unused: What stable-baselines3 passes to every policy, without effect here.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Callable[[float], float],
        *,
        config: NetworkConfig,
        features: Sequence[ProblemFeatures],
        weights: dict[str, Tensor] | None = None,
        entropy_weight: float = 1.0,
        divergence_weight: float = 0.0,
        **unused: Any,
    ) -> None:
        if not isinstance(observation_space, spaces.Dict) or "place" not in observation_space.spaces:
            raise PolicyError("expected the observations of soaprl/Placement-v0: make that environment.")
        self._config = config
        self._features = tuple(features)
        self._encoding: Encoding | None = None
        self._weights = entropy_weight, divergence_weight
        del unused
        super().__init__(observation_space, action_space, lr_schedule, net_arch=[])
        if weights is not None:
            self.network.load_state_dict(weights)
        self._first = _frozen(self.network, self._features) if divergence_weight else None

    def learn_only_values(self, only_values: bool) -> None:
        """Whether nothing but the head that predicts values learns from now on."""
        for name, parameter in self.network.named_parameters():
            parameter.requires_grad_(name.startswith("value.") or not only_values)

    def _build(self, lr_schedule: Callable[[float], float]) -> None:
        # All layers are the network's; what the base class would build is not needed.
        self.network = PolicyNetwork(self._config)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=lr_schedule(1.0), eps=1e-5)

    def set_training_mode(self, mode: bool) -> None:
        """As the base class; what was encoded with other weights is forgotten."""
        self._encoding = None
        super().set_training_mode(mode)

    def forward(self, obs: Any, deterministic: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Actions [B], values [B, 1] and log-probabilities [B]."""
        log_p, values = self._decided(obs)
        actions = greedy(log_p) if deterministic else sample(log_p)
        return actions, values, log_p.gather(1, actions.unsqueeze(1)).squeeze(1)

    def evaluate_actions(self, obs: Any, actions: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """What a step of PPO needs; differentiable.

        Returns:
            Values [B, 1]; log-probabilities of `actions` [B]; and what PPO takes for entropies [B]: the
            weighted entropies less the weighted divergences from the policy that training began with.
        """
        log_p, values = self._decided(obs)
        chosen = log_p.gather(1, actions.long().reshape(-1, 1)).squeeze(1)
        entropy_weight, divergence_weight = self._weights
        bonus = entropy_weight * entropy(log_p)
        if self._first is not None:
            bonus = bonus - divergence_weight * divergence(log_p, self._first.log_probabilities(obs))
        return values, chosen, bonus

    def predict_values(self, obs: Any) -> Tensor:
        """Values [B, 1]."""
        return self._decided(obs)[1]

    def _predict(self, observation: Any, deterministic: bool = False) -> Tensor:
        return self.forward(observation, deterministic)[0]

    def _decided(self, obs: Any) -> tuple[Tensor, Tensor]:
        """Log-probabilities [B, K] and values [B, 1]."""
        encoding, problems = self._encoded(_place(obs)[:, 0])
        return _decisions(self.network, encoding, problems, obs)

    def _encoded(self, problems: Tensor) -> tuple[Encoding, Tensor]:
        """The encoding of at least these problems, and their numbers in it."""
        if torch.is_grad_enabled():
            known, numbers = torch.unique(problems, return_inverse=True)
            found = [self._features[number] for number in known.tolist()]
            return self.network.encode(collate(found)), numbers
        if self._encoding is None:
            self._encoding = self.network.encode(collate(self._features))
        return self._encoding, problems


@dataclass(frozen=True, slots=True, kw_only=True)
class FrozenPolicy:
    """A network that does not learn, with all problems encoded."""

    network: PolicyNetwork
    encoding: Encoding

    def log_probabilities(self, obs: Any) -> Tensor:
        """Of all actions, [B, K]."""
        with torch.no_grad():
            return _decisions(self.network, self.encoding, _place(obs)[:, 0], obs)[0]


def _frozen(network: PolicyNetwork, features: Sequence[ProblemFeatures]) -> FrozenPolicy:
    """A copy of the network as it is now."""
    copied = deepcopy(network).eval()
    with torch.no_grad():
        return FrozenPolicy(network=copied, encoding=copied.encode(collate(features)))


def _place(obs: Any) -> Tensor:
    """Numbers of problem and operator, i64 [B, 2]."""
    place: Tensor = (obs["place"].double() / CODE).round().long()
    return place


def _decisions(
    network: PolicyNetwork, encoding: Encoding, problems: Tensor, obs: Any
) -> tuple[Tensor, Tensor]:
    """Log-probabilities [B, K] and values [B, 1]; `problems` [B] are numbered as they were encoded."""
    operators, width = _place(obs)[:, 1], obs["mask"].shape[1]
    context = obs["candidates"].reshape(len(operators), width, -1)[..., -NUM_CONTEXT:].clone()
    context[..., _CURRENT] = 0.0
    decision = network.decide(encoding, encoding.rows(problems, operators), context)
    log_p = log_probabilities(decision.scores, decision.mask)
    missing = width - log_p.shape[1]
    return torch.nn.functional.pad(log_p, (0, missing), value=-torch.inf), decision.values.unsqueeze(1)
